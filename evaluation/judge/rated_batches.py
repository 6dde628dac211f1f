"""Rated clips as training batches: decoded once, in a reproducible order."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from longtake.core.video import read_video
from longtake.evaluation.judge.clip_inputs import (
    ModelBatch,
    as_batch,
    model_patches,
    vision_tokens,
)
from longtake.evaluation.judge.rated_clips import RatedClips
from longtake.rewards.pair_dataset import FrameCache
from longtake.rewards.reward_directory import RewardDirectory
from longtake.runtime.errors import UserError
from longtake.runtime.rng import generator
from longtake.runtime.statistics import FloatArray


@dataclass(frozen=True, kw_only=True)
class TargetScale:
    """Standardisation of the ratings of each dimension: what the head learns has unit scale."""

    mean: tuple[float, ...]
    """[D] points."""
    std: tuple[float, ...]
    """[D] points, > 0."""


def target_scale(clips: RatedClips) -> TargetScale:
    """Mean and deviation of the mean ratings, weighted by their number of ratings.

    Raises:
        UserError: a dimension without ratings, or with one rating only.
    """
    means, deviations = [], []
    for column, name in enumerate(clips.dimensions):
        rated = clips.count[:, column] > 0
        values, weights = clips.mean[rated, column], clips.count[rated, column]
        if len(np.unique(values)) < 2:
            raise UserError(
                f"the ratings of {name} cannot be learned",
                received=f"{len(values)} rated clips, {len(np.unique(values))} different means",
                expected="training clips with different ratings",
                remedy="add ratings, or leave the dimension out",
            )
        mean = float(np.average(values, weights=weights))
        means.append(mean)
        deviations.append(float(np.sqrt(np.average((values - mean) ** 2, weights=weights))))
    return TargetScale(mean=tuple(means), std=tuple(deviations))


class Kept(Protocol):
    """What is kept of a decoded clip."""

    @property
    def nbytes(self) -> int:
        """Memory, bytes."""


KeptT = TypeVar("KeptT", bound=Kept)


class ClipCache(Generic[KeptT]):
    """Decoded clips of a part of the data, kept in memory as far as it reaches.

    Args:
        clips: the part.
        prepare: frames uint8 [T, 3, H, W] and their rate -> what is kept of a clip.
        problem: caption -> why it cannot be used, or None.
        cache_bytes: memory for what is kept; later clips are decoded each time.

    Raises:
        UserError: missing files, or captions that cannot be used.
    """

    def __init__(
        self,
        clips: RatedClips,
        prepare: Callable[[Tensor, float], KeptT],
        problem: Callable[[str], str | None],
        cache_bytes: int,
    ) -> None:
        self.clips, self._prepare = clips, prepare
        missing = clips.samples.missing_videos()
        if missing:
            raise UserError(
                "videos of rated samples are missing",
                received=f"{len(missing)}: {'; '.join(missing[:3])}",
                expected="paths relative to the list of samples",
            )
        for item in clips.samples.samples:
            found = problem(item.caption)
            if found:
                raise UserError(
                    "a caption of the rated samples cannot be used",
                    received=f"{item.sample}: {found}",
                    remedy="rewrite the caption or remove the sample",
                )
        self._kept: dict[int, KeptT] = {}
        self._left = cache_bytes

    def __len__(self) -> int:
        return len(self.clips.samples.samples)

    def frames(self, row: int) -> KeptT:
        """A clip as ``prepare`` gives it; threads may call it at once."""
        known = self._kept.get(row)
        if known is not None:
            return known
        item = self.clips.samples.samples[row]
        path = self.clips.samples.video_path(item)
        assert path is not None
        video, fps = read_video(path)
        try:
            found = self._prepare(video, fps)
        except UserError as error:
            raise UserError(
                f"a rated clip cannot be used: {error.what}",
                received=str(path),
                remedy="remove the sample from the list",
            ) from error
        if found.nbytes <= self._left:
            self._left -= found.nbytes
            self._kept[row] = found
        return found


class ClipSource(ClipCache[Tensor]):
    """Clips, inputs and targets of the regression.

    Args:
        clips: the part.
        directory: of the base: spec and prompt.
        scale: of the targets.
        cache_bytes: memory for patches; loader processes that are forked share it.

    Raises:
        UserError: see :class:`ClipCache`.

    Attributes:
        pixels: normalisation of the model.
    """

    def __init__(
        self, clips: RatedClips, directory: RewardDirectory, scale: TargetScale, cache_bytes: int
    ) -> None:
        self.pixels, self._encoder = directory.spec.pixels, directory.encoder()
        super().__init__(
            clips,
            lambda video, fps: model_patches(video, fps, directory.spec),
            self._encoder.problem,
            cache_bytes=0,  # kept in shared memory instead
        )
        self._shared = FrameCache(range(len(self)), cache_bytes)
        self._ids: dict[tuple[str, int], list[int]] = {}
        self._targets = torch.from_numpy((clips.mean - scale.mean) / np.array(scale.std)).float()
        self._weights = torch.from_numpy(clips.count).float()

    def frames(self, row: int) -> Tensor:
        """Patches uint8 [t, h, w, 1176] of a clip, not to be written to."""
        patches = self._shared.get(row)
        if patches is None:
            patches = super().frames(row)
            self._shared.put(row, patches)
        return patches

    def decode(self, rows: Sequence[int]) -> dict[int, Tensor]:
        """Put clips into the shared memory; returns the patches of those without room there."""
        unkept = {}
        for row in rows:
            if self._shared.get(row) is None:
                patches = self.frames(row)
                if self._shared.get(row) is None:
                    unkept[row] = patches
        return unkept

    def batch(
        self, rows: Sequence[int], unkept: Mapping[int, Tensor] | None = None, *, pin: bool = False
    ) -> ModelBatch:
        """Inputs of clips.

        Args:
            rows: B clips.
            unkept: from :meth:`decode`, so that nothing is decoded here.
            pin: put the patches into pinned memory.
        """
        known = unkept or {}
        patches = [known[row] if row in known else self.frames(row) for row in rows]
        samples = self.clips.samples.samples
        prompts = [
            self._prompt(samples[row].caption, vision_tokens(clip))
            for row, clip in zip(rows, patches, strict=True)
        ]
        return as_batch(prompts, patches, pin=pin)

    def _prompt(self, caption: str, tokens: int) -> list[int]:
        """Token ids; clips of a prompt share them."""
        key = (caption, tokens)
        if key not in self._ids:
            self._ids[key] = self._encoder.encode(caption, tokens)
        return self._ids[key]

    def targets(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Standardised mean ratings and numbers of ratings, each float32 [B, D]; 0 ratings: 0."""
        chosen = list(rows)
        return self._targets[chosen].nan_to_num(), self._weights[chosen]


def update_rows(num_clips: int, batch: int, update: int, seed: int) -> list[int]:
    """Rows of an update: epochs of a drawn order, cut into batches; a rest waits for the next.

    The rows follow from the arguments alone, so that a resumed run sees what it would have seen.
    """
    per_epoch = max(1, num_clips // batch)
    epoch, place = divmod(update, per_epoch)
    return list(_order(num_clips, epoch, seed)[place * batch : (place + 1) * batch])


@functools.lru_cache(maxsize=4)
def _order(num_clips: int, epoch: int, seed: int) -> tuple[int, ...]:
    order = torch.randperm(num_clips, generator=generator(seed, "order of clips", epoch))
    return tuple(order.tolist())


def weighted_error(scores: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum of squared errors [B, D], each weighted by its number of ratings.

    The variance of a mean of k ratings is 1 / k of that of one, so this is, up to a constant, the
    likelihood of the ratings under Gaussian noise.
    """
    return (weights * (scores - targets) ** 2).sum()


def points(scores: FloatArray, scale: TargetScale) -> FloatArray:
    """Standardised scores [n, D] in points."""
    return np.asarray(scores * np.array(scale.std) + np.array(scale.mean), dtype=np.float64)
