"""Classifier-free guidance, and the guided velocity: one DiT evaluation with text.

The plain rule and CFG-Zero* (Fan et al. 2025; section 4.3) are linear in the sign of the velocity,
so they hold in either convention. Sampler and trainer call the same :func:`guided_velocity`, so
that a velocity computed for a rollout and again for its gradient is bitwise the same for the same
batch shape (first-update ratio exactly 1). Condition latents are clean (t = 0), take no part in the
CFG-Zero* scale and are not returned.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from longtake.core.attention import KeyValueCache
from longtake.core.flow import TIMESTEP_SCALE, widen

#: Text states [B, 1, L, Dc] and mask [B, L], as ``TextEncoder.encode`` returns them.
Text = tuple[Tensor, Tensor]
GuidanceMode = Literal["none", "cfg", "cfg_zero"]


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

    Velocities of the noisy latents [B, C, T, H, W]; the report's scale is 4. ``detach_scale`` makes
    s* a constant in the gradient (our default; the report is silent).
    """
    star = cfg_zero_scale(v_cond, v_uncond)
    if detach_scale:
        star = star.detach()
    return cfg(v_cond, star * v_uncond, scale)


@dataclasses.dataclass(frozen=True, slots=True)
class Condition:
    """Clean leading latents of image-to-video and continuation."""

    latents: Tensor
    """[B, C, T_cond, H, W], normalised."""
    key_values: KeyValueCache | None = None
    """Per block, keys and values of the condition tokens; None recomputes them every time."""


def encode_condition(dit: nn.Module, latents: Tensor, copies: int = 1) -> Condition:
    """Compute the keys and values of condition latents once (they see neither text nor noise).

    ``latents`` [B, C, T_cond, H, W] are clean and normalised; ``copies`` repeats the batch in the
    cache, 2 for batched guidance.
    """
    b, _, t = latents.shape[:3]
    key_values: KeyValueCache
    dtype = _model_dtype(dit)
    _, key_values = dit(
        latents.to(dtype),
        latents.new_zeros(b, dtype=torch.float32),
        latents.new_zeros((b, 1, 0), dtype=dtype),
        None,
        num_cond_latents=t,
        return_kv=True,
        skip_cross_attention=True,
    )
    return Condition(latents, key_values.repeat(copies))


def guided_velocity(
    dit: nn.Module,
    x: Tensor,
    t: Tensor | float,
    cond: Text,
    uncond: Text | None,
    guidance_scale: float,
    mode: GuidanceMode = "cfg_zero",
    *,
    condition: Condition | None = None,
    batched: bool = True,
    detach_scale: bool = True,
    detach_uncond: bool = False,
) -> Tensor:
    """Velocity of the noisy latents under guidance, in float32; keeps gradients.

    Args:
        dit: the model.
        x: noisy latents [B, C, T, H, W], without the condition latents.
        t: noise level in [0, 1], a number or [B].
        cond: text of the prompts; batch B, or 1 for a batch that shares its prompt.
        uncond: text of the empty or negative prompt, batch B or 1; may be None for mode none.
        guidance_scale: 1 gives the conditional velocity and skips the second evaluation.
        mode: ``cfg_zero`` (report), ``cfg``, or ``none``.
        condition: clean leading latents.
        batched: evaluate both branches in one forward of 2B samples (faster) or in two (memory).
        detach_scale: treat the CFG-Zero* scale as a constant in the gradient.
        detach_uncond: no gradient through the unconditional branch.

    Returns:
        [B, C, T, H, W] float32.
    """
    cond = _expand_text(cond, len(x))
    if mode == "none" or guidance_scale == 1:
        return _velocity(dit, x, t, cond, condition)
    assert uncond is not None, "guidance needs the text of the empty prompt"
    uncond = _expand_text(uncond, len(x))
    if batched:
        # One forward of 2B samples fills a GPU better than two of B.
        twice = (torch.cat((cond[0], uncond[0])), torch.cat((cond[1], uncond[1])))
        times = torch.cat((t, t)) if isinstance(t, Tensor) and t.ndim else t
        v_cond, v_uncond = _velocity(dit, torch.cat((x, x)), times, twice, condition).chunk(2)
        if detach_uncond:
            v_uncond = v_uncond.detach()
    else:
        v_cond = _velocity(dit, x, t, cond, condition)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detach_uncond):
            v_uncond = _velocity(dit, x, t, uncond, condition)
    if mode == "cfg":
        return cfg(v_cond, v_uncond, guidance_scale)
    return cfg_zero(v_cond, v_uncond, guidance_scale, detach_scale=detach_scale)


#: What a sampler step needs: (x, t) -> velocity, everything else bound.
Velocity = Callable[[Tensor, float], Tensor]


def _velocity(
    dit: nn.Module, x: Tensor, t: Tensor | float, text: Text, condition: Condition | None
) -> Tensor:
    """One forward; with a condition the output covers the noisy frames only."""
    batch, num_frames = x.shape[0], x.shape[2]
    dtype = _model_dtype(dit)
    times = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(batch)
    timestep = times * TIMESTEP_SCALE
    embeds, mask = text[0].to(dtype), text[1]
    if condition is None:
        out: Tensor = dit(x.to(dtype), timestep, embeds, mask)
        return widen(out)
    num_cond = condition.latents.shape[2]
    if condition.key_values is not None:
        # Both branches read one cache: condition tokens see no text.
        copies = batch // condition.key_values[0][0].shape[0]
        cache = condition.key_values.repeat(copies)
        out = dit(x.to(dtype), timestep, embeds, mask, num_cond_latents=num_cond, kv_cache=cache)
        return widen(out)
    clean = condition.latents.to(x)
    clean = clean.repeat(batch // clean.shape[0], 1, 1, 1, 1)
    frames = timestep[:, None].expand(batch, num_frames)
    frames = torch.cat((frames.new_zeros(batch, num_cond), frames), dim=1)  # [B, T_cond + T]
    whole = torch.cat((clean, x), dim=2).to(dtype)  # [B, C, T_cond + T, H, W]
    out = dit(whole, frames, embeds, mask, num_cond_latents=num_cond)
    return widen(out[:, :, num_cond:])


def _expand_text(text: Text, batch: int) -> Text:
    embeds, mask = text
    assert embeds.shape[0] in (1, batch), "one text per sample, or one that all share"
    if embeds.shape[0] == batch:
        return text
    return embeds.expand(batch, *embeds.shape[1:]), mask.expand(batch, -1)


def _model_dtype(dit: nn.Module) -> torch.dtype:
    return next(dit.parameters()).dtype
