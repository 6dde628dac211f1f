"""Share of pairs of videos that a judge orders as the raters do, with and without ties.

Many resamples are counted at once: a resample only changes how much each pair weighs. With weights
of one, the numbers are those of :mod:`longtake.rewards.losses`.
"""

from dataclasses import dataclass

import numpy as np

from longtake.runtime.statistics import FloatArray, IntArray

_VALUES_AT_ONCE = 2_000_000  # weights held in memory


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """P pairs of points."""

    margins: FloatArray
    """[P] score of the judge, first minus second."""
    labels: IntArray
    """[P] 1: the raters put the first higher, -1: the second, 0: equal."""

    @property
    def decided(self) -> int:
        """Pairs that the raters do not call equal."""
        return int((self.labels != 0).sum())


def label_pairs(
    human: FloatArray, judge: FloatArray, first: IntArray, second: IntArray, tie_margin: float
) -> Pairs:
    """Pairs of points with the raters' verdict.

    Args:
        human: [n] mean ratings.
        judge: [n] scores.
        first: [P] indices.
        second: [P] indices.
        tie_margin: mean ratings that differ by at most this are equal, points.
    """
    difference = human[first] - human[second]
    equal = np.abs(difference) <= tie_margin + 1e-9  # thirds and fifths are not exact in binary
    labels = np.where(equal, 0, np.sign(difference)).astype(np.int64)
    return Pairs(margins=judge[first] - judge[second], labels=labels)


def choose_pairs(n: int, max_pairs: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """All pairs of n points, or ``max_pairs`` different ones drawn at random."""
    total = n * (n - 1) // 2
    if total <= max_pairs:
        first, second = np.triu_indices(n, 1)
        return first.astype(np.int64), second.astype(np.int64)
    codes = np.sort(rng.choice(total, size=max_pairs, replace=False))
    # Pair (i, j), i < j, has the code j (j - 1) / 2 + i.
    second = ((1.0 + np.sqrt(1.0 + 8.0 * codes)) / 2.0).astype(np.int64)
    second -= second * (second - 1) // 2 > codes  # the root may be one too high by rounding
    return codes - second * (second - 1) // 2, second


def accuracies(pairs: Pairs, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weighted accuracy without ties, and with calibrated ties (Deutsch et al. 2023).

    Without ties: share of decided pairs whose margin has the sign of the label. With ties: margins
    up to a threshold count as predicted ties, and each row of weights takes the threshold that
    serves it best (arXiv 2305.14324).

    Args:
        pairs: P pairs.
        weights: [B, P], >= 0.

    Returns:
        Two arrays [B]; NaN where no pair has weight.
    """
    plain, calibrated = [], []
    step = max(1, _VALUES_AT_ONCE // max(1, len(pairs.margins)))
    for start in range(0, len(weights), step):
        a, b = _accuracies(pairs, weights[start : start + step])
        plain.append(a)
        calibrated.append(b)
    return np.concatenate(plain), np.concatenate(calibrated)


def _accuracies(pairs: Pairs, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    size = np.abs(pairs.margins)
    order = np.argsort(size, kind="stable")
    size, label, w = size[order], pairs.labels[order], weights[:, order]
    tied = label == 0
    right = (np.sign(pairs.margins[order]) == label) & ~tied
    total, decided = w.sum(axis=1), w[:, ~tied].sum(axis=1)
    plain = _share(w[:, right].sum(axis=1), decided)
    # correct[:, i]: the i smallest margins are predicted ties, the others by their sign.
    gain = np.cumsum(np.where(tied, w, 0.0) - np.where(right, w, 0.0), axis=1)
    correct = w[:, right].sum(axis=1)[:, None] + np.pad(gain, ((0, 0), (1, 0)))
    # Margins of one size become ties together: only where the size changes, and the ends.
    ends = np.flatnonzero(np.concatenate([[True], size[1:] != size[:-1], [True]]))
    if not len(size):
        ends = np.array([0])
    return plain, _share(correct[:, ends].max(axis=1), total)


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)
