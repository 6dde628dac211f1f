"""A judge that answers in text: a Qwen2-VL, Qwen2.5-VL or Qwen3-VL, from the disk only.

The model folder is a checkpoint in the layout of transformers, processor included, with

    generative.json   prompt, choice of frames, size of frames, digests of all other files

The prompt is stored, so that a later wording of ours does not change an older judge. Scoring is
greedy decoding and strict parsing; the scores come from the odds of the digits. Training and
scoring share every step from a clip to the inputs of the model.
"""

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from longtake.core.weights import read_json
from longtake.evaluation.dimensions import SCALE
from longtake.evaluation.judge.data import RatedClips
from longtake.evaluation.judge.directory import JudgeClip
from longtake.evaluation.judge.prompt import (
    CAPTION,
    AnswerTokens,
    answer_tokens,
    parse_answer,
    parse_failure,
)
from longtake.rewards.contract import Score
from longtake.rewards.frames import FrameSampler
from longtake.rewards.model_inputs import token_batches
from longtake.rewards.pixels import MERGE, PATCH, resize, resized_size
from longtake.rewards.videoalign import TOKENS_PER_PASS
from longtake.runtime.errors import CheckpointError, UserError
from longtake.runtime.files import digest, text_digest, write_json
from longtake.runtime.rng import generator

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""`model_type` in ``config.json`` of what can be loaded."""
SPEC_FILE = "generative.json"
FORMAT = 1
"""Version of ``generative.json``."""
_PER_TOKEN = ("attention_mask", "mm_token_type_ids")  # inputs beside input_ids, one value a token
_SLACK = 16  # tokens beyond the length of an answer: a wrong one is quoted that much further


@dataclass(frozen=True, kw_only=True)
class VlmSpec:
    """What the model is shown and asked."""

    prompt: str
    """The question, with the place of the caption once."""
    sampler: FrameSampler = field(default_factory=FrameSampler)
    max_frame_pixels: int = 256 * 28 * 28
    """Larger frames are scaled down to at most this area, pixels; the limits of the checkpoint's
    own processor hold after that."""


def write_vlm(folder: Path, spec: VlmSpec, model: Any, processor: Any) -> None:
    """Write the model folder, which does not exist."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest(folder / name)}
        for name in names
    }
    write_json(folder / SPEC_FILE, {"format": FORMAT, **asdict(spec), "files": files})


def read_vlm(folder: Path) -> tuple[VlmSpec, str]:
    """The settings, and the digest of everything that fixes the scores.

    Weights are checked by their size alone: reading 16 GB takes longer than scoring some clips.
    """
    record: dict[str, Any] = dict(read_json(folder / SPEC_FILE))
    try:
        if record.pop("format") != FORMAT:
            raise ValueError(f"expected format {FORMAT}")
        files: Mapping[str, Any] = record.pop("files")
        problems = [name for name, entry in files.items() if not _same(folder / name, entry)]
        spec = VlmSpec(**{**record, "sampler": FrameSampler(**record["sampler"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{SPEC_FILE} cannot be used: {error}",
            received=str(folder),
            expected="the folder as `eval judge train` wrote it",
            remedy="copy the judge again from its source",
        ) from error
    if problems or not files:
        raise CheckpointError(
            "the model of the judge is damaged",
            received=f"{', '.join(problems) or 'every file'} missing or changed in {folder}",
            remedy="copy the judge again from its source",
        )
    # Of recorded digests: those of 16 GB of weights are not taken again at every start.
    fixed = {name: entry["sha256"] for name, entry in files.items()}
    return spec, text_digest(json.dumps([asdict(spec), fixed], sort_keys=True))


def _same(path: Path, entry: Mapping[str, Any]) -> bool:
    if not path.is_file() or path.stat().st_size != entry["bytes"]:
        return False
    return path.suffix == ".safetensors" or digest(path) == entry["sha256"]


def model_digest(folder: Path) -> str:
    """See ``directory._backbone``."""
    return read_vlm(folder)[1]


def load_judge(folder: Path, dimensions: Sequence[str], device: torch.device) -> "VlmJudge":
    """See ``directory._backbone``."""
    spec, _ = read_vlm(folder)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return VlmJudge(load_model(folder, device, dtype), load_processor(folder), spec, dimensions)


def check_checkpoint(folder: Path) -> None:
    """Refuse what cannot be loaded, before the weights are read."""
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in MODEL_TYPES:
        raise CheckpointError(
            "the checkpoint is not a model that judges videos in text",
            received=f"model_type {kind!r} in {folder}",
            expected=", ".join(MODEL_TYPES),
        )
    if find_spec("torchvision") is None:  # the processors resize with it
        raise UserError(
            "this judge needs the package `torchvision`",
            received="not installed",
            remedy="pip install 'longtake[judge]'",
        )


@contextmanager
def _reading(what: str, folder: Path) -> Iterator[None]:
    """Whatever transformers raises on a damaged checkpoint, as one error that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{what} of the checkpoint cannot be read: {error}",
            received=str(folder),
            remedy="copy the checkpoint again from its source",
        ) from error


def load_processor(folder: Path) -> Any:
    """The processor of a checkpoint: tokenizer, chat template and video preprocessing."""
    from transformers import AutoProcessor

    check_checkpoint(folder)
    with _reading("the processor", folder):
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    if not processor.chat_template or processor.tokenizer.eos_token_id is None:
        raise CheckpointError(
            "the checkpoint cannot answer questions",
            received=f"{folder} has no chat template or no end-of-turn token",
            expected="an instruction-tuned checkpoint with its processor",
        )
    return processor


def load_model(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The model of a checkpoint, in evaluation mode."""
    from transformers import AutoModelForImageTextToText

    check_checkpoint(folder)
    with _reading("the weights", folder):
        model, report = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    lacking = sorted(str(name) for name in (*report["missing_keys"], *report["mismatched_keys"]))
    if lacking:  # transformers would go on with random ones
        raise CheckpointError(
            "the checkpoint lacks weights",
            received=f"{len(lacking)} tensors, such as {lacking[0]}, in {folder}",
            remedy="copy the checkpoint again from its source",
        )
    return model.to(device).eval()


@dataclass(frozen=True, kw_only=True)
class ShownClip:
    """What is kept of a clip of ``total`` frames, ``fps`` a second: all the processor needs."""

    frames: Tensor
    """uint8 [F, 3, h, w]."""
    indices: tuple[int, ...]
    """Number of each frame in the clip, from 0."""
    total: int
    fps: float


def shown_clip(frames: Tensor, fps: float, spec: VlmSpec) -> ShownClip:
    """The frames that the judge sees, of a clip uint8 [T, 3, H, W]."""
    indices = spec.sampler.indices(len(frames), fps)
    chosen = frames[indices.to(frames.device)].contiguous()
    height, width = chosen.shape[-2:]
    if height * width > spec.max_frame_pixels:
        size = resized_size(height, width, (PATCH * MERGE) ** 2, spec.max_frame_pixels)
        chosen = resize(chosen, size, "torch")
    return ShownClip(frames=chosen, indices=tuple(indices.tolist()), total=len(frames), fps=fps)


class ClipQuestions:
    """Turns clips and captions into inputs of the model; ``end`` ends a turn, and pads."""

    def __init__(self, processor: Any, spec: VlmSpec, dimensions: Sequence[str]) -> None:
        assert spec.prompt.count(CAPTION) == 1, spec.prompt
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
        """Inputs of one question, batch dimension 1."""
        problem = self.problem(caption)
        if problem:
            raise UserError(problem, received=caption[:80])
        from transformers.video_utils import VideoMetadata

        text = self._spec.prompt.replace(CAPTION, caption)
        content = [{"type": "video"}, {"type": "text", "text": text}]
        chat = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        # The processor is told which of the clip's frames these are, and the true rate: Qwen2.5-VL
        # turns that into positions in time, Qwen3-VL into written timestamps.
        metadata = VideoMetadata(
            total_num_frames=clip.total, fps=clip.fps, frames_indices=list(clip.indices)
        )
        inputs = self._processor(
            text=[chat],
            videos=[clip.frames],
            video_metadata=[metadata],
            do_sample_frames=False,
            return_tensors="pt",
        )
        return {name: torch.as_tensor(value) for name, value in inputs.items()}

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, control tokens included."""
        return str(self._processor.tokenizer.decode(list(ids), skip_special_tokens=False))


def as_batch(
    rows: Sequence[Mapping[str, Tensor]], pad: int, answers: Sequence[Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """Questions (:meth:`ClipQuestions.row`), padded on the left, and behind them their answers.

    ``answers`` are token ids of one length; None: the model will answer.
    """
    width = max(row["input_ids"].shape[1] for row in rows)
    batch: dict[str, Tensor] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name == "input_ids" or name in _PER_TOKEN:
            fill = pad if name == "input_ids" else 0
            values = [
                torch.nn.functional.pad(value, (width - value.shape[1], 0), value=fill)
                for value in values
            ]
        batch[name] = torch.cat(values)
    # Answers have one length, so padding questions on the left lines up every digit.
    if answers is not None:
        ids = torch.tensor([list(answer) for answer in answers])
        batch["input_ids"] = torch.cat([batch["input_ids"], ids], 1)
        for name in _PER_TOKEN:
            if name in batch:
                tail = torch.full_like(ids, int(name == "attention_mask"))
                batch[name] = torch.cat([batch[name], tail], 1)
    return batch


class VlmJudge:
    """A loaded judge."""

    def __init__(
        self, model: Any, processor: Any, spec: VlmSpec, dimensions: Sequence[str]
    ) -> None:
        from transformers import GenerationConfig

        self._dimensions, self._model, self._spec = tuple(dimensions), model, spec
        self._questions = ClipQuestions(processor, spec, dimensions)
        # Sampling or a repetition penalty of the checkpoint would change the answer.
        model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=len(self._questions.tokens.ids) + _SLACK,
            eos_token_id=self._questions.end,
            pad_token_id=self._questions.end,
            output_logits=True,
            return_dict_in_generate=True,
        )

    def judge(self, clips: Sequence[JudgeClip]) -> list[dict[str, Score]]:
        """Scores of clips; one that cannot be shown or parsed has a reason instead."""
        scores: list[dict[str, Score]] = [{}] * len(clips)
        numbers, rows = [], []
        for number, clip in enumerate(clips):
            try:
                shown = shown_clip(clip.frames, clip.fps, self._spec)
                rows.append(self._questions.row(shown, clip.caption))
                numbers.append(number)
            except UserError as error:
                reason = Score.unscored(f"{error.what}: {error.received}")
                scores[number] = dict.fromkeys(self._dimensions, reason)
        lengths = [row["input_ids"].shape[1] for row in rows]
        for group in token_batches(lengths, TOKENS_PER_PASS):
            answers = self._answers([rows[index] for index in group])
            for index, answer in zip(group, answers, strict=True):
                scores[numbers[index]] = answer
        return scores

    def _answers(self, rows: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Score]]:
        batch = as_batch(rows, self._questions.end)
        width, device = batch["input_ids"].shape[1], self._model.device
        with torch.inference_mode():
            made = self._model.generate(**{name: value.to(device) for name, value in batch.items()})
        # Before any processor of generate: the odds of the digits must be the model's own.
        logits = torch.stack(made.logits, 1).float().cpu()  # [B, steps, V]
        sequences = made.sequences[:, width:].tolist()
        return [self._read(ids, row) for ids, row in zip(sequences, logits, strict=True)]

    def _read(self, ids: list[int], logits: Tensor) -> dict[str, Score]:
        """Scores of an answer ``ids`` [steps] with its ``logits`` [steps, V]."""
        tokens, end = self._questions.tokens, self._questions.end
        said = ids[: ids.index(end)] if end in ids else ids
        text = self._questions.decode(said)
        digits = parse_answer(text, self._dimensions)
        expected = () if digits is None else tokens.answer(digits)[:-1]
        # The same text in other tokens fails too: its digits stand elsewhere.
        if digits is None or said[: len(expected)] != expected:
            return dict.fromkeys(self._dimensions, Score.unscored(parse_failure(text)))
        scores = tokens.expectation(logits).tolist()
        return {n: Score.of(s) for n, s in zip(self._dimensions, scores, strict=True)}


IGNORED = -100
"""Label of a token that has no part in the loss."""
_UNRATED = sum(SCALE) // 2  # stands in an answer, without a loss
_HELD_OUT_DRAWS = 2  # of the ratings of each held-out clip
Example = dict[str, int]
"""``row`` of a clip, ``draw``: names the draw of its ratings, ``held_out``: its part."""


def training_examples(num_clips: int, batch: int, updates: int, seed: int) -> list[Example]:
    """Examples of all updates in their order; every update has ``batch`` of them.

    Clips come in epochs of a drawn order, so an update follows from the arguments alone, and a
    resumed run sees what it would have seen.
    """
    rows: list[int] = []
    while len(rows) < updates * batch:
        epoch = len(rows) // num_clips
        order = torch.randperm(num_clips, generator=generator(seed, "order of clips", epoch))
        rows += order.tolist()
    return [{"row": rows[i], "draw": i, "held_out": 0} for i in range(updates * batch)]


def held_out_examples(num_clips: int) -> list[Example]:
    """Every clip with several draws of its ratings; their numbers differ from those of training."""
    return [
        {"row": row, "draw": -1 - draw, "held_out": 1}
        for draw in range(_HELD_OUT_DRAWS)
        for row in range(num_clips)
    ]


class AnswerCollator:
    """Examples of both parts as batches with labels, for supervised fine-tuning.

    An answer gives one person's rating in each dimension, not the mean of all: an update draws one
    of the ratings, so that the odds of the digits become the shares of the raters who gave them,
    and the expectation over the digits the mean rating. The loss is on the answer alone; the digit
    of a dimension that nobody rated is left out of it.

    ``cache_bytes`` bounds the memory for frames: later clips are decoded each time.
    """

    def __init__(
        self,
        parts: tuple[RatedClips, RatedClips],
        questions: ClipQuestions,
        spec: VlmSpec,
        cache_bytes: int,
        seed: int,
    ) -> None:
        self._parts, self._questions, self._spec, self._seed = parts, questions, spec, seed
        for part in parts:
            part.require_usable(questions.problem)
        self._kept: dict[tuple[int, int], ShownClip] = {}
        self._bytes_left = cache_bytes
        self._given = [
            part.ratings.groupby(["sample", "dimension"])["score"].agg(list).to_dict()
            for part in parts
        ]

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Inputs of the model, with ``labels`` [B, L]."""
        rows, answers, labels = [], [], []
        tokens = self._questions.tokens
        for example in examples:
            row, part = example["row"], example["held_out"]
            caption = self._parts[part].samples.samples[row].caption
            rows.append(self._questions.row(self._clip(part, row), caption))
            scores = self.scores(**example)
            answer = tokens.answer([_UNRATED if s is None else s for s in scores])
            answers.append(answer)
            unrated = [p for p, s in zip(tokens.positions, scores, strict=True) if s is None]
            labels.append([IGNORED if p in unrated else t for p, t in enumerate(answer)])
        batch = as_batch(rows, self._questions.end, answers)
        ignored = torch.full_like(batch["input_ids"], IGNORED)
        batch["labels"] = torch.cat([ignored[:, : -len(tokens.ids)], torch.tensor(labels)], 1)
        return batch

    def scores(self, row: int, draw: int, held_out: int) -> list[int | None]:
        """A whole score for each dimension of a clip; None: nobody rated it.

        A rating between two whole numbers becomes one of them, the nearer one more often, so that
        its mean over draws is kept.
        """
        part = self._parts[held_out]
        scores: list[int | None] = []
        for name in part.dimensions:
            given = self._given[held_out].get((part.samples.samples[row].sample, name))
            if given is None:
                scores.append(None)
                continue
            chance = generator(self._seed, "rating of a clip", row, draw, name)
            rating = given[int(torch.randint(len(given), (), generator=chance))]
            whole = math.floor(rating + float(torch.rand((), generator=chance)))
            scores.append(min(max(whole, SCALE[0]), SCALE[1]))
        return scores

    def _clip(self, part: int, row: int) -> ShownClip:
        clip = self._kept.get((part, row))
        if clip is None:
            clip = self._parts[part].prepared(row, functools.partial(shown_clip, spec=self._spec))
            if clip.frames.nbytes <= self._bytes_left:
                self._bytes_left -= clip.frames.nbytes
                self._kept[part, row] = clip
        return clip
