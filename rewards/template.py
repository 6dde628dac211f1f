"""The prompt of a Qwen2-VL reward: a template with a caption, in the chat format, as token ids.

A caption reaches the model unchanged or not at all. Text that spells a token with a meaning of its
own (a reward token, a vision token, the end of a turn) would be read as that token, so such a
caption is refused with a reason and its clip stays unscored.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from longtake.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PLACEHOLDER = "{text_prompt}"
Vision = Literal["image", "video"]
VISION_PADS: dict[Vision, str] = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
CHAT_TOKENS = (TURN_START, TURN_END, VISION_START, VISION_END, *VISION_PADS.values())
"""Tokens of the chat format, which the tokenizer of a reward must have."""
_SYSTEM = "You are a helpful assistant."  # the system turn that Qwen2-VL's chat template adds


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """User text of a reward prompt.

    Args:
        text: with the placeholder ``{text_prompt}`` once and each reward token once.
        reward_tokens: in the order in which they stand in the text.

    Raises:
        UserError: a placeholder or a token that is missing, doubled or out of order.
    """

    text: str
    reward_tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        needed = (PLACEHOLDER, *self.reward_tokens)
        counts = {part: self.text.count(part) for part in needed}
        places = [self.text.find(token) for token in self.reward_tokens]
        if any(count != 1 for count in counts.values()) or places != sorted(places):
            raise UserError(
                "the prompt template cannot be used",
                received=", ".join(f"{part} {count} times" for part, count in counts.items()),
                expected="the placeholder and every reward token once, the tokens in order",
                remedy="import the reward again from its source",
            )

    @property
    def sha256(self) -> str:
        """Digest of the text."""
        return text_digest(self.text)

    def render(self, caption: str) -> str:
        """The text with the caption in its place; braces in the caption stay as they are."""
        return self.text.replace(PLACEHOLDER, caption)


def prompt_key(prompt: str) -> str:
    """The prompt without case and extra spaces: what tells two prompts apart."""
    return " ".join(prompt.casefold().split())


def text_digest(text: str) -> str:
    """sha256 of the UTF-8 bytes of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


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
    """Captions to token ids.

    Args:
        template: of the reward.
        tokenizer: with the reward tokens and the tokens of the chat format.
        vision: whether the reward sees still images or clips.
    """

    def __init__(
        self, template: PromptTemplate, tokenizer: "PreTrainedTokenizerFast", vision: Vision
    ) -> None:
        self.template = template
        self.vision = vision
        self._tokenizer = tokenizer
        self._reserved = sorted(tokenizer.get_added_vocab())
        self._pad_id = tokenizer.convert_tokens_to_ids(VISION_PADS[vision])

    def problem(self, caption: str) -> str | None:
        """Why a caption cannot be scored, None when it can."""
        found = [token for token in self._reserved if token in caption]
        if found:
            return f"the caption contains the reserved token {found[0]}"
        try:
            caption.encode("utf-8")
        except UnicodeEncodeError:
            return "the caption is not valid Unicode text"
        return None

    def encode(self, caption: str, num_vision_tokens: int, stop_at: str | None = None) -> list[int]:
        """Token ids of the prompt up to a reward token; what follows it cannot move its score.

        Args:
            caption: one for which :meth:`problem` is None.
            num_vision_tokens: merged patches of the image or clip.
            stop_at: the last token kept; None is the template's last reward token.

        Raises:
            UserError: a caption that cannot be scored.
        """
        reason = self.problem(caption)
        if reason is not None:
            raise UserError(reason, expected="plain text", remedy="rewrite the caption")
        stop = self.template.reward_tokens[-1] if stop_at is None else stop_at
        text = chat_text(self.template.render(caption), self.vision)
        kept = text[: text.index(stop) + len(stop)]
        ids: Sequence[int] = self._tokenizer(kept, add_special_tokens=False)["input_ids"]
        place = ids.index(self._pad_id)
        return [*ids[:place], *[self._pad_id] * num_vision_tokens, *ids[place + 1 :]]
