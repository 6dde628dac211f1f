"""Losses against float64 integration and the models' definitions; accuracies by brute force."""

import math

import pytest
import torch
from scipy import integrate

from longtake.rewards.losses import (
    PairLoss,
    accuracy_with_ties,
    accuracy_without_ties,
    bradley_terry_loss,
    bradley_terry_ties_loss,
    pair_metrics,
    rating_loss,
    tie_log_probabilities,
    uncertainty_ranking_loss,
)
from longtake.rewards.pairs import A_WINS, B_WINS, TIE, UNLABELLED


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def outputs(seed, n=6, scale=1.0):
    a, b = scale * torch.randn(2, n, 2, dtype=torch.float64, generator=generator(seed))
    return a, b


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def integrated(winner, loser):
    """The expected loss of one pair, by adaptive integration over z."""
    mean = winner[0] - loser[0]
    variance = math.exp(2 * winner[1]) + math.exp(2 * loser[1])
    deviation = math.sqrt(variance)

    def integrand(z):
        density = math.exp(-0.5 * (z - mean) ** 2 / variance) / math.sqrt(2 * math.pi * variance)
        return softplus(-z) * density

    low, high = mean - 12 * deviation, mean + 12 * deviation
    points = [p for p in (mean, 0.0) if low < p < high]
    return integrate.quad(integrand, low, high, points=points, limit=400, epsabs=1e-12)[0]


@pytest.mark.parametrize(("seed", "scale"), [(0, 0.5), (1, 2.0)])
def test_quadrature_is_the_integral(seed, scale):
    a, b = outputs(seed, scale=scale)
    for side in (a, b):  # the documented range; the first pair is at its end
        side[:, 1].clamp_(max=math.log(20))
        side[0, 1] = math.log(21.2)
    labels = torch.tensor([A_WINS, B_WINS] * 3)
    found = uncertainty_ranking_loss(a, b, labels, None)
    for i, label in enumerate(labels.tolist()):
        pair = (a[i].tolist(), b[i].tolist())
        wanted = integrated(*(pair if label == A_WINS else pair[::-1]))
        assert found[i].item() == pytest.approx(wanted, abs=1e-6)


def test_monte_carlo_converges_to_the_quadrature():
    a, b = outputs(0)
    labels = torch.tensor([A_WINS, B_WINS, A_WINS] * 2)
    draws = 200_000
    exact = uncertainty_ranking_loss(a, b, labels, None)
    found = uncertainty_ranking_loss(a, b, labels, generator(), draws)
    # -log sigmoid is 1-Lipschitz: its deviation is at most the one of z.
    deviation = torch.hypot(a[:, 1].exp(), b[:, 1].exp())
    assert ((found - exact).abs() < 5 * deviation / math.sqrt(draws)).all()
    assert ((found - exact).abs() > 0).any()


def test_monte_carlo_gradients_converge_too():
    a, b = outputs(5)
    labels = torch.tensor([A_WINS, B_WINS] * 3)
    gradients = []
    for noise in (generator(1), None):
        leaf_a, leaf_b = a.clone().requires_grad_(), b.clone().requires_grad_()
        loss = uncertainty_ranking_loss(leaf_a, leaf_b, labels, noise, 100_000).mean()
        gradients.append(torch.cat(torch.autograd.grad(loss, (leaf_a, leaf_b))))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=5e-3)
    assert gradients[1].abs().min() > 0  # mean and deviation of both clips are trained


def test_bradley_terry_is_the_log_of_the_odds_ratio():
    a, b = torch.randn(2, 40, dtype=torch.float64, generator=generator(0))
    labels = torch.tensor([A_WINS, B_WINS, TIE, UNLABELLED] * 10)
    found = bradley_terry_loss(a, b, labels)
    strength_a, strength_b = a.exp(), b.exp()
    p_a = strength_a / (strength_a + strength_b)
    wanted = torch.zeros(40, dtype=torch.float64)
    wanted[0::4], wanted[1::4] = -p_a[0::4].log(), -(1 - p_a[1::4]).log()
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("k", [1.01, 5.0, 40.0])
def test_tie_model_is_rao_kupper(k):
    a, b = 3 * torch.randn(2, 200, dtype=torch.float64, generator=generator(7))
    p = tie_log_probabilities(a - b, k).exp()
    strength_a, strength_b = a.exp(), b.exp()
    torch.testing.assert_close(p[:, 0], strength_a / (strength_a + k * strength_b))
    torch.testing.assert_close(p[:, 2], strength_b / (strength_b + k * strength_a))
    torch.testing.assert_close(p[:, 1], 1 - p[:, 0] - p[:, 2])
    torch.testing.assert_close(p.sum(-1), torch.ones(200, dtype=torch.float64))


def test_tie_loss_picks_the_probability_of_the_label():
    a, b = torch.randn(2, 9, dtype=torch.float64, generator=generator(3))
    labels = torch.tensor([A_WINS, TIE, B_WINS] * 3)
    found = bradley_terry_ties_loss(a, b, labels)
    log_p = tie_log_probabilities(a - b)
    wanted = [-log_p[i, {A_WINS: 0, TIE: 1, B_WINS: 2}[x]] for i, x in enumerate(labels.tolist())]
    torch.testing.assert_close(found, torch.stack(wanted))


LOSSES = {
    "bradley_terry": bradley_terry_loss,
    "ties": bradley_terry_ties_loss,
    "uncertainty": lambda a, b, labels: uncertainty_ranking_loss(
        torch.stack([a, 0.3 * b], -1), torch.stack([b, 0.3 * a], -1), labels, None
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_swapping_the_clips_changes_nothing_and_unlabelled_entries_are_zero(name):
    a, b = torch.randn(2, 20, generator=generator(12))
    labels = torch.tensor([A_WINS, B_WINS, TIE, UNLABELLED] * 5)
    swapped = torch.where(labels == UNLABELLED, UNLABELLED, -labels)
    loss = LOSSES[name](a, b, labels)
    torch.testing.assert_close(loss, LOSSES[name](b, a, swapped))
    assert loss[3::4].count_nonzero() == 0 and loss[:2].min() > 0
    assert bool(loss[2::4].count_nonzero()) == (name == "ties")


@pytest.mark.parametrize("name", LOSSES)
def test_left_out_entries_have_no_gradient_even_when_broken(name):
    a, b = torch.randn(2, 3, generator=generator(13))
    a[2] = math.nan
    b[2] = 1e30
    a.requires_grad_()
    labels = torch.tensor([A_WINS, B_WINS, UNLABELLED])
    (gradient,) = torch.autograd.grad(LOSSES[name](a, b, labels).sum(), a)
    assert gradient[2] == 0 and gradient[:2].abs().min() > 0


def test_half_precision_scores_are_widened():
    a, b = torch.randn(2, 4, generator=generator(15)).bfloat16()
    labels = torch.tensor([A_WINS] * 4)
    loss = bradley_terry_ties_loss(a, b, labels)
    assert loss.dtype == torch.float32
    exact = bradley_terry_ties_loss(a.double(), b.double(), labels)
    torch.testing.assert_close(loss, exact.float())


def test_ratings_are_weighted_by_their_number():
    scores = torch.tensor([[1.0, 5.0], [2.0, 0.0]], dtype=torch.float64)
    single = [[[0.5, 1.5, 2.5], [4.0]], [[1.0], []]]  # what each rater said
    means = torch.tensor([[sum(x) / len(x) if x else 9.0 for x in row] for row in single])
    counts = torch.tensor([[len(x) for x in row] for row in single])
    by_rater = sum(
        (scores[i, j].item() - rating) ** 2 - (means[i, j].item() - rating) ** 2
        for i, row in enumerate(single)
        for j, ratings in enumerate(row)
        for rating in ratings
    )
    assert rating_loss(scores, means, counts).sum().item() == pytest.approx(by_rater)


def predicted(margin, threshold):
    """The label that a margin stands for; threshold None predicts no ties."""
    if threshold is not None and abs(margin) <= threshold:
        return TIE
    return None if margin == 0 else math.copysign(1, margin)


def brute_force(margins, labels):
    """Most right predictions over all thresholds, and the smallest threshold with them."""
    pairs = [(m, x) for m, x in zip(margins, labels, strict=True) if x != UNLABELLED]
    best = (-1, None)
    for threshold in [None, *sorted({abs(m) for m, _ in pairs})]:
        correct = sum(predicted(m, threshold) == x for m, x in pairs)
        if correct > best[0]:
            best = (correct, threshold)
    return best


def random_pairs(seed, n):
    """Margins with many equal sizes, some zeros, and all kinds of labels."""
    rng = generator(seed)
    margins = torch.randint(-5, 6, (n,), generator=rng) / 4
    noisy = torch.tensor([A_WINS, B_WINS, TIE, UNLABELLED])[torch.randint(4, (n,), generator=rng)]
    keep = torch.rand(n, generator=rng) < 0.5
    return margins, torch.where(keep, margins.sign().long(), noisy)


@pytest.mark.parametrize("n", [1, 7, 40])
def test_accuracies_are_those_of_brute_force(n):
    for seed in range(12):
        margins, labels = random_pairs(seed, n)
        found = accuracy_with_ties(margins, labels)
        if found.count:
            assert (found.correct, found.threshold) == brute_force(
                margins.tolist(), labels.tolist()
            )
        assert found.count == int((labels != UNLABELLED).sum())
        plain = accuracy_without_ties(margins, labels)
        decided = [
            (m, x) for m, x in zip(margins.tolist(), labels.tolist(), strict=True) if x**2 == 1
        ]
        assert plain.count == len(decided)
        assert plain.correct == sum(m * x > 0 for m, x in decided)  # a margin of 0 is wrong
        shuffle = torch.randperm(n, generator=generator(1))
        assert str(accuracy_with_ties(margins[shuffle], labels[shuffle])) == str(found)


def test_nothing_to_judge_is_nan_not_zero():
    for labels in (torch.tensor([UNLABELLED] * 2), torch.tensor([], dtype=torch.long)):
        for measure in (accuracy_with_ties, accuracy_without_ties):
            found = measure(torch.full((len(labels),), math.nan), labels)
            assert math.isnan(found.value) and found.count == 0
    only_ties = torch.tensor([TIE, TIE])
    assert math.isnan(accuracy_without_ties(torch.ones(2), only_ties).value)
    assert accuracy_with_ties(torch.ones(2), only_ties).value == 1


def test_rows_of_a_pair_are_averaged_for_the_accuracy():
    outputs = torch.tensor([[3.0, 0], [0, 1], [0, 1], [0, 5]])[..., None]  # frames say A, B, B
    labels = torch.tensor([[A_WINS]] * 3 + [[B_WINS]])
    metrics = pair_metrics(
        outputs, labels, torch.tensor([7, 7, 7, 9]), ["MQ"], PairLoss(kind="bradley_terry")
    )
    assert metrics["MQ_accuracy"] == 1
    by_hand = [math.log1p(math.exp(-x)) for x in (3, -1, -1, 5)]
    assert metrics["loss"] == pytest.approx(sum(by_hand) / 4)
