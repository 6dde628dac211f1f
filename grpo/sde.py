"""One stochastic step of the flow SDE and its closed-form likelihood (Eq. 23-25, 3.3.1, A.1.2).

Sign convention (everywhere in this repository, owned by ``core/flow.py``): t=0 is clean, t=1 is
noise, v = x0 - eps, dt > 0. In it the step reads::

    mu   = x + [v + sigma^2/(2t) * (-x + (1-t) v)] * dt            x' = mu + s * eps
    s    = sigma * sqrt(dt)
    c    = sqrt(dt) * (1/sigma + sigma (1-t) / (2t))               d mu / d v = s * c
    grad_v log p = +c eps                                          on-policy, summed over dims
    log r        = +c <eps, dv> - c^2/2 |dv|^2                     dv = v_theta - v_old
    KL           = c^2/2 |v_theta - v_ref|^2                       equals Eq. 25

Appendix A.1 of the report writes the same step for v = eps - x0; it is this one with v negated.
``c`` holds for every sigma, so truncated and constant noise need no formula of their own.

The log-ratio and the KL come from (eps, dv, c), never from the difference of two log densities:
nothing cancels, and at dv = 0 the ratio is exactly 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.core.flow import euler_step, predict_noise
from longtake.runtime.errors import UserError

NOISE_KINDS = ("flow", "flow_truncated", "constant")
REWEIGHT_MODES = ("exact", "sigma", "paper", "none")
REDUCTIONS = ("mean", "sum")

# On-policy gradient coefficients that the reweighted losses aim at (Eq. 38 and Eq. 42).
POLICY_COEFFICIENT = 3 / 2
KL_COEFFICIENT = 9 / 4


@dataclass(frozen=True, slots=True)
class StepCoefficients:
    """Every scalar of the stochastic step at one index of a sigma schedule."""

    index: int
    """Position in the schedule; 0 is the noisiest step."""
    t: float
    """Time before the step, in (0, 1]."""
    dt: float
    """Step size t_i - t_{i+1} > 0."""
    sigma: float
    """Effective (clipped) noise scale, used in the drift and in the diffusion."""
    std: float
    """Standard deviation of the step, sigma * sqrt(dt)."""
    c: float
    """d log p / d v per unit of eps."""
    lambda_policy: float
    """Weight of the policy loss (Eq. 7)."""
    lambda_kl: float
    """Weight of the KL loss (Eq. 8)."""


def _check_step(t: float, dt: float) -> None:
    if not 0 < t <= 1:
        raise UserError("SDE time out of range", received=t, expected="0 < t <= 1")
    if not 0 < dt <= t:
        raise UserError(
            "SDE step size out of range",
            received=dt,
            expected=f"0 < dt <= t = {t}",
            remedy="pass a strictly decreasing sigma schedule; dt is t_i - t_{i+1}",
        )


def _check_choice(what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"unknown {what}", received=value, expected=" | ".join(choices))


def noise_scale(
    t: float,
    dt: float,
    *,
    a: float = 1.0,
    tau: float | None = 0.45,
    kind: str = "flow_truncated",
) -> float:
    """Effective noise scale sigma of one step ("Truncated noise schedule", section 3.3.1).

    Args:
        t: time before the step, in (0, 1].
        dt: step size, positive.
        a: noise amplitude; the scale itself for ``constant``.
        tau: upper bound of the step std sigma * sqrt(dt), for ``flow_truncated``; None = no bound.
        kind: ``flow`` is a * sqrt(t / (1 - t)), ``flow_truncated`` bounds it so that the step std
            is at most tau, ``constant`` is a.

    Returns:
        The value to use in the drift and in the diffusion alike: clipping the diffusion alone
        would break the marginals.

    Raises:
        UserError: unknown kind, values out of range, or an infinite scale (t = 1, no bound).
    """
    _check_step(t, dt)
    _check_choice("noise kind", kind, NOISE_KINDS)
    if not a > 0:
        raise UserError("SDE noise amplitude a must be positive", received=a, expected="a > 0")
    if tau is not None and not tau > 0:
        raise UserError("SDE bound tau must be positive", received=tau, expected="tau > 0 or None")
    if kind == "constant":
        return a
    bound = math.inf if tau is None or kind == "flow" else tau / math.sqrt(dt)
    flow = math.inf if t == 1 else a * math.sqrt(t / (1 - t))
    sigma = min(flow, bound)
    if math.isinf(sigma):
        raise UserError(
            "the flow noise scale a*sqrt(t/(1-t)) is infinite at t = 1",
            received=f"kind={kind!r}, tau={tau!r}",
            expected="a bounded step std at t = 1",
            remedy="use kind='flow_truncated' with tau=0.45 (the report's value)",
        )
    return sigma


def step_std(dt: float, sigma: float) -> float:
    """Standard deviation sigma * sqrt(dt) of the step."""
    return sigma * math.sqrt(dt)


def coefficient(t: float, dt: float, sigma: float) -> float:
    """Score coefficient c: grad_v log p = c * eps; equals kappa * (1/a + a/2) when unclipped.

    Raises:
        UserError: sigma is not positive (a deterministic step has no likelihood).
    """
    _check_step(t, dt)
    if not (sigma > 0 and math.isfinite(sigma)):
        raise UserError(
            "the score coefficient needs a finite positive noise scale",
            received=sigma,
            expected="0 < sigma < inf",
        )
    return math.sqrt(dt) * (1 / sigma + sigma * (1 - t) / (2 * t))


def _wide(tensor: Tensor) -> Tensor:
    """Half-precision tensors as fp32: SDE arithmetic never runs below it."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def sde_mean(x: Tensor, v: Tensor, t: float, dt: float, sigma: float) -> Tensor:
    """Mean of the transition (Eq. 23), in fp32 or fp64.

    ``x`` and ``v`` broadcast. With sigma = 0 the result is the Euler step x + dt * v.
    """
    _check_step(t, dt)
    x, v = _wide(x), _wide(v)
    noise = predict_noise(x, v, t)  # -t times the score of p_t
    return euler_step(x, v - (sigma * sigma / (2 * t)) * noise, dt)


def sde_step(x: Tensor, v: Tensor, t: float, dt: float, sigma: float, eps: Tensor) -> Tensor:
    """Sample x_{t-dt}: the mean plus sigma * sqrt(dt) * eps.

    A group shares x and v: pass them as [1, ...] and eps as [G, ...] to get [G, ...].
    """
    return sde_mean(x, v, t, dt, sigma) + step_std(dt, sigma) * _wide(eps)


def _reduce(tensor: Tensor, reduction: str) -> Tensor:
    _check_choice("reduction", reduction, REDUCTIONS)
    flat = tensor.flatten(1)
    return flat.mean(1) if reduction == "mean" else flat.sum(1)


def log_ratio(eps: Tensor, dv: Tensor, c: float, reduction: str = "mean") -> Tensor:
    """Log of the importance ratio p_theta(x') / p_old(x') of each sample.

    Args:
        eps: noise of the rollout, [G, ...].
        dv: v_theta - v_old, [G, ...] or [1, ...] when the group shares one forward.
        c: score coefficient of the step.
        reduction: ``mean`` over latent dims does not depend on the resolution (and then the ratio
            is not the density ratio but its D-th root); ``sum`` is the density ratio.

    Returns:
        [G] in fp32 or fp64. Exactly 0 where dv is 0.
    """
    eps, dv = _wide(eps), _wide(dv)
    return _reduce(c * eps * dv - (0.5 * c * c) * dv * dv, reduction)


def kl(dv_ref: Tensor, c: float, reduction: str = "mean") -> Tensor:
    """KL(p_theta || p_ref) of each sample (Eq. 25) from dv_ref = v_theta - v_ref [B, ...]: [B]."""
    dv_ref = _wide(dv_ref)
    return _reduce((0.5 * c * c) * dv_ref * dv_ref, reduction)


def gaussian_log_prob(x_next: Tensor, mean: Tensor, std: float, reduction: str = "sum") -> Tensor:
    """Log density of the transition (Eq. 24) at x_next [B, ...]: [B].

    Training uses :func:`log_ratio`; this is the textbook form that tests compare it with.
    """
    z = (_wide(x_next) - _wide(mean)) / std
    return _reduce(-0.5 * z * z - math.log(std) - 0.5 * math.log(2 * math.pi), reduction)


def reweight(
    t: float, dt: float, sigma: float, *, mode: str = "exact", t_next: float | None = None
) -> tuple[float, float]:
    """Weights (lambda_policy, lambda_kl) of the two losses (Eq. 7, 8, 36, 40).

    The report derives kappa^-1 = sqrt(t / (dt (1-t))) and kappa^-2 for an unclipped scale and
    a = 1. Its own settings clip every step it trains on, and kappa^-1 is infinite at t = 1, so:

    - ``exact``: (3/2)/c and (9/4)/c^2. Eq. 3 and Eq. 42 hold for every sigma. Default.
    - ``sigma``: sigma/sqrt(dt) and its square, which is kappa^-1 while nothing is clipped.
    - ``paper``: kappa^-1 and kappa^-2 as printed; at t = 1, 1-t is replaced by 1-t_next.
    - ``none``: (1, 1).

    All but ``none`` agree when nothing is clipped and a = 1.

    Args:
        t: time before the step.
        dt: step size.
        sigma: effective noise scale of the step.
        mode: see above.
        t_next: time after the first step of the schedule; needed by ``paper`` at t = 1.
    """
    _check_choice("reweight mode", mode, REWEIGHT_MODES)
    if mode == "exact":
        c = coefficient(t, dt, sigma)
        return POLICY_COEFFICIENT / c, KL_COEFFICIENT / (c * c)
    _check_step(t, dt)
    if mode == "none":
        return 1.0, 1.0
    if mode == "sigma":
        weight = sigma / math.sqrt(dt)
        return weight, weight * weight
    noise_left = 1 - t
    if t == 1:
        if t_next is None or not t_next < 1:
            raise UserError(
                "reweight mode 'paper' is infinite at t = 1",
                received=f"t_next={t_next!r}",
                expected="t_next < 1, the second time of the schedule",
                remedy="pass t_next, or use mode='exact'",
            )
        noise_left = 1 - t_next
    return math.sqrt(t / (dt * noise_left)), t / (dt * noise_left)


def step_coefficients(
    sigmas: Tensor | Sequence[float],
    index: int,
    *,
    a: float = 1.0,
    tau: float | None = 0.45,
    kind: str = "flow_truncated",
    mode: str = "exact",
) -> StepCoefficients:
    """All scalars of the stochastic step from sigmas[index] to sigmas[index + 1].

    Args:
        sigmas: the sampler's schedule [S+1], strictly decreasing, ending in 0.
        index: the critical timestep t', 0 <= index < S.
        a: noise amplitude.
        tau: bound of the step std, None for none.
        kind: one of NOISE_KINDS.
        mode: one of REWEIGHT_MODES.
    """
    num_steps = len(sigmas) - 1
    if not 0 <= index < num_steps:
        raise UserError(
            "critical timestep outside the schedule",
            received=index,
            expected=f"0 <= index < {num_steps}",
            remedy="lower sde.num_sde_steps or raise rollout.num_steps",
        )
    t, t_next = float(sigmas[index]), float(sigmas[index + 1])
    dt = t - t_next
    sigma = noise_scale(t, dt, a=a, tau=tau, kind=kind)
    lambda_policy, lambda_kl = reweight(t, dt, sigma, mode=mode, t_next=t_next)
    return StepCoefficients(
        index=index,
        t=t,
        dt=dt,
        sigma=sigma,
        std=step_std(dt, sigma),
        c=coefficient(t, dt, sigma),
        lambda_policy=lambda_policy,
        lambda_kl=lambda_kl,
    )
