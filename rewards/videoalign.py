"""VideoAlign as rewards: visual quality (VQ), motion quality (MQ) and text alignment (TA) of clips.

LongCat-Video trains on MQ and TA (report section 3.3.2): MQ sees gray clips, in training and in
scoring, so that it cannot like a colour; TA sees colours. Attention is causal, so a prompt ends at
the token that is scored. In the published template the caption stands after the motion token: VQ
and MQ never see it. MQ and TA see other pixels, and share no forward pass.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from longtake.rewards.contract import RewardOutput, VideoBatch
from longtake.rewards.grayscale import to_grayscale
from longtake.rewards.pixels import clip_patches, num_tokens, patch_grid, to_uint8
from longtake.rewards.prompt_batches import pad_prompts, token_batches
from longtake.rewards.qwen2vl import Qwen2VLRewardModel
from longtake.rewards.reward_directory import RewardDirectory, read_reward_directory
from longtake.rewards.reward_spec import DIMENSIONS, ColorMode, RewardSpec
from longtake.rewards.template import PLACEHOLDER
from longtake.runtime.errors import UserError

Dimension = Literal["VQ", "MQ", "TA"]
COLUMN_NAMES: dict[Dimension, str] = {
    "VQ": "videoalign_vq",
    "MQ": "videoalign_mq",
    "TA": "videoalign_ta",
}
"""Names of the rewards, as of their columns."""
TOKENS_PER_PASS = 16384
"""Tokens of one forward pass, padding included: some six clips of 93 frames at 15 fps."""


@dataclasses.dataclass(frozen=True)
class _Prompt:
    """One clip on its way into the model."""

    row: int
    frames: Tensor
    ids: list[int]


class VideoAlignReward:
    """One dimension of VideoAlign; implements the Reward protocol.

    Args:
        directory: of kind ``videoreward``.
        model: loaded from it; several dimensions may share one.
        dimension: ``VQ``, ``MQ`` or ``TA``.
        color_mode: in which clips are scored; :func:`load_videoalign` checks it.
        normalize: give (raw - mean) / std where the directory has a scale for the dimension.
        tokens_per_pass: bound on the tokens of one forward pass; a longer clip goes alone.

    Raises:
        UserError: a directory of another kind, or an unknown dimension.
    """

    needs_time = True

    def __init__(
        self,
        directory: RewardDirectory,
        model: Qwen2VLRewardModel,
        dimension: Dimension,
        *,
        color_mode: ColorMode,
        normalize: bool = True,
        tokens_per_pass: int = TOKENS_PER_PASS,
    ) -> None:
        _check_dimension(directory.spec, dimension)
        assert directory.spec.sampler is not None
        self.name = COLUMN_NAMES[dimension]
        self.dimension = dimension
        self._token = DIMENSIONS.index(dimension)
        self._stop = directory.spec.reward_tokens[self._token]
        text = directory.template.text
        self.needs_prompt = text.index(PLACEHOLDER) < text.index(self._stop)
        self.color_mode = color_mode
        self._directory = directory
        self._sampler = directory.spec.sampler
        self._model = model
        self._encoder = directory.encoder()
        self._scale = directory.spec.normalization.get(dimension) if normalize else None
        self._tokens_per_pass = tokens_per_pass

    def score(self, batch: VideoBatch) -> RewardOutput:
        """Scores of clips, each independent of the rest of the batch.

        A clip with unusable pixels, fewer than two frames or (TA) a caption that spells a reserved
        token is unscored, with the reason. Side results: ``raw`` [B], before normalisation, and
        ``num_frames`` [B], the frames that the model saw.
        """
        raw = torch.full((batch.num_samples,), torch.nan)
        num_frames = torch.zeros(batch.num_samples)
        reasons = batch.bad_samples()
        prompts: list[_Prompt] = []
        for row, fps in enumerate(batch.fps_per_sample().tolist()):
            if reasons[row] is None:
                try:
                    prompts.append(self._prompt(batch, row, fps))
                except UserError as error:
                    reasons[row] = f"{error.what}: {error.received or 'cannot be scored'}"
        lengths = [len(prompt.ids) for prompt in prompts]
        for batch_rows in token_batches(lengths, self._tokens_per_pass):
            group = [prompts[index] for index in batch_rows]
            rows = [prompt.row for prompt in group]
            raw[rows] = self._forward(batch, group)[:, 0].float().cpu()
            num_frames[rows] = torch.tensor([float(len(prompt.frames)) for prompt in group])
        score = raw if self._scale is None else (raw - self._scale.mean) / self._scale.std
        output = RewardOutput.from_scores(score, {"raw": raw, "num_frames": num_frames})
        known = [a or b for a, b in zip(reasons, output.reasons, strict=True)]
        return dataclasses.replace(output, reasons=known)

    def to(self, device: torch.device | str) -> "VideoAlignReward":
        """Move the model, and with it every reward that shares it."""
        self._model.to(device)
        return self

    def fingerprint(self) -> dict[str, object]:
        """The directory's fingerprint, the dimension, and how it is scored here."""
        return {
            **self._directory.fingerprint(),
            "name": self.name,
            "dimension": self.dimension,
            "scored_in": self.color_mode,
            "normalized": self._scale is not None,
            "dtype": str(self._model.embedding.weight.dtype),
        }

    def _prompt(self, batch: VideoBatch, row: int, fps: float) -> _Prompt:
        frames = self._sampler.indices(batch.num_frames, fps)
        height, width = batch.video.shape[-2:]
        grid = patch_grid(len(frames), height, width, self._directory.spec.pixels)
        caption = batch.prompts[row] if self.needs_prompt else ""
        ids = self._encoder.encode(caption, num_tokens(grid), self._stop)
        return _Prompt(row, frames, ids)

    def _forward(self, batch: VideoBatch, group: Sequence[_Prompt]) -> Tensor:
        """Raw scores [n, 1]."""
        pixels, grids = [], []
        for prompt in group:
            # Only the frames that the model sees go to its device, and are made gray and resized.
            clip = batch.video[prompt.row, prompt.frames.to(batch.video.device)]
            frames = to_uint8(clip.to(self._model.device))
            if self.color_mode != "rgb":
                frames = to_grayscale(frames, self.color_mode)
            patches, grid = clip_patches(frames, self._directory.spec.pixels)
            pixels.append(patches)
            grids.append(grid)
        ids, mask = pad_prompts([prompt.ids for prompt in group])
        tokens = (self._token,)
        return self._model.score(ids, mask, torch.cat(pixels), torch.tensor(grids), tokens)


def load_videoalign(
    path: str | Path,
    dimensions: Sequence[Dimension],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    color_mode: ColorMode | None = None,
    force_color_mode: bool = False,
    normalize: bool = True,
    tokens_per_pass: int = TOKENS_PER_PASS,
) -> dict[str, VideoAlignReward]:
    """Load rewards from one directory, with one copy of its weights.

    Args:
        path: a reward directory of kind ``videoreward``.
        dimensions: which rewards.
        device: of the model.
        dtype: of the backbone; the head is float32.
        color_mode: in which clips are scored. None is the report's choice: gray for MQ (by the
            directory's formula, or BT.601), colour for VQ and TA.
        force_color_mode: score even if the weights were trained in another mode.
        normalize: apply the score scale of the directory.
        tokens_per_pass: bound on the tokens of one forward pass.

    Returns:
        Name -> reward, in the order of ``dimensions``.

    Raises:
        UserError: unknown dimensions, or another colour mode than the weights were trained in.
        CheckpointError: a directory that is incomplete or damaged.
    """
    directory = read_reward_directory(path)
    for dimension in dimensions:
        _check_dimension(directory.spec, dimension)
    modes = {d: color_mode or reported_color_mode(directory.spec, d) for d in dimensions}
    for mode in modes.values():
        directory.spec.require_color_mode(mode, force=force_color_mode)
    model = directory.load_model(device, dtype)
    rewards = [
        VideoAlignReward(
            directory,
            model,
            dimension,
            color_mode=mode,
            normalize=normalize,
            tokens_per_pass=tokens_per_pass,
        )
        for dimension, mode in modes.items()
    ]
    return {reward.name: reward for reward in rewards}


def reported_color_mode(spec: RewardSpec, dimension: Dimension) -> ColorMode:
    """The colour mode of a dimension in the report: MQ gray, VQ and TA in colour."""
    if dimension != "MQ":
        return "rgb"
    return "bt601" if spec.color_mode == "rgb" else spec.color_mode


def _check_dimension(spec: RewardSpec, dimension: Dimension) -> None:
    if spec.kind != "videoreward" or dimension not in DIMENSIONS:
        raise UserError(
            "no such VideoAlign reward",
            received=f"{dimension} of a {spec.kind} directory",
            expected=f"{', '.join(DIMENSIONS)} of a videoreward directory",
        )
