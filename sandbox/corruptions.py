"""Corruptions of clips: the defects of generated video, each with a strength in [0, 1].

Every corruption maps [B, T, 3, H, W] floats in [0, 1] to the same shape; strength is one number or
one per clip [B]; strength 0 is the identity, and with a fixed generator state the damage grows
with the strength. Random numbers are drawn on the generator's device and moved to the video's, so
a CUDA generator keeps the whole step on the GPU.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Corruption = Callable[[Tensor, "float | Tensor", torch.Generator], Tensor]

MAX_BLUR_PX = 3.0
MAX_NOISE = 0.25
MAX_FLICKER = 0.5
MAX_JITTER_PX = 6.0
MAX_TELEPORT_PX = 26.0
MAX_VANISHED_FRAMES = 10.0
MAX_FROZEN_SHARE = 0.85  # at 1 the clip would be a still image, which is another defect
MAX_HUE_RAD = 1.7  # below 2.1 (120 degrees), where the palette nearly maps onto itself
MAX_MELT_PX = 9.0
MAX_GHOST = 0.88
MAX_CLUTTER = 0.45

SATURATION_RANGE = (0.3, 1.7)  # factor on the distance of each pixel from its luma
LUMA = (0.299, 0.587, 0.114)


def blur(video: Tensor, strength: float | Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian blur of each frame, standard deviation up to 3 px."""
    num_clips, num_frames, channels, height, width = video.shape
    sigma = (MAX_BLUR_PX * _per_clip(strength, video)).clamp(min=1e-3)  # [B]
    reach = math.ceil(2.5 * MAX_BLUR_PX)
    taps = torch.arange(-reach, reach + 1, device=video.device, dtype=video.dtype)
    # Two passes of one dimension: a Gaussian is separable, and 17 taps twice are cheaper than 289.
    kernel = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)  # [B, K]
    planes = video.reshape(num_clips, -1, height, width).transpose(0, 1)  # [T*3, B, H, W]
    planes = F.pad(planes, (reach, reach, reach, reach), mode="replicate")
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=num_clips)
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=num_clips)
    return planes.transpose(0, 1).reshape(num_clips, num_frames, channels, height, width)


def noise(video: Tensor, strength: float | Tensor, generator: torch.Generator) -> Tensor:
    """Independent Gaussian noise on every pixel."""
    grain = _normal(tuple(video.shape), video, generator)
    return (video + MAX_NOISE * _expand(strength, video) * grain).clamp(0, 1)


def flicker(video: Tensor, strength: float | Tensor, generator: torch.Generator) -> Tensor:
    """Random brightness of each frame."""
    level = 2 * _uniform(tuple(video.shape[:2]), video, generator) - 1
    level = MAX_FLICKER * _expand(strength, video) * level[:, :, None, None, None]
    return (video * (1 + level) + 0.3 * level).clamp(0, 1)


def jitter(video: Tensor, strength: float | Tensor, generator: torch.Generator) -> Tensor:
    """Independent displacement of each frame."""
    steps = 2 * _uniform((*video.shape[:2], 2), video, generator) - 1
    return _shift(video, MAX_JITTER_PX * _per_clip(strength, video)[:, None, None] * steps)


def teleport(video: Tensor, strength: float | Tensor, generator: torch.Generator) -> Tensor:
    """One jump of the whole picture at a random frame, wrapping around the frame."""
    num_clips, num_frames = video.shape[:2]
    draws = _uniform((num_clips, 2), video, generator)
    # Neither before the first frame nor at the last, where nothing would be seen to jump.
    jump = 1 + (draws[:, 0] * (num_frames - 2)).floor()
    angle = 2 * math.pi * draws[:, 1]
    frames = torch.arange(num_frames, device=video.device)
    after = (frames >= jump[:, None]).to(video.dtype)  # [B, T]
    step = MAX_TELEPORT_PX * _per_clip(strength, video)[:, None]
    direction = torch.stack([angle.cos(), angle.sin()], dim=-1) * step  # [B, 2]
    return _shift(video, after[:, :, None] * direction[:, None, :])


def vanish(video: Tensor, strength: float | Tensor, generator: torch.Generator) -> Tensor:
    """The sprites fade out for a run of frames that starts at a random frame."""
    num_clips, num_frames = video.shape[:2]
    start = (_uniform((num_clips, 1), video, generator) * num_frames).floor()
    order = (torch.arange(num_frames, device=video.device) - start) % num_frames  # [B, T]
    missing = (MAX_VANISHED_FRAMES * _per_clip(strength, video)[:, None] - order).clamp(0, 1)
    return torch.lerp(video, _background(video), missing[:, :, None, None, None])


def freeze(video: Tensor, strength: float | Tensor, generator: torch.Generator) -> Tensor:
    """Random frames repeat their predecessor; the motion then catches up in one jump."""
    num_clips, num_frames = video.shape[:2]
    draws = _uniform((num_clips, num_frames), video, generator)
    frames = torch.arange(num_frames, device=video.device)
    frozen = draws < MAX_FROZEN_SHARE * _per_clip(strength, video)[:, None]
    # The largest frame number so far that was not frozen: frozen runs repeat what came before them.
    source = torch.where(frozen, 0, frames).cummax(dim=1).values  # [B, T]
    return video[torch.arange(num_clips, device=video.device)[:, None], source]


def colour_drift(video: Tensor, strength: float | Tensor, generator: torch.Generator) -> Tensor:
    """All hues rotate about the grey axis, more and more over the clip."""
    num_clips, num_frames = video.shape[:2]
    sign = torch.where(_uniform((num_clips,), video, generator) < 0.5, -1.0, 1.0)
    ramp = torch.linspace(0, 1, num_frames, device=video.device, dtype=video.dtype)
    angle = (MAX_HUE_RAD * sign * _per_clip(strength, video))[:, None] * ramp  # [B, T]
    # Rodrigues' rotation about (1, 1, 1) / sqrt(3).
    eye = torch.eye(3, device=video.device, dtype=video.dtype)
    cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=video.device) / math.sqrt(3)
    cos, sin = angle.cos()[..., None, None], angle.sin()[..., None, None]
    turn = cos * eye + sin * cross + (1 - cos) / 3
    turned = torch.einsum("btij,btjhw->btihw", turn, video).clamp(0, 1)
    # The rotation by 0 rounds; strength 0 has to be the identity.
    return torch.where(angle[..., None, None, None] == 0, video, turned)


def melt(video: Tensor, strength: float | Tensor, generator: torch.Generator) -> Tensor:
    """A smooth random warp that grows and changes over the clip."""
    num_clips, num_frames, _, height, width = video.shape
    knots = _normal((num_clips, 2, 4, 8, 8), video, generator)
    field = F.interpolate(
        knots, size=(num_frames, height, width), mode="trilinear", align_corners=True
    )
    # Some of it from the first frame on, or early frames would stay clean.
    ramp = torch.linspace(0.4, 1, num_frames, device=video.device, dtype=video.dtype)
    amount = MAX_MELT_PX * 0.5 * _per_clip(strength, video)[:, None] * ramp  # [B, T]
    shift = field.permute(0, 2, 3, 4, 1) * amount[:, :, None, None, None]  # [B, T, H, W, 2] px
    unit = torch.eye(2, 3, device=video.device, dtype=video.dtype)[None]
    grid = F.affine_grid(unit, [1, 1, height, width], align_corners=False)
    grid = grid + shift.flatten(0, 1) * (2.0 / width)
    warped = F.grid_sample(
        video.flatten(0, 1), grid, padding_mode="border", align_corners=False
    ).reshape(video.shape)
    return torch.where(_expand(strength, video) == 0, video, warped)


def ghost(video: Tensor, strength: float | Tensor, generator: torch.Generator) -> Tensor:
    """Exponential average over time: moving sprites leave trails."""
    # Below 1 also at full strength: at 1 the first frame would stand still.
    memory = MAX_GHOST * _expand(strength, video)[:, 0]
    frames = [video[:, 0]]
    for frame in video.unbind(1)[1:]:
        frames.append(torch.lerp(frame, frames[-1], memory))
    return torch.stack(frames, dim=1)


def clutter(video: Tensor, strength: float | Tensor, generator: torch.Generator) -> Tensor:
    """Coloured blotches on the background; the sprites stay as they are."""
    num_clips, _, _, height, width = video.shape
    blotches = _normal((num_clips, 3, 12, 12), video, generator)
    texture = F.interpolate(blotches, size=(height, width), mode="bilinear")[:, None]
    distance = (video - _background(video)).square().sum(2, keepdim=True).sqrt()
    is_background = (1 - distance / 0.2).clamp(0, 1)
    level = MAX_CLUTTER * 0.5 * _expand(strength, video)
    return (video + level * is_background * texture).clamp(0, 1)


CORRUPTIONS: dict[str, Corruption] = {
    "blur": blur,
    "noise": noise,
    "flicker": flicker,
    "jitter": jitter,
    "teleport": teleport,
    "vanish": vanish,
    "freeze": freeze,
    "colour_drift": colour_drift,
    "melt": melt,
    "ghost": ghost,
    "clutter": clutter,
}


def draw_damage(
    num_clips: int, generator: torch.Generator, share: float = 1.0
) -> tuple[list[str], Tensor]:
    """A corruption and a strength, uniform in [0, 1], for each clip; [B] names and [B] on the CPU.

    A clip is damaged with chance ``share``; the others get strength 0.
    """
    draws = torch.rand((num_clips, 3), generator=generator, device=generator.device).cpu()
    catalogue = list(CORRUPTIONS)
    names = [catalogue[int(u * len(catalogue))] for u in draws[:, 0].tolist()]
    return names, torch.where(draws[:, 1] < share, draws[:, 2], 0.0)


def apply_damage(
    video: Tensor, names: list[str], strengths: Tensor, generator: torch.Generator
) -> Tensor:
    """Apply to clip b the corruption ``names[b]`` at ``strengths[b]``; one call per corruption."""
    # Grouped by corruption: eleven calls for a batch, however large.
    out = video.clone()
    for name, corrupt in CORRUPTIONS.items():
        rows = [row for row, drawn in enumerate(names) if drawn == name and strengths[row] > 0]
        if rows:
            index = torch.tensor(rows, device=video.device)
            strength = strengths[rows].to(device=video.device, dtype=video.dtype)
            out[index] = corrupt(video[index], strength, generator)
    return out


def scale_saturation(video: Tensor, factor: float) -> Tensor:
    """Move pixels [..., 3, H, W] away from (factor > 1) or towards (< 1) their BT.601 luma.

    No corruption: no caption and no oracle asks for a saturation. It is what a colour bias acts on.
    """
    luma = sum(w * channel for w, channel in zip(LUMA, video.unbind(-3), strict=True))
    gray = torch.as_tensor(luma).unsqueeze(-3)
    return torch.lerp(gray, video, factor).clamp(0, 1)


def wild_clip(video: Tensor, generator: torch.Generator) -> Tensor:
    """Damage clips like collected web data: one random corruption of random strength per clip.

    The result depends on the batch as a whole; name the generator by the batch's key. One on the
    video's device is much faster for pixel noise.
    """
    names, strengths = draw_damage(len(video), generator)
    return apply_damage(video, names, strengths, generator)


def _per_clip(strength: float | Tensor, video: Tensor) -> Tensor:
    """Strength as [B]."""
    value = torch.as_tensor(strength, device=video.device, dtype=video.dtype)
    return value.expand(video.shape[0])


def _expand(strength: float | Tensor, video: Tensor) -> Tensor:
    """Strength as [B, 1, 1, 1, 1]."""
    return _per_clip(strength, video)[:, None, None, None, None]


def _normal(shape: tuple[int, ...], video: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(shape, generator=generator, device=generator.device)
    return drawn.to(device=video.device, dtype=video.dtype)


def _uniform(shape: tuple[int, ...], video: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(shape, generator=generator, device=generator.device)
    return drawn.to(device=video.device, dtype=video.dtype)


def _background(video: Tensor) -> Tensor:
    """Median colour of the border of each frame, [B, T, 3, 1, 1]."""
    border = torch.cat([video[..., 0, :], video[..., -1, :], video[..., 0], video[..., -1]], dim=-1)
    return border.median(dim=-1).values[..., None, None]


def _shift(video: Tensor, offset: Tensor) -> Tensor:
    """Move each frame by ``offset`` [B, T, 2] (x, y) px, bilinear, wrapping around."""
    for axis, dim in ((0, -1), (1, -2)):
        length = video.shape[dim]
        ramp = torch.arange(length, device=video.device, dtype=video.dtype)
        position = ramp - offset[..., axis, None]  # [B, T, L]
        low = position.floor()
        fraction = position - low
        view = (*offset.shape[:2], 1, 1, length) if dim == -1 else (*offset.shape[:2], 1, length, 1)
        first = (low.long() % length).reshape(view).expand_as(video)
        second = ((low.long() + 1) % length).reshape(view).expand_as(video)
        video = torch.lerp(
            video.gather(dim, first), video.gather(dim, second), fraction.reshape(view)
        )
    return video
