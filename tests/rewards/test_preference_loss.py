"""Preference losses against float64 integration, the definition of the models, and brute force."""

import math

import pytest
import torch
from scipy import integrate

from longtake.rewards.preference_labels import A_WINS, B_WINS, TIE, UNLABELLED
from longtake.rewards.preference_loss import (
    bradley_terry_loss,
    bradley_terry_ties_loss,
    tie_log_probabilities,
    uncertainty_ranking_loss,
)
from longtake.runtime.errors import UserError


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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_quadrature_is_the_integral(seed, scale):
    a, b = outputs(seed, scale=scale)
    for side in (a, b):  # the documented range; the first pair is at its end
        side[:, 1].clamp_(max=math.log(20))
        side[0, 1] = math.log(21.2)
    labels = torch.tensor([A_WINS, B_WINS] * 3)
    found = uncertainty_ranking_loss(a, b, labels, expectation="quadrature", reduction="none")
    for i, label in enumerate(labels.tolist()):
        pair = (a[i].tolist(), b[i].tolist())
        wanted = integrated(*(pair if label == A_WINS else pair[::-1]))
        assert found[i].item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_monte_carlo_converges_to_the_quadrature(seed):
    a, b = outputs(seed)
    labels = torch.tensor([A_WINS, B_WINS, A_WINS] * 2)
    draws = 200_000
    exact = uncertainty_ranking_loss(a, b, labels, expectation="quadrature", reduction="none")
    found = uncertainty_ranking_loss(
        a, b, labels, num_draws=draws, generator=generator(seed), reduction="none"
    )
    # -log sigmoid is 1-Lipschitz: its deviation is at most the one of z.
    deviation = torch.hypot(a[:, 1].exp(), b[:, 1].exp())
    assert ((found - exact).abs() < 5 * deviation / math.sqrt(draws)).all()
    assert ((found - exact).abs() > 0).any()


def test_monte_carlo_gradients_converge_too():
    a, b = outputs(5)
    labels = torch.tensor([A_WINS, B_WINS] * 3)
    gradients = []
    for how in ("monte_carlo", "quadrature"):
        leaf_a, leaf_b = a.clone().requires_grad_(), b.clone().requires_grad_()
        loss = uncertainty_ranking_loss(
            leaf_a, leaf_b, labels, expectation=how, num_draws=100_000, generator=generator(1)
        )
        gradients.append(torch.cat(torch.autograd.grad(loss, (leaf_a, leaf_b))))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=5e-3)
    assert gradients[1].abs().min() > 0  # mean and deviation of both clips are trained


def test_seeded_draws_repeat_and_differ():
    a, b = outputs(2)
    labels = torch.full((6,), A_WINS)
    first, again, other = (
        uncertainty_ranking_loss(a, b, labels, generator=generator(s)) for s in (3, 3, 4)
    )
    assert first == again != other
    with pytest.raises(UserError, match="generator"):
        uncertainty_ranking_loss(a, b, labels)


def test_certain_outputs_are_bradley_terry():
    a, b = outputs(1)
    a[:, 1] = b[:, 1] = -30.0
    labels = torch.tensor([A_WINS, B_WINS] * 3)
    plain = bradley_terry_loss(a[:, 0], b[:, 0], labels)
    for how in ("monte_carlo", "quadrature"):
        found = uncertainty_ranking_loss(a, b, labels, expectation=how, generator=generator())
        torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-9)


def test_bradley_terry_is_the_log_of_the_odds_ratio():
    a, b = torch.randn(2, 40, dtype=torch.float64, generator=generator(0))
    labels = torch.tensor([A_WINS, B_WINS, TIE, UNLABELLED] * 10)
    found = bradley_terry_loss(a, b, labels, reduction="none")
    strength_a, strength_b = a.exp(), b.exp()
    p_a = strength_a / (strength_a + strength_b)
    wanted = torch.zeros(40, dtype=torch.float64)
    wanted[0::4], wanted[1::4] = -p_a[0::4].log(), -(1 - p_a[1::4]).log()
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("k", [1.01, 2.0, 5.0, 40.0])
def test_tie_model_is_rao_kupper(k):
    a, b = 3 * torch.randn(2, 200, dtype=torch.float64, generator=generator(7))
    p = tie_log_probabilities(a - b, k).exp()
    strength_a, strength_b = a.exp(), b.exp()
    torch.testing.assert_close(p[:, 0], strength_a / (strength_a + k * strength_b))
    torch.testing.assert_close(p[:, 2], strength_b / (strength_b + k * strength_a))
    torch.testing.assert_close(p[:, 1], 1 - p[:, 0] - p[:, 2])
    torch.testing.assert_close(p.sum(-1), torch.ones(200, dtype=torch.float64))


def test_tie_model_at_equal_scores():
    a_wins, tie, b_wins = tie_log_probabilities(torch.zeros(()), 5.0).exp().tolist()
    assert (a_wins, tie, b_wins) == pytest.approx((1 / 6, 2 / 3, 1 / 6))
    with pytest.raises(UserError, match="above 1"):
        tie_log_probabilities(torch.zeros(()), 1.0)


def test_tie_loss_picks_the_probability_of_the_label():
    a, b = torch.randn(2, 9, dtype=torch.float64, generator=generator(3))
    labels = torch.tensor([A_WINS, TIE, B_WINS] * 3)
    found = bradley_terry_ties_loss(a, b, labels, reduction="none")
    log_p = tie_log_probabilities(a - b)
    wanted = [-log_p[i, {A_WINS: 0, TIE: 1, B_WINS: 2}[x]] for i, x in enumerate(labels.tolist())]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_a_tie_pulls_the_scores_together_and_wins_apart():
    for margin in (-1.5, 2.0):
        a = torch.tensor([margin], dtype=torch.float64, requires_grad=True)
        b = torch.zeros(1, dtype=torch.float64)
        (pull,) = torch.autograd.grad(bradley_terry_ties_loss(a, b, torch.tensor([TIE])), a)
        assert pull.item() * margin > 0  # descent goes towards zero
        (push,) = torch.autograd.grad(bradley_terry_ties_loss(a, b, torch.tensor([A_WINS])), a)
        assert push.item() < 0


LOSSES = {
    "bradley_terry": bradley_terry_loss,
    "ties": bradley_terry_ties_loss,
    "uncertainty": lambda a, b, labels, **kw: uncertainty_ranking_loss(
        torch.stack([a, 0.3 * b], -1),
        torch.stack([b, 0.2 * a], -1),
        labels,
        expectation="quadrature",
        **kw,
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_reductions(name):
    loss = LOSSES[name]
    a, b = torch.randn(2, 8, 3, generator=generator(11))
    labels = torch.full((8, 3), UNLABELLED)
    labels[:, 1] = torch.tensor([A_WINS, B_WINS] * 4)  # one trained dimension of three
    entries = loss(a, b, labels, reduction="none")
    assert entries[:, [0, 2]].count_nonzero() == 0 and entries[:, 1].min() > 0
    alone = loss(a[:, 1], b[:, 1], labels[:, 1])
    torch.testing.assert_close(loss(a, b, labels), alone)
    torch.testing.assert_close(loss(a, b, labels, reduction="legacy"), alone / 3)
    torch.testing.assert_close(loss(a, b, labels, reduction="sum"), alone * 8)


@pytest.mark.parametrize("name", LOSSES)
def test_swapping_the_clips_changes_nothing(name):
    a, b = torch.randn(2, 20, generator=generator(12))
    labels = torch.tensor([A_WINS, B_WINS, TIE, UNLABELLED] * 5)
    swapped = torch.where(labels == UNLABELLED, UNLABELLED, -labels)
    if name == "uncertainty":  # its second output is not symmetric in the stand-in above
        a_out, b_out = torch.stack([a, b], -1), torch.stack([b, a], -1)
        one = uncertainty_ranking_loss(a_out, b_out, labels, expectation="quadrature")
        two = uncertainty_ranking_loss(b_out, a_out, swapped, expectation="quadrature")
    else:
        one, two = LOSSES[name](a, b, labels), LOSSES[name](b, a, swapped)
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("name", LOSSES)
def test_left_out_entries_have_no_gradient_even_when_broken(name):
    a, b = torch.randn(2, 3, generator=generator(13))
    a[2] = math.nan
    b[2] = 1e30
    a.requires_grad_()
    labels = torch.tensor([A_WINS, B_WINS, UNLABELLED])
    (gradient,) = torch.autograd.grad(LOSSES[name](a, b, labels), a)
    assert gradient[2] == 0 and gradient[:2].abs().min() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_wrong_input_is_refused(name):
    a, b = torch.randn(2, 2, generator=generator(14))
    with pytest.raises(UserError, match="no pair"):
        LOSSES[name](a, b, torch.full((2,), UNLABELLED))
    with pytest.raises(UserError, match="22"):
        LOSSES[name](a, b, torch.tensor([1, 22]))
    with pytest.raises(UserError, match="legacy"):
        LOSSES[name](a, b, torch.tensor([1, 1]), reduction="median")


def test_half_precision_scores_are_widened():
    a, b = torch.randn(2, 4, generator=generator(15)).bfloat16()
    loss = bradley_terry_ties_loss(a, b, torch.tensor([A_WINS] * 4))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, bradley_terry_ties_loss(a.double(), b.double(), torch.tensor([A_WINS] * 4)).float()
    )
