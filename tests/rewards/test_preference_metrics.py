"""Pair accuracies against brute force over every threshold."""

import math

import pytest
import torch

from longtake.rewards.preference_labels import A_WINS, B_WINS, TIE, UNLABELLED
from longtake.rewards.preference_metrics import accuracy_with_ties, accuracy_without_ties
from longtake.runtime.errors import UserError


def predicted(margin, threshold):
    """The label that a margin stands for; threshold None predicts no ties."""
    if threshold is not None and abs(margin) <= threshold:
        return TIE
    return None if margin == 0 else math.copysign(1, margin)


def brute_force(margins, labels):
    """Best share over all thresholds, tried one by one, and the smallest threshold with it."""
    pairs = [(m, x) for m, x in zip(margins, labels, strict=True) if x != UNLABELLED]
    best = (-1, None)
    for threshold in [None, *sorted({abs(m) for m, _ in pairs})]:
        correct = sum(predicted(m, threshold) == x for m, x in pairs)
        if correct > best[0]:
            best = (correct, threshold)
    return best[0] / len(pairs), best[1]


def brute_force_legacy(margins, labels):
    """The public sweep: pairs in order of size become ties one at a time, from the first on."""
    pairs = sorted(zip(margins, labels, strict=True), key=lambda pair: abs(pair[0]))
    shares = []
    for tied in range(1, len(pairs) + 1):
        correct = sum(label == TIE for _, label in pairs[:tied])
        correct += sum(m * label > 0 for m, label in pairs[tied:])
        shares.append(correct / len(pairs))
    return max(shares)


def random_pairs(seed, n, levels, unlabelled=True):
    """Margins with many equal sizes, some zeros, and all kinds of labels."""
    rng = torch.Generator().manual_seed(seed)
    margins = torch.randint(-levels, levels + 1, (n,), generator=rng) / 4
    kinds = torch.tensor([A_WINS, B_WINS, TIE, UNLABELLED] if unlabelled else [1, -1, 0])
    noisy = kinds[torch.randint(len(kinds), (n,), generator=rng)]
    truth = margins.sign().long()
    keep = torch.rand(n, generator=rng) < 0.5
    return margins, torch.where(keep, truth, noisy)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_tie_calibration_is_the_best_of_all_thresholds(seed, n):
    margins, labels = random_pairs(seed, n, levels=6)
    if (labels == UNLABELLED).all():
        labels[0] = A_WINS
    found = accuracy_with_ties(margins, labels)
    wanted, threshold = brute_force(margins.tolist(), labels.tolist())
    assert found.value == pytest.approx(wanted)
    assert found.threshold == threshold
    assert found.count == int((labels != UNLABELLED).sum())
    assert found.correct == round(wanted * found.count)


@pytest.mark.parametrize("seed", range(12))
def test_legacy_is_the_public_sweep(seed):
    margins, labels = random_pairs(seed, 25, levels=5, unlabelled=False)
    found = accuracy_with_ties(margins, labels, legacy=True)
    assert found.value == pytest.approx(brute_force_legacy(margins.tolist(), labels.tolist()))


@pytest.mark.parametrize("n", [2, 4, 100])
def test_perfect_scores_of_untied_pairs(n):
    labels = torch.tensor([A_WINS, B_WINS] * (n // 2))
    margins = labels * torch.linspace(0.1, 2, n)
    assert accuracy_with_ties(margins, labels).value == 1
    assert accuracy_with_ties(margins, labels).threshold is None
    assert accuracy_with_ties(margins, labels, legacy=True).value == pytest.approx((n - 1) / n)
    assert accuracy_without_ties(margins, labels).value == 1


def test_equal_margins_become_ties_together():
    # One by one, the tie would be right while its equals stay untied: 3 of 3. No threshold does it.
    margins = torch.tensor([1.0, 1.0, 1.0])
    labels = torch.tensor([TIE, A_WINS, A_WINS])
    assert accuracy_with_ties(margins, labels).value == pytest.approx(2 / 3)
    assert accuracy_with_ties(margins, labels, legacy=True).value == 1


def test_order_of_the_pairs_does_not_matter():
    margins, labels = random_pairs(3, 60, levels=4)
    shuffle = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert accuracy_with_ties(margins, labels) == accuracy_with_ties(
        margins[shuffle], labels[shuffle]
    )


@pytest.mark.parametrize("seed", range(5))
def test_without_ties_counts_decided_pairs_only(seed):
    margins, labels = random_pairs(seed, 50, levels=3)
    decided = [
        (m, x) for m, x in zip(margins.tolist(), labels.tolist(), strict=True) if x in (1, -1)
    ]
    found = accuracy_without_ties(margins, labels)
    assert found.count == len(decided)
    assert found.correct == sum(m * x > 0 for m, x in decided)
    assert found.value == pytest.approx(found.correct / found.count)


def test_a_margin_of_zero_is_no_winner():
    found = accuracy_without_ties(torch.zeros(3), torch.tensor([A_WINS, B_WINS, TIE]))
    assert (found.correct, found.count) == (0, 2)


def test_nothing_to_judge_is_nan_not_zero():
    for labels in (torch.tensor([UNLABELLED] * 2), torch.tensor([], dtype=torch.long)):
        for measure in (accuracy_with_ties, accuracy_without_ties):
            found = measure(torch.ones(len(labels)), labels)
            assert math.isnan(found.value) and found.count == 0
    only_ties = accuracy_without_ties(torch.ones(2), torch.tensor([TIE, TIE]))
    assert math.isnan(only_ties.value)
    assert accuracy_with_ties(torch.ones(2), torch.tensor([TIE, TIE])).value == 1


def test_wrong_input_is_refused():
    with pytest.raises(UserError, match="shape"):
        accuracy_with_ties(torch.ones(3), torch.ones(2).long())
    broken = torch.tensor([1.0, math.nan, 2.0])
    with pytest.raises(UserError, match="1 of 3"):
        accuracy_without_ties(broken, torch.tensor([1, 1, -1]))
    unlabelled = torch.tensor([1, UNLABELLED, 1])
    assert accuracy_without_ties(broken, unlabelled).value == 1  # nobody needs that margin
    with pytest.raises(UserError, match="7"):
        accuracy_with_ties(torch.ones(1), torch.tensor([7]))
