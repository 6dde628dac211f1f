"""A judge that answers in text: greedy decoding, strict parsing, scores from the digits' odds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtake.evaluation.judge.answer import parse_answer, parse_failure
from longtake.evaluation.judge.contract import JudgeClip, Verdict
from longtake.evaluation.judge.generative_directory import GenerativeSpec, read_generative
from longtake.evaluation.judge.generative_inputs import ClipQuestions, as_batch, shown_clip
from longtake.evaluation.judge.vlm_checkpoint import load_processor, load_vlm
from longtake.rewards.prompt_batches import token_batches
from longtake.rewards.videoalign import TOKENS_PER_PASS
from longtake.runtime.errors import UserError

_SLACK = 16
"""Tokens beyond the length of an answer: a wrong one is quoted that much further."""


class GenerativeJudge:
    """Implements :class:`longtake.evaluation.judge.contract.JudgeModel`.

    Args:
        model: a vision-language model of transformers; its generation settings are replaced,
            because sampling or a repetition penalty of the checkpoint would change the answer.
        processor: of the same checkpoint.
        spec: how it is asked.
        dimensions: what it scores.
        tokens_per_pass: bound on the tokens of one forward pass; a longer clip goes alone.

    Raises:
        CheckpointError: a tokenizer that cannot write the answer.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        spec: GenerativeSpec,
        dimensions: Sequence[str],
        *,
        tokens_per_pass: int = TOKENS_PER_PASS,
    ) -> None:
        from transformers import GenerationConfig

        self.dimensions = tuple(dimensions)
        self._model, self._spec = model, spec
        self._questions = ClipQuestions(processor, spec, dimensions)
        self._tokens_per_pass = tokens_per_pass
        model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=len(self._questions.tokens.ids) + _SLACK,
            eos_token_id=self._questions.end,
            pad_token_id=self._questions.end,
            output_logits=True,
            return_dict_in_generate=True,
        )

    def judge(self, clips: Sequence[JudgeClip]) -> list[Verdict]:
        """Verdicts of clips; one that cannot be shown or parsed has a reason instead."""
        verdicts = [self._none("")] * len(clips)
        rows: list[tuple[int, dict[str, Tensor]]] = []
        for number, clip in enumerate(clips):
            try:
                shown = shown_clip(clip.frames, clip.fps, self._spec)
                rows.append((number, self._questions.row(shown, clip.caption)))
            except UserError as error:
                verdicts[number] = self._none(f"{error.what}: {error.received}")
        lengths = [row["input_ids"].shape[1] for _, row in rows]
        for group in token_batches(lengths, self._tokens_per_pass):
            found = self._answers([rows[index][1] for index in group])
            for index, verdict in zip(group, found, strict=True):
                verdicts[rows[index][0]] = verdict
        return verdicts

    def to(self, device: torch.device) -> "GenerativeJudge":
        """Move the weights."""
        self._model.to(device)
        return self

    def _answers(self, rows: Sequence[Mapping[str, Tensor]]) -> list[Verdict]:
        end = self._questions.end
        batch = as_batch(rows, end)
        width = batch["input_ids"].shape[1]
        device = self._model.device
        with torch.inference_mode():
            made = self._model.generate(**{name: value.to(device) for name, value in batch.items()})
        logits = torch.stack(made.logits, 1).float().cpu()  # [B, steps, V]
        return [
            self._verdict(row.tolist(), logits[number])
            for number, row in enumerate(made.sequences[:, width:].cpu())
        ]

    def _verdict(self, ids: list[int], logits: Tensor) -> Verdict:
        """Verdict on an answer ``ids`` [steps] with its ``logits`` [steps, V]."""
        tokens, end = self._questions.tokens, self._questions.end
        said = ids[: ids.index(end)] if end in ids else ids
        text = self._questions.decode(said)
        try:
            digits = parse_answer(text, self.dimensions)
        except ValueError as error:
            return self._none(str(error))
        known = tokens.answer(digits)[:-1]
        if said[: len(known)] != known:  # the same text in other tokens: the digits' places differ
            return self._none(parse_failure(text))
        scores = tokens.expectation(logits).tolist()
        if not all(abs(score) < float("inf") for score in scores):
            return self._none("the score is not finite")
        return Verdict(scores=tuple(scores))

    def _none(self, reason: str) -> Verdict:
        return Verdict(scores=(None,) * len(self.dimensions), reason=reason)


def generative_digest(folder: Path) -> str:
    """Digest of everything that fixes the scores."""
    return read_generative(folder)[1]


def load_generative(
    folder: Path, dimensions: Sequence[str], device: torch.device
) -> GenerativeJudge:
    """Load a judge; bfloat16 on a GPU, float32 on a CPU.

    Raises:
        CheckpointError: a damaged folder.
        UserError: an optional package is missing.
    """
    spec, _ = read_generative(folder)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = load_vlm(folder, device, dtype)
    return GenerativeJudge(model, load_processor(folder), spec, dimensions)
