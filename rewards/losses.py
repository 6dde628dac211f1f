"""Losses of reward heads, and how often scores judge pairs like the annotators.

Every pair loss takes the outputs for both clips and labels (``pairs``), treats A and B alike, and
returns one entry per label, 0 where its model explains nothing: unlabelled entries, and ties where
the model has no tie. Whoever trains divides their sum by the number of labelled entries of the
whole update. Dividing by the number of all entries, as the public VideoAlign trainer does, trains
data that label one of three dimensions at a third of the learning rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.rewards.pairs import A_WINS, B_WINS, TIE, UNLABELLED
from longtake.rewards.train_config import LossKind

TIE_FACTOR, NUM_DRAWS = 5.0, 1000
"""k of Bradley-Terry with ties in VideoAlign (at equal scores 2 of 3 pairs tie); draws per pair of
HPSv3's loss."""

_QUADRATURE_REACH = 9.0  # standard deviations; the mass beyond is 2e-19
_QUADRATURE_POINTS = 513


def is_decided(labels: Tensor) -> Tensor:
    """Where one side won."""
    return (labels == A_WINS) | (labels == B_WINS)


def is_labelled(labels: Tensor) -> Tensor:
    """Where there is a judgement, a tie included."""
    return labels != UNLABELLED


def bradley_terry_loss(score_a: Tensor, score_b: Tensor, labels: Tensor) -> Tensor:
    """-log P(the winner wins) with P(A beats B) = sigmoid(r_A - r_B); all arguments [...]."""
    decided = is_decided(labels)
    margin = torch.where(decided, labels * (_wide(score_a) - _wide(score_b)), 0)
    return torch.where(decided, -F.logsigmoid(margin), 0)


def bradley_terry_ties_loss(
    score_a: Tensor, score_b: Tensor, labels: Tensor, tie_factor: float = TIE_FACTOR
) -> Tensor:
    """-log P(label) of Bradley-Terry with ties (VideoAlign, arXiv 2501.13918); all [...]."""
    labelled = is_labelled(labels)
    margin = torch.where(labelled, _wide(score_a) - _wide(score_b), 0)
    log_p = tie_log_probabilities(margin, tie_factor)
    column = 1 - torch.where(labelled, labels, TIE)  # A, same, B -> 0, 1, 2
    entries = -log_p.gather(-1, column.long().unsqueeze(-1)).squeeze(-1)
    return torch.where(labelled, entries, 0)


def tie_log_probabilities(margin: Tensor, tie_factor: float = TIE_FACTOR) -> Tensor:
    """Log-probabilities [..., 3] of A, same, B at margins [...] (Rao and Kupper, 1967).

    With margin d = r_A - r_B and k > 1: P(A) = e^d / (e^d + k), P(B) = 1 / (1 + k e^d) and
    P(same) = (k^2 - 1) P(A) P(B). They sum to 1.
    """
    log_k = math.log(tie_factor)
    log_a = F.logsigmoid(margin - log_k)
    log_b = F.logsigmoid(-margin - log_k)
    log_tie = log_a + log_b + math.log(tie_factor**2 - 1)
    return torch.stack([log_a, log_tie, log_b], dim=-1)


def uncertainty_ranking_loss(
    output_a: Tensor,
    output_b: Tensor,
    labels: Tensor,
    noise: torch.Generator | None,
    num_draws: int = NUM_DRAWS,
) -> Tensor:
    """Uncertainty-aware ranking loss of HPSv3 (arXiv 2508.03789), [...].

    The score of a clip is a normal variable with mean mu and standard deviation exp(raw), so the
    difference z of winner and loser is normal with mean mu_w - mu_l and variance s_w^2 + s_l^2. The
    loss is E[-log sigmoid(z)]. Outputs are [..., 2]: (mu, raw). With ``noise`` the mean is over
    draws, as HPSv3 does; without, it is integrated (error below 1e-6 up to a deviation of 30).
    """
    decided = is_decided(labels)
    # Left-out outputs are replaced before the maths: 0 times an infinite gradient would be NaN.
    mean_a, raw_a = torch.where(decided.unsqueeze(-1), _wide(output_a), 0).unbind(-1)
    mean_b, raw_b = torch.where(decided.unsqueeze(-1), _wide(output_b), 0).unbind(-1)
    mean = labels * (mean_a - mean_b)
    deviation = torch.hypot(raw_a.exp(), raw_b.exp())
    if noise is None:
        entries = _expected_softplus(-mean, deviation)
    else:
        shape = (num_draws, *mean.shape)
        eps = torch.randn(shape, generator=noise, device=noise.device).to(mean)
        entries = -F.logsigmoid(mean + deviation * eps).mean(0)
    return torch.where(decided, entries, 0)


def _expected_softplus(mean: Tensor, deviation: Tensor) -> Tensor:
    """E[log(1 + e^x)] of x ~ N(mean, deviation^2), elementwise.

    The trapezoidal rule converges geometrically for a Gaussian times a function that is analytic in
    a strip; Gauss-Hermite rules need far more nodes once the deviation exceeds a few units.
    """
    reach, points = _QUADRATURE_REACH, _QUADRATURE_POINTS
    x = torch.linspace(-reach, reach, points, dtype=torch.float64, device=mean.device)
    weight = torch.exp(-0.5 * x * x)
    weight, x = (weight / weight.sum()).to(mean.dtype), x.to(mean.dtype)
    return (F.softplus(mean.unsqueeze(-1) + deviation.unsqueeze(-1) * x) * weight).sum(-1)


def rating_loss(scores: Tensor, ratings: Tensor, counts: Tensor) -> Tensor:
    """Squared errors, each weighted by its number of ratings; all [...], 0 ratings: 0.

    The variance of a mean of k ratings is 1 / k of that of one, so the sum is, up to a constant,
    the likelihood of the ratings under Gaussian noise.
    """
    return counts * (_wide(scores) - ratings) ** 2


def _wide(values: Tensor) -> Tensor:
    """At least float32: log-sigmoids of bfloat16 margins lose the small gradients."""
    return values if values.dtype == torch.float64 else values.to(torch.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairAccuracy:
    """Share of pairs that the scores judge like the annotators; NaN of none.

    Margins up to ``threshold`` were taken as ties; None when no margin was.
    """

    value: float
    correct: int
    count: int
    threshold: float | None = None


def accuracy_without_ties(margins: Tensor, labels: Tensor) -> PairAccuracy:
    """Share of decided pairs [N] whose margin, score of A minus that of B, has the label's sign.

    A margin of exactly 0 picks no winner and is wrong.
    """
    decided = is_decided(labels)
    assert margins[decided].isfinite().all()
    agree = int((margins[decided].sign() == labels[decided]).sum())
    return _accuracy(agree, int(decided.sum()))


def accuracy_with_ties(margins: Tensor, labels: Tensor) -> PairAccuracy:
    """Accuracy with tie calibration (Deutsch et al. 2023, arXiv 2305.14324); arguments [N].

    Margins up to a threshold count as predicted ties; the smallest threshold with the best share of
    right predictions (A, B or tie) is chosen on the same pairs. Candidates are "no tie at all",
    which the public VideoAlign script never tries, and every size of a margin.
    """
    labelled = is_labelled(labels)
    assert margins[labelled].isfinite().all()
    margin = margins[labelled].double().cpu().numpy()
    label = labels[labelled].cpu().numpy()
    if len(label) == 0:
        return _accuracy(0, 0)
    size = np.abs(margin)
    order = np.argsort(size, kind="stable")
    size, right = size[order], (np.sign(margin) == label)[order] & (label != TIE)[order]
    tied = (label == TIE)[order]
    # correct[i]: the i smallest margins are predicted ties, the others by their sign.
    correct = np.concatenate([[0], np.cumsum(tied)]) + right.sum()
    correct -= np.concatenate([[0], np.cumsum(right)])
    # Only where the size changes, and the ends.
    candidates = np.flatnonzero(np.concatenate([[True], size[1:] != size[:-1], [True]]))
    best = int(candidates[np.argmax(correct[candidates])])
    threshold = float(size[best - 1]) if best else None
    return _accuracy(int(correct[best]), len(label), threshold)


def _accuracy(correct: int, count: int, threshold: float | None = None) -> PairAccuracy:
    value = correct / count if count else math.nan
    return PairAccuracy(value=value, correct=correct, count=count, threshold=threshold)


@dataclass(frozen=True, kw_only=True)
class PairLoss:
    """The loss of a training on pairs, with its constants; ``loss(outputs, labels, noise)``."""

    kind: LossKind
    tie_factor: float = TIE_FACTOR
    num_draws: int = NUM_DRAWS

    def __call__(
        self, outputs: Tensor, labels: Tensor, noise: torch.Generator | None = None
    ) -> Tensor:
        """Entries [B, n] of head outputs [B, 2, K] of A and B under labels [B, n]."""
        if self.kind == "uncertainty":
            a, b = outputs.unbind(1)
            entries = uncertainty_ranking_loss(a, b, labels.squeeze(-1), noise, self.num_draws)
            return entries.unsqueeze(-1)
        a, b = scores_of(outputs, labels.shape[-1]).unbind(1)
        if self.kind == "bradley_terry":
            return bradley_terry_loss(a, b, labels)
        return bradley_terry_ties_loss(a, b, labels, self.tie_factor)


def scores_of(outputs: Tensor, num_dimensions: int) -> Tensor:
    """Scores [..., n] in head outputs [..., K]: a ranknet's second output is its uncertainty."""
    return outputs[..., :num_dimensions]


def pair_metrics(
    outputs: Tensor, labels: Tensor, pairs: Tensor, dimensions: Sequence[str], loss: PairLoss
) -> dict[str, float]:
    """Validation loss and accuracies of head outputs [N, 2, K] under labels [N, n].

    A pair of clips appears once per frame of an image reward: ``pairs`` [N] numbers them, and rows
    of one pair are averaged for the accuracy. The threshold of ties is NaN when none was predicted.
    """
    metrics = {"loss": float(loss(outputs, labels).sum() / is_labelled(labels).sum())}
    scores = scores_of(outputs, labels.shape[-1]).double()
    _, group, rows = pairs.unique(return_inverse=True, return_counts=True)
    count = len(rows)
    margins = torch.zeros(count, labels.shape[-1], dtype=torch.float64)
    margins = margins.index_add_(0, group, scores[:, 0] - scores[:, 1]) / rows[:, None]
    pair_labels = torch.full((count, labels.shape[-1]), UNLABELLED)
    pair_labels[group] = labels
    for column, name in enumerate(dimensions):
        plain = accuracy_without_ties(margins[:, column], pair_labels[:, column])
        ties = accuracy_with_ties(margins[:, column], pair_labels[:, column])
        metrics[f"{name}_accuracy"] = plain.value
        metrics[f"{name}_accuracy_ties"] = ties.value
        metrics[f"{name}_tie_threshold"] = math.nan if ties.threshold is None else ties.threshold
    return metrics
