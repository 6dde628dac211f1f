"""Clips as inputs of a judge that answers in text; training and scoring share every step.

Frames are chosen here, and the processor is told which of the clip's frames they are and its true
rate: Qwen2.5-VL turns that into positions in time, Qwen3-VL into written timestamps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longtake.evaluation.judge.answer import CAPTION
from longtake.evaluation.judge.answer_tokens import AnswerTokens, answer_tokens
from longtake.evaluation.judge.generative_directory import GenerativeSpec
from longtake.rewards.pixels import MERGE, PATCH, resize, resized_size
from longtake.runtime.errors import UserError

_PER_TOKEN = ("attention_mask", "mm_token_type_ids")
"""Inputs with a value for each token, beside ``input_ids``."""


@dataclass(frozen=True, kw_only=True)
class ShownClip:
    """What is kept of a clip: all that the processor needs."""

    frames: Tensor
    """uint8 [F, 3, h, w]."""
    indices: tuple[int, ...]
    """Number of each frame in the clip, from 0."""
    total: int
    """Frames of the clip."""
    fps: float
    """Frames per second of the clip."""

    @property
    def nbytes(self) -> int:
        """Memory, bytes."""
        return self.frames.nbytes


def shown_clip(frames: Tensor, fps: float, spec: GenerativeSpec) -> ShownClip:
    """Frames that the judge sees.

    Args:
        frames: uint8 [T, 3, H, W].
        fps: playback rate.
        spec: of the judge.

    Raises:
        UserError: a clip that is too short, or of an unusable size.
    """
    indices = spec.sampler.indices(len(frames), fps)
    chosen = frames[indices.to(frames.device)].contiguous()
    height, width = chosen.shape[-2:]
    if height * width > spec.max_frame_pixels:
        size = resized_size(height, width, (PATCH * MERGE) ** 2, spec.max_frame_pixels)
        chosen = resize(chosen, size, "torch")
    return ShownClip(
        frames=chosen, indices=tuple(indices.tolist()), total=len(frames), fps=float(fps)
    )


class ClipQuestions:
    """Turns clips and captions into model inputs.

    Args:
        processor: of the checkpoint.
        spec: of the judge.
        dimensions: lines of the answer.

    Attributes:
        tokens: the answer's.

    Raises:
        CheckpointError: a tokenizer that cannot write the answer.
    """

    def __init__(self, processor: Any, spec: GenerativeSpec, dimensions: Sequence[str]) -> None:
        self._processor, self._spec = processor, spec
        tokenizer = processor.tokenizer
        self._reserved = tuple(tokenizer.get_added_vocab())
        self.end = int(tokenizer.eos_token_id)
        self.tokens: AnswerTokens = answer_tokens(
            lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]),
            self.end,
            dimensions,
        )

    def problem(self, caption: str) -> str | None:
        """Why a caption cannot be asked about, or None."""
        if not caption.strip():
            return "the clip has no caption"
        spelled = [token for token in self._reserved if token in caption]
        return f"the caption spells the reserved token {spelled[0]}" if spelled else None

    def row(self, clip: ShownClip, caption: str) -> dict[str, Tensor]:
        """Inputs of one question, batch dimension 1.

        Raises:
            UserError: a caption that cannot be used.
        """
        problem = self.problem(caption)
        if problem:
            raise UserError(problem, received=caption[:80])
        from transformers.video_utils import VideoMetadata

        text = self._spec.prompt.replace(CAPTION, caption)
        content = [{"type": "video"}, {"type": "text", "text": text}]
        chat = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        found = self._processor(
            text=[chat],
            videos=[clip.frames],
            video_metadata=[
                VideoMetadata(
                    total_num_frames=clip.total, fps=clip.fps, frames_indices=list(clip.indices)
                )
            ],
            do_sample_frames=False,
            return_tensors="pt",
        )
        return {
            name: value if isinstance(value, Tensor) else torch.tensor(value)
            for name, value in found.items()
        }

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, control tokens included."""
        return str(self._processor.tokenizer.decode(list(ids), skip_special_tokens=False))


def as_batch(
    rows: Sequence[Mapping[str, Tensor]], pad: int, answers: Sequence[Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """Questions, padded on the left, and behind them answers of one length.

    Args:
        rows: from :meth:`ClipQuestions.row`.
        pad: id of the token that pads.
        answers: token ids of the answer to each question; None: the model will answer.
    """
    width = max(row["input_ids"].shape[1] for row in rows)
    batch: dict[str, Tensor] = {}
    for name in rows[0]:
        if name == "input_ids" or name in _PER_TOKEN:
            value = pad if name == "input_ids" else 0
            padded = [_left(row[name], width, value) for row in rows]
            batch[name] = torch.cat(padded)
        else:
            batch[name] = torch.cat([row[name] for row in rows])
    if answers is not None:
        ids = torch.tensor([list(answer) for answer in answers])
        batch["input_ids"] = torch.cat([batch["input_ids"], ids], 1)
        for name in _PER_TOKEN:
            if name in batch:
                added = torch.full_like(ids, int(name == "attention_mask"))
                batch[name] = torch.cat([batch[name], added], 1)
    return batch


def _left(row: Tensor, width: int, value: int) -> Tensor:
    return torch.nn.functional.pad(row, (width - row.shape[1], 0), value=value)
