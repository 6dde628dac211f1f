"""Flow-matching maths and the one owner of time and sign (Eqs. 19-20).

t = 0 is clean and t = 1 is pure noise; x_t = (1 - t) x0 + t eps; the model predicts
v = x0 - eps = -dx_t/dt; every step size dt is positive and an Euler step is
x_{t-dt} = x_t + dt v. Diffusers, Wan and appendix A.1 of the report use u = eps - x0 = -v; only
:func:`from_noise_minus_data` converts. "sigma" in a schedule is the same number as t.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from longtake.runtime.errors import UserError

#: The DiT's timestep input is this many times t.
TIMESTEP_SCALE = 1000.0
#: Smallest sigma before the shift in the plain schedule; the last step goes from there to 0.
MIN_SIGMA = 0.001
#: Number of Euler points of the consistency-distilled schedule (section 4.3).
DISTILLED_POINTS = 50


def widen(x: Tensor) -> Tensor:
    """``x`` in float32, or unchanged in float64 (so that the model can be its own fp64 oracle).

    Norms, modulation, rotation, guidance and the steps of the sampler never run lower.
    """
    return x if x.dtype == torch.float64 else x.float()


def interpolate(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Noisy latents x_t = (1 - t) x0 + t eps (Eq. 19); ``t`` broadcasts against ``x0``."""
    return (1 - t) * x0 + t * eps


def velocity(x0: Tensor, eps: Tensor) -> Tensor:
    """Regression target v = x0 - eps (Eq. 20)."""
    return x0 - eps


def predict_noise(x_t: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
    """The noise that ``v`` points away from: x_t - (1 - t) v."""
    return x_t - (1 - t) * v


def euler_step(x_t: Tensor, v: Tensor, dt: Tensor | float) -> Tensor:
    """One deterministic step towards the data: x_{t-dt} = x_t + dt v, with dt > 0."""
    return x_t + dt * v


def from_noise_minus_data(u: Tensor) -> Tensor:
    """Convert the opposite convention u = eps - x0 (diffusers, Wan, Eqs. 23-30) to ours."""
    return -u


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Timestep shift a sigma / (1 + (a - 1) sigma); logit(t) moves by ln a (Esser et al. 2024)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def base_sigmas(num_steps: int, *, distilled: bool = False) -> Tensor:
    """Unshifted sigmas [num_steps], descending from 1, float64.

    Plain: evenly spaced from 1 to :data:`MIN_SIGMA`. Distilled: every point k/50 visited by
    ``floor(50 i / num_steps)`` counted down from 1, the grid of the consistency distillation.
    """
    limit = DISTILLED_POINTS if distilled else None
    if num_steps < 1 or (limit is not None and num_steps > limit):
        raise UserError(
            "number of sampling steps out of range",
            received=num_steps,
            expected=f"1..{limit}" if limit else "at least 1",
            remedy="change rollout.num_steps (or --steps)",
        )
    if distilled:
        points = [DISTILLED_POINTS - DISTILLED_POINTS * i // num_steps for i in range(num_steps)]
        return torch.tensor(points, dtype=torch.float64) / DISTILLED_POINTS
    return torch.linspace(1.0, MIN_SIGMA, num_steps, dtype=torch.float64)


def sigmas(num_steps: int, shift: float, *, distilled: bool = False) -> Tensor:
    """Shifted schedule [num_steps + 1], float64, from 1 down to a final 0."""
    if shift <= 0:
        raise UserError("timestep shift must be positive", received=shift, expected="> 0")
    # The final 0 is not shifted from MIN_SIGMA: the last step ends on clean latents.
    shifted = shift_sigma(base_sigmas(num_steps, distilled=distilled), shift)
    return torch.cat([shifted, shifted.new_zeros(1)])


def refine_sigmas(t_thresh: float, *, num_steps: int = 50, shift: float = 12.0) -> Tensor:
    """Refinement schedule (section 3.4.1): ``t_thresh``, then the plain sigmas below it, then 0."""
    if not 0 < t_thresh <= 1:
        raise UserError("refinement noise level out of range", received=t_thresh, expected="(0, 1]")
    plain = sigmas(num_steps, shift)
    return torch.cat([plain.new_tensor([t_thresh]), plain[plain < t_thresh]])


def logit_normal_weight(u: Tensor, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Loss weight that makes uniform ``u`` equal in expectation to logit-normal sampling.

    The density of the logit-normal distribution at ``u`` in (0, 1); its mean under the uniform
    distribution is 1. Section 4.1 says "logit-normal-like" without a formula: this is our choice.
    """
    # The density goes to 0 at both ends, but its logit does not exist there.
    u = u.clamp(1e-6, 1 - 1e-6)
    z = (torch.logit(u) - mean) / std
    return torch.exp(-0.5 * z * z) / (std * math.sqrt(2 * math.pi) * u * (1 - u))


def resolution_shift(
    num_tokens: int, *, reference_shift: float, reference_tokens: int, maximum: float
) -> float:
    """Training shift for ``num_tokens`` noisy tokens: grows with their square root (section 4.1).

    a = clip(a_ref sqrt(N / N_ref), 1, maximum); condition tokens are not counted.
    """
    return min(maximum, max(1.0, reference_shift * math.sqrt(num_tokens / reference_tokens)))


def expand_time(t: Tensor, like: Tensor) -> Tensor:
    """Reshape times [B] (or per frame [B, T]) to broadcast with ``like`` [B, C, T, H, W]."""
    if t.ndim == 1:
        return t.view(-1, *([1] * (like.ndim - 1)))
    return t.view(t.shape[0], 1, t.shape[1], *([1] * (like.ndim - 3)))


def step_pairs(schedule: Sequence[float] | Tensor) -> list[tuple[float, float]]:
    """The (t, dt) of every step of a schedule [S + 1], dt > 0."""
    knots = [float(s) for s in schedule]
    return [(a, a - b) for a, b in pairwise(knots)]
