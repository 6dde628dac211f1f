"""HPSv3 on clips: ``hpsv3_general`` and ``hpsv3_percentile`` (report section 3.3.2), from one pass.

Both score single frames. The general one asks about a fixed prompt and averages all frames, the
percentile one asks about the caption and averages the best 30 % of the frames. The prompts of a
frame differ only from the caption on, so the vision tower and most of the language model's work
serve both (:mod:`longtake.rewards.qwen2vl_variants`). The two rewards hold one :class:`HPSv3Scorer`
between them: the one that is asked first computes both columns.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from longtake.rewards.contract import RewardOutput, VideoBatch
from longtake.rewards.frames import Aggregation, Rounding, aggregate, num_top_frames, stride_frames
from longtake.rewards.pixels import PixelConfig, clip_patches, num_tokens, patch_grid, to_uint8
from longtake.rewards.prompt_batches import pad_prompts, token_batches
from longtake.rewards.qwen2vl import Qwen2VLRewardModel
from longtake.rewards.qwen2vl_variants import score_variants
from longtake.rewards.reward_directory import RewardDirectory, read_reward_directory
from longtake.rewards.template import PromptEncoder
from longtake.rewards.unique_frames import UniqueFrames, unique_frames
from longtake.runtime.errors import CheckpointError, ConfigError

VERSION = 1
"""Raised with every change that moves a score."""

Column = Literal["hpsv3_general", "hpsv3_percentile"]
COLUMNS: tuple[Column, ...] = get_args(Column)
GENERAL_PROMPT = "A high-quality image"
"""Stands in the place of the caption for ``hpsv3_general`` (report section 3.3.2)."""
_Row = tuple[tuple[int, int], str]  # what goes through the model: (clip, frame), caption


@dataclass(frozen=True, kw_only=True)
class HPSv3Config:
    """How clips are scored; the published weights and preprocessing are in the reward directory.

    Raises:
        UserError: a value out of range.
    """

    fraction: float = 0.3
    """Share of the frames that ``hpsv3_percentile`` averages, in (0, 1] (report section 3.3.2)."""
    rounding: Rounding = "floor"
    """How the share becomes a number of frames, at least one; the report does not say."""
    stride: int = 1
    """Every n-th frame is scored, from the first on. The report scores all; a stride is faster and
    another estimate."""
    tokens_per_pass: int = 32768
    """Bound on the tokens of one forward pass, padding included. It bounds memory, and no score
    depends on it."""

    def __post_init__(self) -> None:
        for name in ("stride", "tokens_per_pass"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} must be positive", received=getattr(self, name), expected=">= 1"
                )
        num_top_frames(1, self.fraction, self.rounding)  # raises on the other two


@dataclass(frozen=True, kw_only=True)
class FrameScores:
    """What one pass over a batch of B clips with F scored frames gives.

    Args:
        scores: by column, [B, F, 2] float32 on the CPU: mu and raw sigma; NaN where unscored.
        reasons: by column, B entries, None where scored.
        frame_idx: [F] int64, indices of the scored frames.
        repeated: [B] int64, frames of a clip that equal an earlier one of the same clip.
        num_passed: pairs of a different frame and a caption that went through the model.
    """

    scores: Mapping[Column, Tensor]
    reasons: Mapping[Column, Sequence[str | None]]
    frame_idx: Tensor
    repeated: Tensor
    num_passed: int


class HPSv3Scorer:
    """One loaded HPSv3 model, which scores the frames of a batch for one or both columns.

    The frame scores of the last batch are kept, keyed by everything that they depend on (pixels of
    the scored frames, captions), so that the second reward of a suite finds them. Nothing else is
    kept, and the weights must not change while the scorer is in use.

    Args:
        model: with a ranknet head.
        encoder: of its prompts.
        pixels: how frames become patches.
        columns: what to compute; a prompt that nobody asks for is not scored.
        config: how clips are scored.
        source: what fixes the function of the model, for fingerprints; JSON types.

    Raises:
        UserError: columns that are not among :data:`COLUMNS`, or none.
    """

    def __init__(
        self,
        model: Qwen2VLRewardModel,
        encoder: PromptEncoder,
        pixels: PixelConfig,
        *,
        columns: Sequence[Column] = COLUMNS,
        config: HPSv3Config | None = None,
        source: Mapping[str, object] | None = None,
    ) -> None:
        if not columns or set(columns) - set(COLUMNS):
            raise ConfigError(
                "columns of HPSv3 cannot be used",
                received=list(columns),
                expected=f"at least one of {', '.join(COLUMNS)}",
            )
        self.model = model
        self.columns = tuple(column for column in COLUMNS if column in columns)
        self.config = config or HPSv3Config()
        self.source = dict(source or {})
        self._encoder = encoder
        self._pixels = pixels
        self._last: tuple[object, FrameScores] | None = None

    def rewards(self) -> dict[Column, "HPSv3Reward"]:
        """The columns as rewards that share this scorer."""
        return {column: HPSv3Reward(self, column) for column in self.columns}

    def score(self, batch: VideoBatch) -> FrameScores:
        """Scores of the frames; the model runs once for equal batches that follow each other."""
        frame_idx = stride_frames(batch.num_frames, self.config.stride)
        problems = batch.bad_samples()
        usable = [clip for clip, problem in enumerate(problems) if problem is None]
        frames = unique_frames(batch.video, frame_idx, usable)
        slots = tuple(frames.slots.flatten().tolist())
        key = (*batch.video.shape, *batch.prompts, *problems, *slots, *frames.digests)
        if self._last is None or self._last[0] != key:
            self._last = None  # freed before the pass, and gone if it fails
            self._last = (key, self._score_frames(batch, frame_idx, frames, problems))
        return self._last[1]

    def _score_frames(
        self,
        batch: VideoBatch,
        frame_idx: Tensor,
        frames: UniqueFrames,
        problems: Sequence[str | None],
    ) -> FrameScores:
        refused = [
            problem or self._encoder.problem(caption)
            for problem, caption in zip(problems, batch.prompts, strict=True)
        ]
        reasons: dict[Column, Sequence[str | None]] = {
            column: refused if column == "hpsv3_percentile" else problems for column in self.columns
        }
        # Rows of the model: a different frame and a caption. A clip with a refused caption, and
        # every clip when the percentile is not asked for, takes the general prompt as its caption.
        rows: dict[tuple[int, str], int] = {}
        places = torch.full_like(frames.slots, -1)
        for clip, caption in enumerate(batch.prompts):
            if all(row[clip] for row in reasons.values()):
                continue
            if refused[clip] or "hpsv3_percentile" not in self.columns:
                caption = GENERAL_PROMPT
            slots: list[int] = frames.slots[clip].tolist()
            index = [rows.setdefault((slot, caption), len(rows)) for slot in slots]
            places[clip] = torch.tensor(index)
        table = torch.full((len(rows) + 1, len(self.columns), 2), math.nan)  # places -1: last row
        asked = [(frames.places[slot], caption) for slot, caption in rows]
        table[:-1] = self._score_rows(batch.video, asked)
        scores = {column: table[places, k] for k, column in enumerate(self.columns)}
        for column, row_reasons in reasons.items():
            scores[column][[reason is not None for reason in row_reasons]] = math.nan
        return FrameScores(
            scores=scores,
            reasons=reasons,
            frame_idx=frame_idx,
            repeated=frames.repeated,
            num_passed=len(rows),
        )

    def _score_rows(self, video: Tensor, rows: Sequence[_Row]) -> Tensor:
        """[rows, columns, 2]: mu and raw sigma."""
        grid = patch_grid(1, video.shape[-2], video.shape[-1], self._pixels)
        ids = {
            caption: self._encoder.encode(caption, num_tokens(grid))
            for caption in {GENERAL_PROMPT, *(caption for _, caption in rows)}
        }
        longest = [max(len(ids[caption]), len(ids[GENERAL_PROMPT])) for _, caption in rows]
        scores = torch.empty(len(rows), len(self.columns), 2)
        for batch in token_batches(longest, self.config.tokens_per_pass):
            places, captions = zip(*(rows[row] for row in batch), strict=True)
            prompts: dict[Column, list[list[int]]] = {
                "hpsv3_general": [ids[GENERAL_PROMPT]] * len(batch),
                "hpsv3_percentile": [ids[caption] for caption in captions],
            }
            clip, frame = torch.tensor(places, device=video.device).unbind(1)
            pictures = to_uint8(video[clip, frame]).to(self.model.device)
            patches, _ = clip_patches(pictures.unsqueeze(-4), self._pixels)
            variants = score_variants(
                self.model,
                [pad_prompts(prompts[column]) for column in self.columns],
                patches.flatten(0, 1),
                torch.tensor([grid] * len(batch)),
            )
            scores[batch] = torch.stack(variants, 1).cpu()
        return scores


class HPSv3Reward:
    """One column of an :class:`HPSv3Scorer`; implements the Reward protocol.

    Args:
        scorer: shared with the other column.
        column: which one; also the name.
    """

    needs_time = False

    def __init__(self, scorer: HPSv3Scorer, column: Column) -> None:
        self.name = column
        self.needs_prompt = column == "hpsv3_percentile"
        self._scorer = scorer

    def score(self, batch: VideoBatch) -> RewardOutput:
        """Clip scores: the mean over all frames of mu, or over its best ``fraction`` of them.

        The side results are ``per_frame`` (mu) and ``sigma`` [B, F], ``frame_idx`` [B, F], and
        ``repeated_frames`` [B], the frames that equal an earlier frame of their clip.
        """
        result = self._scorer.score(batch)
        mu, raw_sigma = result.scores[self.name].unbind(-1)  # [B, F]
        how: Aggregation = "top_fraction" if self.needs_prompt else "mean"
        config = self._scorer.config
        score = aggregate(mu, how, fraction=config.fraction, rounding=config.rounding)
        aux = {
            "per_frame": mu,
            "sigma": raw_sigma.exp(),
            "frame_idx": result.frame_idx.expand_as(mu),
            "repeated_frames": result.repeated,
        }
        output = RewardOutput.from_scores(score, aux)
        pairs = zip(result.reasons[self.name], output.reasons, strict=True)
        return replace(output, reasons=[known or found for known, found in pairs])

    def to(self, device: torch.device | str) -> Self:
        """Move the model, for both columns."""
        self._scorer.model.to(device)
        return self

    def fingerprint(self) -> dict[str, object]:
        """The reward directory's record, the precision, and how clips are scored."""
        scorer = self._scorer
        fields: dict[str, object] = {
            **scorer.source,
            "name": self.name,
            "version": VERSION,
            "dtype": str(scorer.model.embedding.weight.dtype),
            "stride": scorer.config.stride,
        }
        if self.needs_prompt:
            fields |= {"fraction": scorer.config.fraction, "rounding": scorer.config.rounding}
        else:
            fields["prompt"] = GENERAL_PROMPT
        return fields


def load_hpsv3(
    directory: RewardDirectory | str | Path,
    *,
    columns: Sequence[Column] = COLUMNS,
    config: HPSv3Config | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[Column, HPSv3Reward]:
    """The rewards of an imported HPSv3, which share one model.

    Args:
        directory: a reward directory or its path.
        columns: which rewards; the prompts of the others are not scored.
        config: how clips are scored.
        device: of the model.
        dtype: of the backbone; the public scorer runs in bfloat16.

    Raises:
        CheckpointError: the directory is damaged, or holds another kind of reward.
        UserError: columns that do not exist.
    """
    if not isinstance(directory, RewardDirectory):
        directory = read_reward_directory(directory)
    if directory.spec.kind != "hpsv3":
        raise CheckpointError(
            "the reward directory holds another kind of reward",
            received=f"{directory.spec.kind} in {directory.path}",
            expected="hpsv3",
            remedy="name a directory that was imported as hpsv3",
        )
    scorer = HPSv3Scorer(
        directory.load_model(device, dtype),
        directory.encoder(),
        directory.spec.pixels,
        columns=columns,
        config=config,
        source=directory.fingerprint(),
    )
    return scorer.rewards()
