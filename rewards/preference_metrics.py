"""Accuracy of scores on preference pairs, without ties and with calibrated ties."""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from longtake.rewards.preference_labels import TIE, check_labels, is_decided, is_labelled
from longtake.runtime.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class PairAccuracy:
    """Share of pairs that the scores judge like the annotators.

    Args:
        value: accuracy in [0, 1]; NaN when ``count`` is 0, because 0/0 is no accuracy.
        correct: number of pairs judged alike.
        count: number of pairs that count.
        threshold: margins up to this size were taken as ties; None when no margin was.
    """

    value: float
    correct: int
    count: int
    threshold: float | None = None


def accuracy_without_ties(margins: Tensor, labels: Tensor) -> PairAccuracy:
    """Share of decided pairs whose margin has the sign of the label.

    Args:
        margins: [N] score of A minus score of B; a margin of exactly 0 picks no winner and is
            wrong.
        labels: [N] labels; ties and unlabelled pairs are left out.

    Raises:
        UserError: shapes differ, or a margin that counts is not finite.
    """
    _check(margins, labels)
    decided = is_decided(labels)
    agree = int((margins[decided].sign() == labels[decided]).sum())
    return _accuracy(agree, int(decided.sum()))


def accuracy_with_ties(margins: Tensor, labels: Tensor, *, legacy: bool = False) -> PairAccuracy:
    """Accuracy with tie calibration (Deutsch et al. 2023, arXiv 2305.14324).

    Margins up to a threshold count as predicted ties; the threshold with the best share of right
    predictions (A, B or tie) is chosen on the same pairs. Candidates are "no tie at all" and every
    size of a margin, so margins of one size become ties together. Of equally good thresholds the
    smallest is reported.

    Args:
        margins: [N] score of A minus score of B.
        labels: [N] labels; unlabelled pairs are left out.
        legacy: reproduce the public VideoAlign script. It never tries "no tie at all", so a perfect
            scorer of N untied pairs gets (N - 1) / N, and it turns margins of one size into ties
            one by one, in the order of the pairs.

    Raises:
        UserError: shapes differ, or a margin that counts is not finite.
    """
    _check(margins, labels)
    labelled = is_labelled(labels)
    margin = margins[labelled].double().cpu().numpy()
    label = labels[labelled].cpu().numpy()
    count = len(label)
    if count == 0:
        return _accuracy(0, 0)
    size = np.abs(margin)
    order = np.argsort(size, kind="stable")
    size, right = size[order], (np.sign(margin) == label)[order] & (label != TIE)[order]
    tied = (label == TIE)[order]
    # correct[i]: the i smallest margins are predicted ties, the others by their sign.
    correct = np.concatenate([[0], np.cumsum(tied)]) + right.sum()
    correct -= np.concatenate([[0], np.cumsum(right)])
    if legacy:
        candidates = np.arange(1, count + 1)
    else:  # only where the size changes, and the ends
        candidates = np.flatnonzero(np.concatenate([[True], size[1:] != size[:-1], [True]]))
    best = int(candidates[np.argmax(correct[candidates])])
    threshold = float(size[best - 1]) if best else None
    return _accuracy(int(correct[best]), count, threshold)


def _accuracy(correct: int, count: int, threshold: float | None = None) -> PairAccuracy:
    value = correct / count if count else math.nan
    return PairAccuracy(value=value, correct=correct, count=count, threshold=threshold)


def _check(margins: Tensor, labels: Tensor) -> None:
    if margins.ndim != 1 or margins.shape != labels.shape:
        raise UserError(
            "margins and labels do not fit",
            received=f"{tuple(margins.shape)} and {tuple(labels.shape)}",
            expected="two tensors of the same shape [N]",
        )
    check_labels(labels)
    broken = ~margins.isfinite() & is_labelled(labels)
    if bool(broken.any()):
        raise UserError(
            "margins are not finite",
            received=f"{int(broken.sum())} of {int(is_labelled(labels).sum())} margins",
            expected="a score for both clips of every labelled pair",
            remedy="drop the unscored pairs and report how many they were",
        )
