"""The flow-matching loss of section 4.1 as pure functions (Eqs. 19-21).

Condition latents come first in time; they carry t = 0, optional per-frame noise (video
continuation) and no loss.
"""

import torch
from torch import Tensor

from longtake.core import flow


def draw_times(u: Tensor, shift: float) -> Tensor:
    """Training times t [B] from uniform draws ``u`` [B] in (0, 1), shifted towards noise."""
    return flow.shift_sigma(u, shift)


def perturb_condition(z_cond: Tensor, eps: Tensor, level: Tensor) -> Tensor:
    """Add independent noise to each condition frame (section 4.1, "slight", after Chen 2024).

    Args:
        z_cond: clean condition latents [B, C, T_cond, H, W].
        eps: noise of the same shape.
        level: noise level of each frame [B, T_cond] in [0, 1].
    """
    return flow.interpolate(z_cond, eps, flow.expand_time(level, z_cond))


def noisy_input(
    z: Tensor, eps: Tensor, t: Tensor, cond_level: Tensor | None, num_cond: int
) -> tuple[Tensor, Tensor]:
    """Network input and per-frame timesteps for one task.

    Args:
        z: clean latents [B, C, T, H, W].
        eps: noise [B, C, T, H, W].
        t: time of the noisy frames [B].
        cond_level: noise level of the condition frames [B, num_cond], or None for clean ones.
        num_cond: number of leading condition frames.

    Returns:
        Input [B, C, T, H, W] and timestep 1000 t [B, T] with zeros for the condition frames.
    """
    times = t[:, None].expand(-1, z.shape[2])
    if num_cond:
        times = torch.cat((torch.zeros_like(times[:, :num_cond]), times[:, num_cond:]), dim=1)
    x_t = flow.interpolate(z, eps, flow.expand_time(times, z))
    if num_cond and cond_level is not None:
        head = perturb_condition(z[:, :, :num_cond], eps[:, :, :num_cond], cond_level)
        x_t = torch.cat((head, x_t[:, :, num_cond:]), dim=2)
    return x_t, flow.TIMESTEP_SCALE * times


def flow_matching_loss(v: Tensor, z: Tensor, eps: Tensor, weight: Tensor, num_cond: int) -> Tensor:
    """Weighted mean squared velocity error over the noisy frames only (Eq. 21).

    Args:
        v: predicted velocity [B, C, T, H, W].
        z: clean latents.
        eps: noise.
        weight: per-sample loss weight [B].
        num_cond: leading condition frames to leave out.
    """
    error = (v - flow.velocity(z, eps))[:, :, num_cond:].float().square()
    return (weight * error.flatten(1).mean(1)).mean()
