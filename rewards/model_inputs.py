"""A clip with its caption as inputs of a Qwen2-VL reward: prompt, tokenizer, token ids, patches.

A caption reaches the model unchanged or not at all. Text that spells a token with a meaning of its
own (a reward token, a vision token, the end of a turn) would be read as that token, so such a
caption is refused with a reason and its clip stays unscored.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from longtake.core.weights import read_json
from longtake.rewards.frames import FRAME_PAIR, to_grayscale
from longtake.rewards.pixels import (
    PATCH,
    Grid,
    num_tokens,
    patchify,
    resize,
    resized_size,
)
from longtake.rewards.qwen2vl.config import RewardModelConfig
from longtake.rewards.spec import RewardSpec, Vision
from longtake.runtime.errors import CheckpointError, UserError

PLACEHOLDER = "{text_prompt}"
VISION_PADS: dict[Vision, str] = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
CHAT_TOKENS = (TURN_START, TURN_END, VISION_START, VISION_END, *VISION_PADS.values())
"""Tokens of the chat format, which the tokenizer of a reward must have."""
_SYSTEM = "You are a helpful assistant."  # the system turn that Qwen2-VL's chat template adds


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """User text of a reward prompt: the placeholder and each reward token once, in their order."""

    text: str
    reward_tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        counts = {part: self.text.count(part) for part in (PLACEHOLDER, *self.reward_tokens)}
        positions = [self.text.find(token) for token in self.reward_tokens]
        if any(count != 1 for count in counts.values()) or positions != sorted(positions):
            raise UserError(
                "the prompt template cannot be used",
                received=", ".join(f"{part} {count} times" for part, count in counts.items()),
                expected="the placeholder and every reward token once, the tokens in order",
                remedy="import the reward again from its source",
            )

    def render(self, caption: str) -> str:
        """The text with the caption in its place; braces in the caption stay as they are."""
        return self.text.replace(PLACEHOLDER, caption)


def chat_text(user_text: str, vision: Vision) -> str:
    """One user turn with one image or video before the text, as Qwen2-VL's chat template writes it.

    The vision token stands once; :meth:`PromptEncoder.encode` repeats it.
    """
    return (
        f"{TURN_START}system\n{_SYSTEM}{TURN_END}\n"
        f"{TURN_START}user\n{VISION_START}{VISION_PADS[vision]}{VISION_END}{user_text}{TURN_END}\n"
        f"{TURN_START}assistant\n"
    )


class PromptEncoder:
    """Captions to token ids; the tokenizer has the reward tokens and those of the chat format."""

    def __init__(
        self, template: PromptTemplate, tokenizer: PreTrainedTokenizerFast, vision: Vision
    ) -> None:
        self.template, self.vision = template, vision
        self._tokenizer = tokenizer
        self._reserved = sorted(tokenizer.get_added_vocab())
        self._pad_id = tokenizer.convert_tokens_to_ids(VISION_PADS[vision])

    def problem(self, caption: str) -> str | None:
        """Why a caption cannot be scored, None when it can."""
        for token in self._reserved:
            if token in caption:
                return f"the caption contains the reserved token {token}"
        # Half a surrogate pair, which JSON can spell, has no UTF-8; the tokenizer would panic.
        is_text = not any("\ud800" <= letter <= "\udfff" for letter in caption)
        return None if is_text else "the caption is not valid Unicode text"

    def encode(self, caption: str, num_vision_tokens: int, stop_at: str | None = None) -> list[int]:
        """Token ids of the prompt up to the reward token ``stop_at``, or to the template's last.

        What follows it cannot move its score. A caption that cannot be scored is a UserError.
        """
        if reason := self.problem(caption):
            raise UserError(reason, expected="plain text")
        stop = self.template.reward_tokens[-1] if stop_at is None else stop_at
        text = chat_text(self.template.render(caption), self.vision)
        kept = text[: text.index(stop) + len(stop)]
        ids: Sequence[int] = self._tokenizer(kept, add_special_tokens=False)["input_ids"]
        pad = ids.index(self._pad_id)
        return [*ids[:pad], *[self._pad_id] * num_vision_tokens, *ids[pad + 1 :]]


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a local directory; nothing is downloaded and no code of it is run.

    The directory is one that transformers' ``AutoTokenizer`` reads, or has a bare
    ``tokenizer.json``.
    """
    path = Path(folder)
    single = path / "tokenizer.json"
    try:
        if single.is_file():
            read_json(single)  # the tokenizers library raises a bare Exception on a cut file
            if not (path / "tokenizer_config.json").is_file():
                return PreTrainedTokenizerFast(tokenizer_file=str(single))
        # A name that is no folder would be looked up on the hub.
        return AutoTokenizer.from_pretrained(path.resolve(strict=True), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise CheckpointError(
            f"the tokenizer cannot be read: {error}",
            received=str(path),
            expected="a directory with tokenizer.json or with vocab.json and merges.txt",
            remedy="copy the tokenizer files of Qwen2-VL-Instruct into one folder",
        ) from error


def add_reward_tokens(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[str]) -> int:
    """Append the reward tokens that the tokenizer lacks, as special tokens; how many there were."""
    missing = [token for token in tokens if token not in tokenizer.get_added_vocab()]
    tokenizer.add_tokens(missing, special_tokens=True)
    return len(missing)


def check_tokenizer(
    tokenizer: PreTrainedTokenizerFast, config: RewardModelConfig, reward_tokens: Sequence[str]
) -> None:
    """Refuse a tokenizer whose tokens have other ids or another number than the model's."""
    added = tokenizer.get_added_vocab()
    backbone = config.backbone
    expected = {
        **dict.fromkeys(CHAT_TOKENS),
        VISION_START: backbone.vision_start_token_id,
        VISION_END: backbone.vision_end_token_id,
        VISION_PADS["image"]: backbone.image_token_id,
        VISION_PADS["video"]: backbone.video_token_id,
        **dict(zip(reward_tokens, config.reward_token_ids, strict=True)),
    }
    problems = [
        f"{token} is missing" if token not in added else f"{token} has id {added[token]}, not {id_}"
        for token, id_ in expected.items()
        if token not in added or (id_ is not None and added[token] != id_)
    ]
    rows = backbone.text_config.vocab_size
    if len(tokenizer) != rows:
        problems.append(f"{len(tokenizer)} tokens for {rows} embedding rows")
    if problems:
        raise CheckpointError(
            "the tokenizer does not fit the model",
            received="; ".join(problems),
            expected=f"that of Qwen2-VL-Instruct (a turn ends with {TURN_END}), and reward tokens",
        )


def token_batches(lengths: Sequence[int], tokens_per_pass: int) -> list[list[int]]:
    """Indices of prompts in batches of at most ``tokens_per_pass`` tokens, padding included.

    Prompts are sorted by length, so that little of a batch is padding, the longest first, so that
    too high a bound shows at once. A prompt that is longer than the bound goes alone: the bound is
    for memory, and refuses nothing.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens_per_pass:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def pad_prompts(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids of B prompts as input ids and attention mask, int64 [B, L], padded on the right."""
    ids = [torch.tensor(prompt) for prompt in prompts]
    masks = [torch.ones_like(row) for row in ids]
    return pad_sequence(ids, batch_first=True), pad_sequence(masks, batch_first=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipInputs:
    """One clip or image with its prompt; equal keys for equal inputs."""

    key: Hashable
    ids: list[int]
    """Token ids up to the last reward token that is read."""
    patches: Tensor
    """[t h w, 1176] uint8, of resized frames."""
    grid: Grid


def shown_frames(frames: Tensor, spec: RewardSpec) -> Tensor:
    """Chosen frames uint8 [F, 3, H, W] in the colour and size that the model sees."""
    if spec.color_mode != "rgb":
        frames = to_grayscale(frames, spec.color_mode)
    pixels = spec.pixels
    height, width = frames.shape[-2:]
    size = resized_size(height, width, pixels.min_pixels, pixels.max_pixels)
    return resize(frames.contiguous(), size, pixels.resample)


def clip_inputs(
    frames: Tensor, prompt: str, encoder: PromptEncoder, *, key: Hashable, stop_at: str | None
) -> ClipInputs:
    """Inputs of a clip (of an image: of one frame) from its :func:`shown_frames`.

    They are not resized a second time, which could change them.
    """
    height, width = frames.shape[-2:]
    grid = (max(1, len(frames) // FRAME_PAIR), height // PATCH, width // PATCH)
    return ClipInputs(
        key=key,
        ids=encoder.encode(prompt, num_tokens(grid), stop_at),
        patches=patchify(frames),  # a quarter of the bytes of normalised ones on their way
        grid=grid,
    )


def collate_clips(clips: Sequence[ClipInputs]) -> dict[str, Tensor]:
    """Arguments of the reward model for C clips; ``pixel_values`` are uint8, not normalised."""
    ids, mask = pad_prompts([clip.ids for clip in clips])
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": torch.cat([clip.patches for clip in clips]),
        "grid_thw": torch.tensor([clip.grid for clip in clips]),
    }
