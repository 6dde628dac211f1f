"""Classifier-free guidance: the plain rule and CFG-Zero* (Fan et al. 2025; section 4.3).

Guidance is linear in the sign of the velocity, so it holds in either convention.
"""

from torch import Tensor

#: Keeps the projection finite when the unconditional velocity is zero.
NORM_EPS = 1e-8


def cfg(v_cond: Tensor, v_uncond: Tensor, scale: float) -> Tensor:
    """v_uncond + scale (v_cond - v_uncond)."""
    return v_uncond + scale * (v_cond - v_uncond)


def cfg_zero_scale(v_cond: Tensor, v_uncond: Tensor) -> Tensor:
    """Optimal scale s* = <v_cond, v_uncond> / ||v_uncond||^2 of each sample, shape [B, 1, ...].

    The inner products run over every non-batch axis: pass the noisy latents only, because
    condition latents carry no prediction.
    """
    axes = tuple(range(1, v_cond.ndim))
    dot = (v_cond * v_uncond).sum(axes, keepdim=True)
    norm = (v_uncond * v_uncond).sum(axes, keepdim=True)
    return dot / (norm + NORM_EPS)


def cfg_zero(
    v_cond: Tensor, v_uncond: Tensor, scale: float, *, detach_scale: bool = True
) -> Tensor:
    """CFG-Zero*: plain guidance after rescaling v_uncond by its own optimal s*.

    Args:
        v_cond: conditional velocity of the noisy latents [B, C, T, H, W].
        v_uncond: unconditional velocity, same shape.
        scale: guidance scale (the report uses 4).
        detach_scale: treat s* as a constant in the gradient (our default; the report is silent).
    """
    star = cfg_zero_scale(v_cond, v_uncond)
    if detach_scale:
        star = star.detach()
    return cfg(v_cond, star * v_uncond, scale)
