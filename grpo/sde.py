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

from torch import Tensor

from longtake.core.flow import euler_step, predict_noise, widen

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


def step_coefficients(
    sigmas: Tensor | Sequence[float],
    index: int,
    *,
    a: float = 1.0,
    tau: float = 0.45,
    kind: str = "flow_truncated",
    mode: str = "exact",
) -> StepCoefficients:
    """All scalars of the stochastic step from sigmas[index] to sigmas[index + 1].

    ``sigmas`` is the sampler's schedule [S+1], strictly decreasing to 0; the options are those of
    :func:`noise_scale` and :func:`reweight`.
    """
    assert 0 <= index < len(sigmas) - 1, index
    t, t_next = float(sigmas[index]), float(sigmas[index + 1])
    dt = t - t_next
    sigma = noise_scale(t, dt, a=a, tau=tau, kind=kind)
    lambda_policy, lambda_kl = reweight(t, dt, sigma, mode=mode, t_next=t_next)
    return StepCoefficients(
        index=index,
        t=t,
        dt=dt,
        sigma=sigma,
        std=sigma * math.sqrt(dt),
        c=coefficient(t, dt, sigma),
        lambda_policy=lambda_policy,
        lambda_kl=lambda_kl,
    )


def noise_scale(
    t: float, dt: float, *, a: float = 1.0, tau: float = 0.45, kind: str = "flow_truncated"
) -> float:
    """Effective noise scale sigma of one step ("Truncated noise schedule", section 3.3.1).

    ``flow_truncated`` is a * sqrt(t / (1 - t)), bounded so that the step std sigma * sqrt(dt) is at
    most ``tau``; ``constant`` is a. The value goes into the drift and the diffusion alike: clipping
    the diffusion alone would break the marginals.
    """
    if kind == "constant":
        return a
    assert kind == "flow_truncated", kind
    # t = 1 is in every schedule, and the scale without a bound is infinite there.
    flow = math.inf if t == 1 else a * math.sqrt(t / (1 - t))
    sigma = min(flow, tau / math.sqrt(dt))
    assert math.isfinite(sigma), "the scale is infinite at t = 1 without a bound tau"
    return sigma


def coefficient(t: float, dt: float, sigma: float) -> float:
    """Score coefficient c: grad_v log p = c * eps; equals kappa * (1/a + a/2) when unclipped."""
    assert 0 < dt <= t <= 1 and sigma > 0, (t, dt, sigma)
    return math.sqrt(dt) * (1 / sigma + sigma * (1 - t) / (2 * t))


def reweight(
    t: float, dt: float, sigma: float, *, mode: str = "exact", t_next: float = 0.0
) -> tuple[float, float]:
    """Weights (lambda_policy, lambda_kl) of the two losses (Eq. 7, 8, 36, 40).

    The report derives kappa^-1 = sqrt(t / (dt (1-t))) and kappa^-2 for an unclipped scale and
    a = 1. Its own settings clip every step it trains on, and kappa^-1 is infinite at t = 1, so:

    - ``exact``: (3/2)/c and (9/4)/c^2. Eq. 3 and Eq. 42 hold for every sigma. Default.
    - ``sigma``: sigma/sqrt(dt) and its square, which is kappa^-1 while nothing is clipped.
    - ``paper``: kappa^-1 and kappa^-2 as printed; at t = 1, 1-t is replaced by 1-t_next.
    - ``none``: (1, 1).

    All but ``none`` agree when nothing is clipped and a = 1.
    """
    if mode == "none":
        return 1.0, 1.0
    if mode == "exact":
        c = coefficient(t, dt, sigma)
        return POLICY_COEFFICIENT / c, KL_COEFFICIENT / (c * c)
    if mode == "sigma":
        weight = sigma / math.sqrt(dt)
        return weight, weight * weight
    assert mode == "paper", mode
    # The report does not say; the next time is the only finite number at hand.
    noise_left = 1 - (t_next if t == 1 else t)
    return math.sqrt(t / (dt * noise_left)), t / (dt * noise_left)


def sde_mean(x: Tensor, v: Tensor, t: float, dt: float, sigma: float) -> Tensor:
    """Mean of the transition (Eq. 23), in fp32 or fp64.

    ``x`` and ``v`` broadcast. With sigma = 0 the result is the Euler step x + dt * v.
    """
    x, v = widen(x), widen(v)
    noise = predict_noise(x, v, t)  # -t times the score of p_t
    return euler_step(x, v - (sigma * sigma / (2 * t)) * noise, dt)


def sde_step(x: Tensor, v: Tensor, t: float, dt: float, sigma: float, eps: Tensor) -> Tensor:
    """Sample x_{t-dt}: the mean plus sigma * sqrt(dt) * eps.

    A group shares x and v: pass them as [1, ...] and eps as [G, ...] to get [G, ...].
    """
    return sde_mean(x, v, t, dt, sigma) + sigma * math.sqrt(dt) * widen(eps)


def log_ratio(eps: Tensor, dv: Tensor, c: float, reduction: str = "mean") -> Tensor:
    """Log of the importance ratio p_theta(x') / p_old(x') of each sample, exactly 0 where dv is 0.

    Args:
        eps: noise of the rollout, [G, ...].
        dv: v_theta - v_old, [G, ...] or [1, ...] when the group shares one forward.
        c: score coefficient of the step.
        reduction: ``mean`` over latent dims does not depend on the resolution (and then the ratio
            is not the density ratio but its D-th root); ``sum`` is the density ratio.

    Returns:
        [G] in fp32 or fp64.
    """
    eps, dv = widen(eps), widen(dv)
    return _reduce(c * eps * dv - (0.5 * c * c) * dv * dv, reduction)


def kl(dv_ref: Tensor, c: float, reduction: str = "mean") -> Tensor:
    """KL(p_theta || p_ref) of each sample (Eq. 25) from dv_ref = v_theta - v_ref [B, ...]: [B]."""
    dv_ref = widen(dv_ref)
    return _reduce((0.5 * c * c) * dv_ref * dv_ref, reduction)


def _reduce(tensor: Tensor, reduction: str) -> Tensor:
    flat = tensor.flatten(1)
    return flat.mean(1) if reduction == "mean" else flat.sum(1)
