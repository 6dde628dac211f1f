"""VideoAlign as rewards: visual quality (VQ), motion quality (MQ) and text alignment (TA) of clips.

LongCat-Video trains on MQ and TA (report section 3.3.2): MQ sees gray clips, in training and in
scoring, so that it cannot like a colour; TA sees colours. Clips are scored in the colours in which
the weights of the directory were trained. Attention is causal, so a prompt ends at the token that
is scored. In the published template the caption stands after the motion token: VQ and MQ never see
it. MQ and TA see other pixels, and share no forward pass.
"""

from collections.abc import Hashable, Sequence
from typing import Self

import torch

from longtake.core.video import to_uint8
from longtake.rewards.contract import Reward, Score, VideoBatch
from longtake.rewards.directory import RewardDirectory
from longtake.rewards.model_inputs import (
    PLACEHOLDER,
    ClipInputs,
    clip_inputs,
    collate_clips,
    shown_frames,
    token_batches,
)
from longtake.rewards.pixels import normalize_patches
from longtake.rewards.qwen2vl.model import Qwen2VLRewardModel
from longtake.rewards.spec import DIMENSIONS
from longtake.runtime.errors import UserError

COLUMNS = {f"videoalign_{dimension.lower()}": dimension for dimension in DIMENSIONS}
# Tokens of one forward pass, padding included: some six clips of 93 frames at 15 fps.
TOKENS_PER_PASS = 16384


class VideoAlignReward(Reward):
    """One dimension of VideoAlign, one of :data:`COLUMNS`; several may share a model."""

    needs_time = True

    def __init__(
        self,
        directory: RewardDirectory,
        model: Qwen2VLRewardModel,
        name: str,
        tokens_per_pass: int = TOKENS_PER_PASS,
    ) -> None:
        self._name, self._directory, self._model = name, directory, model
        self._token = DIMENSIONS.index(COLUMNS[name])
        self._stop = directory.spec.reward_tokens[self._token]
        text = directory.template.text
        self.needs_prompt = text.index(PLACEHOLDER) < text.index(self._stop)
        self._encoder = directory.encoder()
        self._scale = directory.spec.normalization.get(COLUMNS[name])
        self._tokens_per_pass = tokens_per_pass

    def score(self, batch: VideoBatch) -> Sequence[Score]:
        """Scores of clips, on the scale of the directory if it has one for the dimension.

        A clip with fewer than two frames or (TA) a caption that spells a reserved token has none.
        """
        scores: dict[Hashable, Score] = {}
        clips: list[ClipInputs] = []
        for row, fps in enumerate(batch.fps_per_sample().tolist()):
            try:
                clips.append(self._inputs(batch, row, fps))
            except UserError as error:
                reason = f"{error.what}: {error.received or 'cannot be scored'}"
                scores[row] = Score.unscored(reason)
        for indices in token_batches([len(clip.ids) for clip in clips], self._tokens_per_pass):
            group = [clips[index] for index in indices]
            inputs = collate_clips(group)
            pixels = normalize_patches(inputs.pop("pixel_values"), self._directory.spec.pixels)
            raw = self._model.score(**inputs, pixel_values=pixels, tokens=(self._token,))
            raw = raw[:, 0].float().cpu()
            # The scale cancels in group advantages; it makes scores of runs comparable.
            if self._scale is not None:
                raw = (raw - self._scale.mean) / self._scale.std
            for clip, value in zip(group, raw.tolist(), strict=True):
                scores[clip.key] = Score.of(value)
        return [scores[row] for row in range(batch.num_samples)]

    def to(self, device: torch.device | str) -> Self:
        """Move the model, and with it every reward that shares it."""
        self._model.to(device)
        return self

    def fingerprint(self) -> dict[str, object]:
        """The directory's fingerprint, the dimension, and how it is scored here."""
        return {
            **self._directory.fingerprint(),
            "name": self._name,
            "dimension": COLUMNS[self._name],
            "normalized": self._scale is not None,
            "dtype": str(self._model.embedding.weight.dtype),
        }

    def _inputs(self, batch: VideoBatch, row: int, fps: float) -> ClipInputs:
        spec = self._directory.spec
        assert spec.sampler is not None
        # Only the frames that the model sees go to its device, and are made gray and resized.
        indices = spec.sampler.indices(batch.num_frames, fps).to(batch.video.device)
        frames = to_uint8(batch.video[row, indices].to(self._model.device))
        caption = batch.prompts[row] if self.needs_prompt else ""
        return clip_inputs(
            shown_frames(frames, spec), caption, self._encoder, key=row, stop_at=self._stop
        )


def load_videoalign(
    directory: RewardDirectory,
    names: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, VideoAlignReward]:
    """The rewards of a directory of kind ``videoreward``, with one copy of its weights."""
    model = directory.load_model(device, dtype)
    return {name: VideoAlignReward(directory, model, name) for name in names}
