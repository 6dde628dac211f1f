"""A judge on the backbone of the rewards: Qwen2-VL with one regression score per reward token.

Its weights are a reward directory of kind ``videoreward`` whose normalisation turns the raw scores
into points of the raters' scale.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from longtake.evaluation.judge.data import RatedClips
from longtake.evaluation.judge.directory import JudgeClip
from longtake.rewards.contract import Score, fingerprint_digest
from longtake.rewards.directory import RewardDirectory, read_reward_directory
from longtake.rewards.model_inputs import (
    ClipInputs,
    clip_inputs,
    collate_clips,
    shown_frames,
    token_batches,
)
from longtake.rewards.pair_dataset import FrameCache
from longtake.rewards.pixels import normalize_patches
from longtake.rewards.qwen2vl.model import Qwen2VLRewardModel
from longtake.rewards.spec import DIMENSIONS, RewardSpec
from longtake.rewards.videoalign import TOKENS_PER_PASS
from longtake.runtime.errors import UserError
from longtake.runtime.files import to_plain

TOKEN_OF = {"visual_quality": "VQ", "motion_quality": "MQ", "text_alignment": "TA"}
"""Rated dimension -> the reward token that scores it."""


def judge_tokens(dimensions: Sequence[str]) -> tuple[int, ...]:
    """Indices of the reward tokens of rated dimensions."""
    unknown = [name for name in dimensions if name not in TOKEN_OF]
    if unknown or not dimensions:
        raise UserError(
            "the judge cannot score this dimension",
            received=", ".join(unknown) or "none",
            expected=", ".join(TOKEN_OF),
        )
    return tuple(DIMENSIONS.index(TOKEN_OF[name]) for name in dimensions)


def check_kind(directory: RewardDirectory) -> None:
    """Refuse a reward directory that scores no clips."""
    if directory.spec.kind != "videoreward":
        raise UserError(
            "the reward directory cannot be a judge",
            received=f"kind {directory.spec.kind} in {directory.path}",
            expected="kind videoreward, with tokens for visual quality, motion and text",
        )


def seen_frames(frames: Tensor, fps: float, spec: RewardSpec) -> Tensor:
    """The frames of a clip uint8 [T, 3, H, W] that the model sees, in its colours and size."""
    assert spec.sampler is not None
    return shown_frames(frames[spec.sampler.indices(len(frames), fps).to(frames.device)], spec)


def model_digest(folder: Path) -> str:
    """See ``directory._backbone``."""
    return fingerprint_digest(to_plain(read_reward_directory(folder).fingerprint()))


def load_judge(folder: Path, dimensions: Sequence[str], device: torch.device) -> "RegressionJudge":
    """See ``directory._backbone``."""
    directory = read_reward_directory(folder)
    check_kind(directory)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    # The head stays in float32 (load_model): differences of scores are small.
    return RegressionJudge(directory, directory.load_model(device, dtype), dimensions)


class RegressionJudge:
    """A loaded judge."""

    def __init__(
        self, directory: RewardDirectory, model: Qwen2VLRewardModel, dimensions: Sequence[str]
    ) -> None:
        self._dimensions, self._tokens = tuple(dimensions), judge_tokens(dimensions)
        self._spec, self._encoder, self._model = directory.spec, directory.encoder(), model

    def judge(self, clips: Sequence[JudgeClip]) -> list[dict[str, Score]]:
        """Scores of clips; one that cannot be shown or scored has a reason instead."""
        scores: list[dict[str, Score]] = [{}] * len(clips)
        inputs: list[ClipInputs] = []
        numbers: list[int] = []
        for number, clip in enumerate(clips):
            try:
                inputs.append(self._inputs(clip))
                numbers.append(number)
            except UserError as error:
                reason = f"{error.what}: {error.received or 'cannot be scored'}"
                scores[number] = dict.fromkeys(self._dimensions, Score.unscored(reason))
        lengths = [len(clip.ids) for clip in inputs]
        for group in token_batches(lengths, TOKENS_PER_PASS):
            batch = collate_clips([inputs[index] for index in group])
            # Normalised on the device: 8-bit patches are a quarter of the bytes on their way.
            patches = normalize_patches(
                batch["pixel_values"].to(self._model.device), self._spec.pixels
            )
            ids, mask, grid = (batch[k] for k in ("input_ids", "attention_mask", "grid_thw"))
            raw = self._model.score(ids, mask, patches, grid, self._tokens)
            for index, row in zip(group, raw.tolist(), strict=True):
                scores[numbers[index]] = self._in_points(row)
        return scores

    def _inputs(self, clip: JudgeClip) -> ClipInputs:
        if not clip.caption.strip():
            raise UserError("the clip has no caption", received="an empty text")
        frames = seen_frames(clip.frames.to(self._model.device), clip.fps, self._spec)
        return clip_inputs(frames, clip.caption, self._encoder, key=0, stop_at=None)

    def _in_points(self, raw: Sequence[float]) -> dict[str, Score]:
        scores = {}
        for name, value in zip(self._dimensions, raw, strict=True):
            scale = self._spec.normalization.get(TOKEN_OF[name])
            scores[name] = Score.of(value if scale is None else (value - scale.mean) / scale.std)
        return scores


def target_scale(clips: RatedClips) -> dict[str, tuple[float, float]]:
    """Mean and deviation of the mean ratings of each dimension, by their number of ratings.

    The head learns standardised ratings: an update of one size then suits every dimension.
    """
    scale = {}
    for column, name in enumerate(clips.dimensions):
        rated = clips.count[:, column] > 0
        values, weights = clips.mean[rated, column], clips.count[rated, column]
        if len(np.unique(values)) < 2:
            raise UserError(
                f"the ratings of {name} cannot be learned",
                received=f"{len(values)} rated clips without a difference",
                expected="training clips with different ratings",
                remedy="add ratings, or leave the dimension out",
            )
        mean = float(np.average(values, weights=weights))
        scale[name] = mean, float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
    return scale


RatedInputs = tuple[ClipInputs, Tensor, Tensor]
"""Inputs of a clip, its standardised ratings [D] (0 where nobody rated) and their number [D]."""


class RatedDataset(Dataset[RatedInputs]):
    """Rated clips as inputs and targets; ``cache_bytes`` of frames are kept for all loaders."""

    def __init__(
        self,
        clips: RatedClips,
        directory: RewardDirectory,
        scale: Mapping[str, tuple[float, float]],
        cache_bytes: int,
    ) -> None:
        self._clips, self._spec, self._encoder = clips, directory.spec, directory.encoder()
        clips.require_usable(self._encoder.problem)
        self._cache = FrameCache(range(len(self)), cache_bytes)
        mean, deviation = np.array([scale[name] for name in clips.dimensions]).T
        ratings = (clips.mean - mean) / deviation
        self._ratings = torch.tensor(np.nan_to_num(ratings), dtype=torch.float32)
        self._counts = torch.tensor(clips.count, dtype=torch.float32)

    def __len__(self) -> int:
        return len(self._clips.mean)

    def __getitem__(self, row: int) -> RatedInputs:
        # Frames are kept, not patches: they are the same bytes, and cutting them is one copy.
        frames = self._cache.get(row)
        if frames is None:
            frames = self._clips.prepared(row, functools.partial(seen_frames, spec=self._spec))
            self._cache.put(row, frames)
        caption = self._clips.samples.samples[row].caption
        inputs = clip_inputs(frames, caption, self._encoder, key=row, stop_at=None)
        return inputs, self._ratings[row], self._counts[row]


def collate_rated(rows: Sequence[RatedInputs]) -> dict[str, Tensor]:
    """A batch of B clips: ``ratings`` and ``counts`` [B, D], and the model's inputs."""
    inputs, ratings, counts = zip(*rows, strict=True)
    return {
        "ratings": torch.stack(ratings),
        "counts": torch.stack(counts),
        **collate_clips(inputs),
    }
