"""Losses of reward heads on preference pairs.

Every loss takes the outputs for both clips of each pair and labels (``preference_labels``), treats
A and B alike, and leaves out what its model cannot explain: unlabelled entries, and ties where the
model has no tie.

Reductions. ``mean`` divides by the number of entries that were used. ``legacy`` divides by the
number of all entries, as the public VideoAlign trainer does: data that label one of three
dimensions then train at a third of the learning rate. ``sum`` is for a caller that divides by a
count of its own, for example over all micro-batches of a step; ``none`` keeps the entries, zero
where left out.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.rewards.preference_labels import TIE, check_labels, is_decided, is_labelled
from longtake.runtime.errors import UserError

Reduction = Literal["mean", "legacy", "sum", "none"]
Expectation = Literal["monte_carlo", "quadrature"]

TIE_FACTOR = 5.0
"""k of Bradley-Terry with ties in VideoAlign: at equal scores 2 of 3 pairs tie."""
NUM_DRAWS = 1000
"""Draws per pair of HPSv3's loss."""

_QUADRATURE_REACH = 9.0  # standard deviations; the mass beyond is 2e-19
_QUADRATURE_POINTS = 513


def uncertainty_ranking_loss(
    output_a: Tensor,
    output_b: Tensor,
    labels: Tensor,
    *,
    expectation: Expectation = "monte_carlo",
    num_draws: int = NUM_DRAWS,
    generator: torch.Generator | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Uncertainty-aware ranking loss of HPSv3 (arXiv 2508.03789).

    The score of a clip is a normal variable with mean mu and standard deviation exp(raw), so the
    difference z of winner and loser is normal with mean mu_w - mu_l and variance
    s_w^2 + s_l^2. The loss is E[-log sigmoid(z)].

    Args:
        output_a: [..., 2] head outputs (mu, raw) of the clips A.
        output_b: [..., 2] head outputs of the clips B.
        labels: [...] labels; ties and unlabelled entries are left out.
        expectation: ``monte_carlo`` draws z = mean + deviation * eps as HPSv3 does;
            ``quadrature`` integrates (trapezoidal rule over +-9 standard deviations), without noise
            and with an error below 1e-6 up to a deviation of 30.
        num_draws: draws per pair of ``monte_carlo``.
        generator: source of eps for ``monte_carlo``; required there.
        reduction: see the module.

    Returns:
        A scalar, or [...] for ``none``; float32 or wider.

    Raises:
        UserError: Monte Carlo without a generator, unknown names, or no decided pair for ``mean``.
    """
    check_labels(labels)
    decided = is_decided(labels)
    # Left-out outputs are replaced before the maths: 0 times an infinite gradient would be NaN.
    mean_a, raw_a = torch.where(decided.unsqueeze(-1), _wide(output_a), 0).unbind(-1)
    mean_b, raw_b = torch.where(decided.unsqueeze(-1), _wide(output_b), 0).unbind(-1)
    mean = labels * (mean_a - mean_b)
    deviation = torch.hypot(raw_a.exp(), raw_b.exp())
    if expectation == "monte_carlo":
        if generator is None:
            raise UserError(
                "Monte-Carlo loss without a source of randomness",
                expected="generator=..., a torch.Generator",
                remedy='pass one from runtime.rng.generator, or expectation="quadrature"',
            )
        shape = (num_draws, *mean.shape)
        eps = torch.randn(shape, generator=generator, device=generator.device).to(mean)
        entries = -F.logsigmoid(mean + deviation * eps).mean(0)
    elif expectation == "quadrature":
        entries = _expected_softplus(-mean, deviation)
    else:
        raise UserError(
            "expectation is unknown", received=expectation, expected="monte_carlo or quadrature"
        )
    return _reduce(entries, decided, reduction)


def bradley_terry_loss(
    score_a: Tensor, score_b: Tensor, labels: Tensor, *, reduction: Reduction = "mean"
) -> Tensor:
    """Bradley-Terry loss: P(A beats B) = sigmoid(r_A - r_B).

    Args:
        score_a: [...] scores of the clips A.
        score_b: [...] scores of the clips B.
        labels: [...] labels; the model has no ties, so ties are left out too.
        reduction: see the module.

    Returns:
        A scalar, or [...] for ``none``.

    Raises:
        UserError: unknown reduction, or no decided pair for ``mean``.
    """
    check_labels(labels)
    decided = is_decided(labels)
    margin = torch.where(decided, labels * (_wide(score_a) - _wide(score_b)), 0)
    return _reduce(-F.logsigmoid(margin), decided, reduction)


def tie_log_probabilities(margin: Tensor, tie_factor: float = TIE_FACTOR) -> Tensor:
    """Log-probabilities of the three labels (Rao and Kupper, 1967).

    With margin d = r_A - r_B and k = ``tie_factor``: P(A) = e^d / (e^d + k),
    P(B) = 1 / (1 + k e^d) and P(same) = (k^2 - 1) P(A) P(B). They sum to 1.

    Args:
        margin: [...].
        tie_factor: k > 1; k = 1 is Bradley-Terry.

    Returns:
        [..., 3] in the order A, same, B.

    Raises:
        UserError: k is not above 1.
    """
    if not tie_factor > 1:
        raise UserError(
            "tie factor cannot be used",
            received=tie_factor,
            expected="a number above 1",
            remedy="use bradley_terry_loss for a model without ties",
        )
    log_k = math.log(tie_factor)
    log_a = F.logsigmoid(margin - log_k)
    log_b = F.logsigmoid(-margin - log_k)
    log_tie = log_a + log_b + math.log(tie_factor**2 - 1)
    return torch.stack([log_a, log_tie, log_b], dim=-1)


def bradley_terry_ties_loss(
    score_a: Tensor,
    score_b: Tensor,
    labels: Tensor,
    *,
    tie_factor: float = TIE_FACTOR,
    reduction: Reduction = "mean",
) -> Tensor:
    """Bradley-Terry loss with ties (VideoAlign, arXiv 2501.13918): -log P(label).

    Args:
        score_a: [...] scores of the clips A; the last axis may hold several dimensions.
        score_b: [...] scores of the clips B.
        labels: [...] labels; unlabelled entries are left out.
        tie_factor: k > 1 (:func:`tie_log_probabilities`).
        reduction: see the module.

    Returns:
        A scalar, or [...] for ``none``.

    Raises:
        UserError: unknown reduction, k not above 1, or no labelled entry for ``mean``.
    """
    check_labels(labels)
    labelled = is_labelled(labels)
    margin = torch.where(labelled, _wide(score_a) - _wide(score_b), 0)
    log_p = tie_log_probabilities(margin, tie_factor)
    column = 1 - torch.where(labelled, labels, TIE)  # A, same, B -> 0, 1, 2
    entries = -log_p.gather(-1, column.long().unsqueeze(-1)).squeeze(-1)
    return _reduce(entries, labelled, reduction)


def _expected_softplus(mean: Tensor, deviation: Tensor) -> Tensor:
    """E[log(1 + e^x)] of x ~ N(mean, deviation^2), elementwise.

    The trapezoidal rule converges geometrically for a Gaussian times a function that is analytic in
    a strip; Gauss-Hermite rules need far more nodes once the deviation exceeds a few units.
    """
    x = torch.linspace(
        -_QUADRATURE_REACH,
        _QUADRATURE_REACH,
        _QUADRATURE_POINTS,
        dtype=torch.float64,
        device=mean.device,
    )
    weight = torch.exp(-0.5 * x * x)
    weight, x = (weight / weight.sum()).to(mean.dtype), x.to(mean.dtype)
    return (F.softplus(mean.unsqueeze(-1) + deviation.unsqueeze(-1) * x) * weight).sum(-1)


def _reduce(entries: Tensor, used: Tensor, reduction: Reduction) -> Tensor:
    entries = torch.where(used, entries, 0)
    if reduction == "none":
        return entries
    if reduction == "sum":
        return entries.sum()
    if reduction == "legacy":
        return entries.mean()
    if reduction != "mean":
        raise UserError(
            "reduction is unknown", received=reduction, expected="mean, legacy, sum or none"
        )
    count = int(used.sum())
    if count == 0:
        raise UserError(
            "no pair of the batch has a label that the loss can use",
            received=f"{used.numel()} entries",
            expected="at least one",
            remedy="leave pairs without a label for the trained dimension out of the data",
        )
    return entries.sum() / count


def _wide(values: Tensor) -> Tensor:
    """At least float32: log-sigmoids of bfloat16 margins lose the small gradients."""
    return values if values.dtype == torch.float64 else values.to(torch.float32)
