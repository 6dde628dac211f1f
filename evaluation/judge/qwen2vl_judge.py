"""A judge on the backbone of the rewards: Qwen2-VL with one regression score per reward token.

Its weights are a reward directory of kind ``videoreward`` whose normalisation turns the raw scores
into points of the raters' scale.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from longtake.evaluation.judge.clip_inputs import (
    as_batch,
    model_arguments,
    model_patches,
    vision_tokens,
)
from longtake.evaluation.judge.contract import JudgeClip, Verdict
from longtake.rewards.contract import fingerprint_digest
from longtake.rewards.prompt_batches import token_batches
from longtake.rewards.qwen2vl import Qwen2VLRewardModel
from longtake.rewards.reward_directory import RewardDirectory, read_reward_directory
from longtake.rewards.reward_spec import DIMENSIONS
from longtake.rewards.videoalign import TOKENS_PER_PASS
from longtake.runtime.errors import UserError
from longtake.runtime.files import to_plain

TOKEN_OF = {"visual_quality": "VQ", "motion_quality": "MQ", "text_alignment": "TA"}
"""Rated dimension -> the reward token that scores it."""


def judge_tokens(dimensions: Sequence[str]) -> tuple[int, ...]:
    """Indices of the reward tokens of rated dimensions.

    Raises:
        UserError: a dimension without a token.
    """
    unknown = [name for name in dimensions if name not in TOKEN_OF]
    if unknown or not dimensions:
        raise UserError(
            "the judge cannot score this dimension",
            received=", ".join(unknown) or "none",
            expected=", ".join(TOKEN_OF),
        )
    return tuple(DIMENSIONS.index(TOKEN_OF[name]) for name in dimensions)


class Qwen2VLJudge:
    """Implements :class:`longtake.evaluation.judge.contract.JudgeModel`.

    Args:
        directory: reward directory of kind ``videoreward``.
        model: loaded from it, or one in training.
        dimensions: what it scores.
        tokens_per_pass: bound on the tokens of one forward pass; a longer clip goes alone.

    Raises:
        UserError: a directory of another kind, or a dimension that it cannot score.
    """

    def __init__(
        self,
        directory: RewardDirectory,
        model: Qwen2VLRewardModel,
        dimensions: Sequence[str],
        *,
        tokens_per_pass: int = TOKENS_PER_PASS,
    ) -> None:
        check_kind(directory)
        self.dimensions = tuple(dimensions)
        self._tokens = judge_tokens(dimensions)
        self._directory, self._model = directory, model
        self._encoder = directory.encoder()
        self._tokens_per_pass = tokens_per_pass

    def judge(self, clips: Sequence[JudgeClip]) -> list[Verdict]:
        """Verdicts of clips; one that cannot be shown or scored has a reason instead."""
        none = (None,) * len(self.dimensions)
        verdicts = [Verdict(scores=none)] * len(clips)
        rows: list[int] = []
        inputs: list[tuple[list[int], Tensor]] = []
        for row, clip in enumerate(clips):
            try:
                inputs.append(self._inputs(clip))
                rows.append(row)
            except UserError as error:
                reason = f"{error.what}: {error.received or 'cannot be scored'}"
                verdicts[row] = Verdict(scores=none, reason=reason)
        pixels = self._directory.spec.pixels
        for group in token_batches([len(ids) for ids, _ in inputs], self._tokens_per_pass):
            batch = as_batch(*zip(*(inputs[index] for index in group), strict=True))
            arguments = model_arguments(batch, pixels, self._model.device)
            scores = self._model.score(*arguments, self._tokens)
            for index, raw in zip(group, scores.tolist(), strict=True):
                verdicts[rows[index]] = self._verdict(raw)
        return verdicts

    def to(self, device: torch.device) -> "Qwen2VLJudge":
        """Move the weights."""
        self._model.to(device)
        return self

    def _inputs(self, clip: JudgeClip) -> tuple[list[int], Tensor]:
        if not clip.caption.strip():
            raise UserError("the clip has no caption", received="an empty text")
        frames = clip.frames.to(self._model.device)
        patches = model_patches(frames, clip.fps, self._directory.spec)
        return self._encoder.encode(clip.caption, vision_tokens(patches)), patches

    def _verdict(self, raw: Sequence[float]) -> Verdict:
        scales = self._directory.spec.normalization
        scores: list[float | None] = []
        for name, value in zip(self.dimensions, raw, strict=True):
            scale = scales.get(TOKEN_OF[name])
            score = value if scale is None else (value - scale.mean) / scale.std
            scores.append(score if abs(score) < float("inf") else None)
        broken = any(score is None for score in scores)
        return Verdict(scores=tuple(scores), reason="the score is not finite" if broken else "")


def check_kind(directory: RewardDirectory) -> None:
    """Refuse a reward directory that scores no clips.

    Raises:
        UserError: it is not of kind ``videoreward``.
    """
    if directory.spec.kind != "videoreward":
        raise UserError(
            "the reward directory cannot be a judge",
            received=f"kind {directory.spec.kind} in {directory.path}",
            expected="kind videoreward, with tokens for visual quality, motion and text",
        )


def qwen2vl_digest(folder: Path) -> str:
    """Digest of everything that fixes the scores."""
    return fingerprint_digest(to_plain(read_reward_directory(folder).fingerprint()))


def load_qwen2vl(folder: Path, dimensions: Sequence[str], device: torch.device) -> Qwen2VLJudge:
    """Load a judge; bfloat16 on a GPU, as the public scorers run, float32 on a CPU.

    Raises:
        CheckpointError: a damaged directory.
        UserError: a directory that cannot be a judge.
    """
    directory = read_reward_directory(folder)
    check_kind(directory)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return Qwen2VLJudge(directory, directory.load_model(device, dtype), dimensions)
