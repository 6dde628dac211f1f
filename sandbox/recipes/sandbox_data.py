"""Training data of the tiny model: rendered sandbox clips, part of them damaged, with captions.

Real video corpora mix good and bad clips. The pool does too: its wild clips carry corruptions
under an unchanged caption, so that the base model learns a spread of qualities and post-training
has something to choose from. How often they are seen is decided when a batch is drawn.
"""

import dataclasses

import torch
from torch import Tensor

from longtake.core import whole_clip
from longtake.core.text import TextEncoder
from longtake.core.vae import VideoVAE
from longtake.core.video import to_uint8
from longtake.runtime.rng import derive_key, generator
from longtake.sandbox.captions import caption
from longtake.sandbox.corruptions import wild_clip
from longtake.sandbox.render import render
from longtake.sandbox.scene import Scene, sample_scenes

RENDER_CHUNK = 512


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClipPool:
    """Rendered training clips of the train split, the wild ones first."""

    video: Tensor
    """uint8 [N, T, 3, H, W] on the training device."""
    scenes: list[Scene]
    """What each clip shows."""
    num_wild: int
    """Clips 0 to num_wild - 1 are corrupted."""

    def rows(self, size: int, wild_share: float, rng: torch.Generator) -> Tensor:
        """Draw ``size`` row numbers [size]; each is a wild clip with chance ``wild_share``."""
        device, total = self.video.device, len(self.scenes)
        u = torch.rand(2, size, generator=rng, device=device, dtype=torch.float64)
        if self.num_wild in (0, total):
            return (u[1] * total).long()
        wild = u[1] * self.num_wild
        clean = self.num_wild + u[1] * (total - self.num_wild)
        return torch.where(u[0] < wild_share, wild, clean).long()


def render_pool(
    num_clean: int, num_wild: int, wild_passes: int, seed: int, device: torch.device | str
) -> ClipPool:
    """Render clips of the train split.

    Args:
        num_clean: clips as rendered.
        num_wild: clips with corruptions.
        wild_passes: corruptions applied to each wild clip, one after the other.
        seed: names scenes and damage.
        device: where the clips stay.
    """
    scenes = sample_scenes(derive_key(seed, "pool"), 0, num_wild + num_clean, "train")
    parts = []
    for start, stop in _chunks(num_wild):
        clips = render(scenes[start:stop], device=device).float() / 255
        rng = generator(seed, "wild", start)
        for _ in range(wild_passes):
            clips = wild_clip(clips, rng)
        parts.append(to_uint8(clips))
    for start, stop in _chunks(num_clean):
        parts.append(render(scenes[num_wild + start : num_wild + stop], device=device))
    return ClipPool(video=torch.cat(parts), scenes=scenes, num_wild=num_wild)


def _chunks(total: int) -> list[tuple[int, int]]:
    starts = range(0, total, RENDER_CHUNK)
    return [(start, min(total, start + RENDER_CHUNK)) for start in starts]


def pool_captions(pool: ClipPool, per_clip: int, seed: int) -> list[str]:
    """``per_clip`` captions of every clip, clip-major."""
    return [
        caption(scene, derive_key(seed, "caption", i, j))
        for i, scene in enumerate(pool.scenes)
        for j in range(per_clip)
    ]


@torch.no_grad()
def encode_pool(vae: VideoVAE, pool: ClipPool, chunk: int = 16) -> Tensor:
    """Raw latents (not normalised) of every clip, posterior means, [N, C, T, h, w] float16."""
    parts = []
    for clips in pool.video.split(chunk):
        moments = whole_clip.encode_moments(vae.model, to_vae_range(clips))
        parts.append(moments[:, : vae.channels].half())
    return torch.cat(parts)


def to_vae_range(clips: Tensor) -> Tensor:
    """uint8 [B, T, 3, H, W] to float [B, 3, T, H, W] in [-1, 1]."""
    return clips.float().div(127.5).sub(1).transpose(1, 2)


def tokenize_all(
    text: TextEncoder, captions: list[str], chunk: int = 4096
) -> tuple[Tensor, Tensor]:
    """Token ids and mask [N, L] of many captions."""
    rows = [text.tokenize(captions[i : i + chunk]) for i in range(0, len(captions), chunk)]
    return torch.cat([r[0] for r in rows]), torch.cat([r[1] for r in rows])
