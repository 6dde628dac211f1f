"""Sampling: the probability-flow ODE for text-to-video, image-to-video and continuation.

All three are one loop. Image-to-video starts from one clean latent frame, continuation from
several; those frames keep timestep 0 and, with the cache, are evaluated once for all steps
(report section 3.1, Eqs. 1-2).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from longtake.core import shapes
from longtake.core.checkpoint import Checkpoint
from longtake.core.flow import euler_step, step_pairs
from longtake.core.guidance import (
    Condition,
    GuidanceMode,
    Text,
    Velocity,
    encode_condition,
    guided_velocity,
)
from longtake.runtime.errors import UserError
from longtake.runtime.rng import normal

#: Called after each step with (step index, noise level reached, noisy latents).
StepCallback = Callable[[int, float, Tensor], None]


def integrate(
    x: Tensor,
    velocity: Velocity,
    steps: Sequence[tuple[float, float]],
    callback: StepCallback | None = None,
) -> Tensor:
    """Euler steps from noise ``x`` towards the data; ``steps`` are (t, dt) of ``step_pairs``."""
    for step, (t, dt) in enumerate(steps):
        x = euler_step(x, velocity(x, t), dt)
        if callback is not None:
            callback(step, t - dt, x)
    return x


@torch.no_grad()
def sample_latents(
    dit: nn.Module,
    noise: Tensor,
    cond_text: Text,
    uncond_text: Text | None,
    sigmas: Sequence[float] | Tensor,
    guidance_scale: float = 4.0,
    cfg: GuidanceMode = "cfg_zero",
    cond_latents: Tensor | None = None,
    use_kv_cache: bool = True,
    callback: StepCallback | None = None,
    batched: bool = True,
) -> Tensor:
    """Integrate from noise to clean latents with Euler steps.

    Args:
        dit: the model.
        noise: start of the noisy frames [B, C, T, H, W] at ``sigmas[0]``.
        cond_text: text of the prompts (batch B or 1).
        uncond_text: text of the empty or negative prompt; None only without guidance.
        sigmas: noise levels [S + 1], descending; the last is 0 for finished samples.
        guidance_scale: the report uses 4.
        cfg: guidance rule.
        cond_latents: clean leading latents [B, C, T_cond, H, W].
        use_kv_cache: evaluate the condition latents once instead of in every step.
        callback: observer of the steps.
        batched: both guidance branches in one forward.

    Returns:
        Latents [B, C, T_cond + T, H, W], float32, condition frames first and unchanged.
    """
    condition = None
    if cond_latents is not None:
        condition = Condition(cond_latents)
        if use_kv_cache:
            # The cache is repeated once here instead of in each of the steps.
            is_doubled = batched and cfg != "none" and guidance_scale != 1
            condition = encode_condition(dit, cond_latents, copies=2 if is_doubled else 1)

    def velocity(x: Tensor, t: float) -> Tensor:
        return guided_velocity(
            dit,
            x,
            t,
            cond_text,
            uncond_text,
            guidance_scale,
            cfg,
            condition=condition,
            batched=batched,
        )

    x = integrate(noise.float(), velocity, step_pairs(sigmas), callback)
    return x if cond_latents is None else torch.cat((cond_latents.to(x), x), dim=2)


@torch.no_grad()
def generate(
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    num_frames: int,
    height: int,
    width: int,
    steps: int = 16,
    guidance_scale: float = 4.0,
    seed: int = 0,
    image: Tensor | None = None,
    video: Tensor | None = None,
    *,
    negative_prompt: str = "",
    cfg: GuidanceMode = "cfg_zero",
    distilled: bool = False,
    shift: float | None = None,
    use_kv_cache: bool = True,
    batch_size: int = 8,
    callback: StepCallback | None = None,
) -> Tensor:
    """Videos of prompts, from a checkpoint to pixels.

    Sample i depends on (seed, i), its prompt and its condition only, not on ``batch_size``, up to
    float rounding.

    ``num_frames`` is 4k + 1 and counts condition frames; ``height`` and ``width`` are multiples of
    16 pixels. ``image`` [3, H, W] or [B, 3, H, W] becomes the first frame, ``video`` [T', 3, H, W]
    or [B, T', 3, H, W] with T' = 4k + 1 is continued; both are uint8 or float in [0, 1]. ``shift``
    None takes the checkpoint's; ``distilled`` the schedule of the step-distilled model.

    Returns:
        [B, num_frames, 3, H, W] float in [0, 1] on the CPU.
    """
    assert prompts and not isinstance(prompts, str), "a list of prompts"
    channels, t, h, w = checkpoint.vae.latent_shape(num_frames, height, width)
    clips = _condition_clips(image, video, len(prompts), num_frames, height, width)
    num_cond = 0 if clips is None else shapes.latent_frames(clips.shape[1])
    schedule = checkpoint.sigmas(steps, shift, distilled=distilled)
    uncond = checkpoint.text.encode([negative_prompt])
    device = checkpoint.device
    videos = []
    for start in range(0, len(prompts), batch_size):
        stop = min(start + batch_size, len(prompts))
        size = (channels, t - num_cond, h, w)
        # One name per sample, not one draw per batch: a split batch gives the same videos.
        noise = torch.stack([normal(size, seed, "generate", i) for i in range(start, stop)])
        latents = sample_latents(
            checkpoint.dit,
            noise.to(device),
            checkpoint.text.encode(prompts[start:stop]),
            uncond,
            schedule,
            guidance_scale,
            cfg,
            cond_latents=None if clips is None else checkpoint.vae.encode(clips[start:stop]),
            use_kv_cache=use_kv_cache,
            callback=callback,
        )
        videos.append(checkpoint.vae.decode(latents).cpu())
    return torch.cat(videos)


def _condition_clips(
    image: Tensor | None,
    video: Tensor | None,
    batch: int,
    num_frames: int,
    height: int,
    width: int,
) -> Tensor | None:
    """Condition frames [B, T', 3, H, W] of every video, or None for text-to-video."""
    assert image is None or video is None, "an image and a video cannot both start the clip"
    if image is None and video is None:
        return None
    if video is None:
        assert image is not None
        clips = image.unsqueeze(-4)  # [..., 1, 3, H, W]
    else:
        clips = video
    clips = clips if clips.ndim == 5 else clips[None]
    expected = f"{height}x{width} RGB, 1 or {batch} clips, fewer than {num_frames} frames"
    wrong_size = clips.ndim != 5 or clips.shape[2:] != (3, height, width)
    if wrong_size or clips.shape[0] not in (1, batch) or clips.shape[1] >= num_frames:
        raise UserError(
            "the condition frames do not fit the requested video",
            received=tuple(clips.shape),
            expected=expected,
            remedy="resize them, or raise num_frames",
        )
    return clips.expand(batch, *clips.shape[1:])
