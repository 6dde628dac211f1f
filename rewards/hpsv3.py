"""HPSv3 on clips: ``hpsv3_general`` and ``hpsv3_percentile`` (report section 3.3.2), from one pass.

Both score single frames. The general one asks about a fixed prompt and averages all frames, the
percentile one asks about the caption and averages the best 30 % of the frames. The prompts of a
frame differ only from the caption on, so the vision tower and most of the language model's work
serve both (:func:`longtake.rewards.qwen2vl.model.score_variants`). The two rewards hold one
:class:`HPSv3Scorer` between them: the one that is asked first computes both columns.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from longtake.core.video import to_uint8
from longtake.rewards.contract import Reward, Score, VideoBatch, scores_of
from longtake.rewards.directory import RewardDirectory
from longtake.rewards.frames import UniqueFrames, clip_score, unique_frames
from longtake.rewards.model_inputs import PromptEncoder, pad_prompts, token_batches
from longtake.rewards.pixels import PixelConfig, clip_patches, num_tokens, patch_grid
from longtake.rewards.qwen2vl.model import Qwen2VLRewardModel, score_variants

VERSION = 1  # raised with every change that moves a score

GENERAL, PERCENTILE = "hpsv3_general", "hpsv3_percentile"
GENERAL_PROMPT = "A high-quality image"
"""Stands in the place of the caption for ``hpsv3_general`` (report section 3.3.2)."""
# Share of the frames that ``hpsv3_percentile`` averages (report section 3.3.2), rounded down.
BEST_FRACTION = 0.3
TOKENS_PER_PASS = 32768  # padding included; bounds memory, and no score depends on it


class HPSv3Scorer:
    """One loaded HPSv3 model, which scores the frames of a batch for one or both columns.

    The frame scores of the last batch are kept, keyed by everything that they depend on (pixels of
    the frames, captions), so that the second reward of a suite finds them; the weights must not
    change meanwhile.
    """

    def __init__(
        self,
        model: Qwen2VLRewardModel,
        encoder: PromptEncoder,
        pixels: PixelConfig,
        columns: Sequence[str] = (GENERAL, PERCENTILE),
        tokens_per_pass: int = TOKENS_PER_PASS,
    ) -> None:
        self.model, self.encoder, self.columns = model, encoder, tuple(columns)
        self._pixels = pixels
        self._tokens_per_pass = tokens_per_pass
        self._last: tuple[object, dict[str, Tensor]] | None = None

    def score(self, batch: VideoBatch) -> dict[str, Tensor]:
        """Mu and raw sigma of all frames, by column [B, T, 2] float32 on the CPU.

        The model runs once for equal batches that follow each other, and once for equal frames.
        Clips whose caption has no prompt (:meth:`PromptEncoder.problem`) are NaN in ``percentile``.
        """
        # Still and repeated frames are common in generated clips, and a pass is what costs.
        frames = unique_frames(batch.video, torch.arange(batch.num_frames))
        slots = tuple(frames.slots.flatten().tolist())
        key = (*batch.video.shape, *batch.prompts, *slots, *frames.digests)
        if self._last is None or self._last[0] != key:
            self._last = None  # freed before the pass, and gone if it fails
            self._last = (key, self._score_frames(batch, frames))
        return self._last[1]

    def _score_frames(self, batch: VideoBatch, frames: UniqueFrames) -> dict[str, Tensor]:
        refused = [self.encoder.problem(caption) is not None for caption in batch.prompts]
        # Rows of the model: a different frame and a caption. A clip with a refused caption, and
        # every clip when the percentile is not asked for, takes the general prompt as its caption.
        rows: dict[tuple[int, str], int] = {}
        index = torch.empty_like(frames.slots)
        for clip, caption in enumerate(batch.prompts):
            if refused[clip] or PERCENTILE not in self.columns:
                caption = GENERAL_PROMPT
            for position, slot in enumerate(frames.slots[clip].tolist()):
                index[clip, position] = rows.setdefault((slot, caption), len(rows))
        asked = [(frames.origins[slot], caption) for slot, caption in rows]
        table = self._score_rows(batch.video, asked)
        scores = {column: table[index, k] for k, column in enumerate(self.columns)}
        if PERCENTILE in scores:
            scores[PERCENTILE][refused] = math.nan
        return scores

    def _score_rows(self, video: Tensor, rows: Sequence[tuple[tuple[int, int], str]]) -> Tensor:
        """[rows, columns, 2] of rows ((clip, frame), caption)."""
        grid = patch_grid(1, video.shape[-2], video.shape[-1], self._pixels)
        ids = {
            caption: self.encoder.encode(caption, num_tokens(grid))
            for caption in {GENERAL_PROMPT, *(caption for _, caption in rows)}
        }
        longest = [max(len(ids[caption]), len(ids[GENERAL_PROMPT])) for _, caption in rows]
        scores = torch.empty(len(rows), len(self.columns), 2)
        for batch in token_batches(longest, self._tokens_per_pass):
            origins, captions = zip(*(rows[row] for row in batch), strict=True)
            prompts = {
                GENERAL: [ids[GENERAL_PROMPT]] * len(batch),
                PERCENTILE: [ids[caption] for caption in captions],
            }
            clip, frame = torch.tensor(origins, device=video.device).unbind(1)
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


class HPSv3Reward(Reward):
    """One column of an :class:`HPSv3Scorer`, which the other column may share."""

    needs_time = False

    def __init__(self, scorer: HPSv3Scorer, column: str, source: Mapping[str, object]) -> None:
        self.needs_prompt = column == PERCENTILE
        self._scorer, self._column, self._source = scorer, column, source

    def score(self, batch: VideoBatch) -> Sequence[Score]:
        """The mean over all frames of mu, or over its best 30 %."""
        mu = self._scorer.score(batch)[self._column][..., 0]  # [B, T]
        scores = scores_of(clip_score(mu, BEST_FRACTION if self.needs_prompt else 1.0))
        if not self.needs_prompt:
            return scores
        problems = map(self._scorer.encoder.problem, batch.prompts)
        return [
            score if problem is None else Score.unscored(problem)
            for score, problem in zip(scores, problems, strict=True)
        ]

    def to(self, device: torch.device | str) -> Self:
        """Move the model, for both columns."""
        self._scorer.model.to(device)
        return self

    def fingerprint(self) -> dict[str, object]:
        """The reward directory's record, the precision, and how clips are scored."""
        how: dict[str, object] = {"prompt": GENERAL_PROMPT}
        if self.needs_prompt:
            how = {"fraction": BEST_FRACTION, "rounding": "floor"}
        return {
            **self._source,
            "name": self._column,
            "version": VERSION,
            "dtype": str(self._scorer.model.embedding.weight.dtype),
            **how,
        }


def load_hpsv3(
    directory: RewardDirectory,
    columns: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, HPSv3Reward]:
    """The rewards of a directory of kind ``hpsv3``, which share one model."""
    scorer = HPSv3Scorer(
        directory.load_model(device, dtype), directory.encoder(), directory.spec.pixels, columns
    )
    source = directory.fingerprint()
    return {column: HPSv3Reward(scorer, column, source) for column in columns}
