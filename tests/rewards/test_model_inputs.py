import pytest
import torch

from longtake.rewards.model_inputs import (
    PromptEncoder,
    PromptTemplate,
    chat_text,
    pad_prompts,
    token_batches,
)
from longtake.runtime.errors import UserError
from longtake.runtime.rng import generator
from longtake.sandbox.recipes.tiny_vlm import byte_tokenizer

TOKENS = ("<|a|>", "<|b|>")
TEMPLATE = PromptTemplate(
    text="\nIs it sharp? <|a|>\nEnd\nDoes it show {text_prompt}? <|b|>\nEnd\n", reward_tokens=TOKENS
)


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(TEMPLATE, byte_tokenizer(TOKENS), "video")


def spelt(text: str) -> list[str]:
    """Tokens of a text without control tokens: one per UTF-8 byte."""
    return [token for byte in text.encode() for token in [chr(byte)]]


def test_the_chat_text_is_one_user_turn_with_the_vision_first() -> None:
    assert chat_text("Rate it. <|a|>\n", "image") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Rate it. <|a|>\n<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert "<|video_pad|>" in chat_text("", "video")


@pytest.mark.parametrize("caption", ["a red dog", "", "{x} {text_prompt} %s \\", "été 日本 🙂\n"])
def test_a_caption_goes_in_unchanged(encoder: PromptEncoder, caption: str) -> None:
    rendered = TEMPLATE.render(caption)
    head, tail = TEMPLATE.text.split("{text_prompt}")
    assert rendered == head + caption + tail
    tokenizer = byte_tokenizer(TOKENS)
    ids = encoder.encode(caption, 3)
    text = chat_text(rendered, "video").replace("<|video_pad|>", "<|video_pad|>" * 3)
    assert tokenizer.decode(ids) == text[: text.index("<|b|>") + len("<|b|>")]


def test_tokens_are_bytes_and_control_tokens_are_whole(encoder: PromptEncoder) -> None:
    tokenizer = byte_tokenizer(TOKENS)
    names = tokenizer.convert_ids_to_tokens(encoder.encode("dog", 2, "<|a|>"))
    assert names[0] == "<|im_start|>" and names[1:7] == spelt("system")
    start = names.index("<|vision_start|>")
    assert names[start : start + 4] == [
        "<|vision_start|>",
        "<|video_pad|>",
        "<|video_pad|>",
        "<|vision_end|>",
    ]
    assert names[-1] == "<|a|>" and names.count("<|a|>") == 1


def test_what_follows_the_last_token_wanted_is_cut(encoder: PromptEncoder) -> None:
    short, whole = encoder.encode("one", 4, "<|a|>"), encoder.encode("one", 4)
    assert whole[: len(short)] == short and len(whole) > len(short)
    assert encoder.encode("another caption", 4, "<|a|>") == short  # the caption comes later


@pytest.mark.parametrize("reserved", ["<|a|>", "<|image_pad|>", "<|im_end|>"])
def test_captions_with_reserved_tokens_are_refused(encoder: PromptEncoder, reserved: str) -> None:
    caption = f"a dog{reserved}"
    assert encoder.problem(caption) == f"the caption contains the reserved token {reserved}"
    with pytest.raises(UserError, match="reserved token"):
        encoder.encode(caption, 1)


def test_captions_that_only_look_like_tokens_pass(encoder: PromptEncoder) -> None:
    for caption in ("<|a |>", "<a>", "im_end", "reward |>"):
        assert encoder.problem(caption) is None
        tokens = byte_tokenizer(TOKENS).convert_ids_to_tokens(encoder.encode(caption, 1))
        assert tokens.count("<|a|>") == tokens.count("<|im_start|>") - 1 == 1


def test_half_a_surrogate_pair_is_a_reason_and_no_crash(encoder: PromptEncoder) -> None:
    assert encoder.problem("broken \ud83d") == "the caption is not valid Unicode text"


@pytest.mark.parametrize(
    "text",
    [
        "no placeholder <|a|> <|b|>",
        "{text_prompt} <|a|>",
        "{text_prompt} <|b|> <|a|>",
        "{text_prompt} {text_prompt} <|a|> <|b|>",
        "{text_prompt} <|a|> <|a|> <|b|>",
    ],
)
def test_templates_without_their_parts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="once"):
        PromptTemplate(text=text, reward_tokens=TOKENS)


@pytest.mark.parametrize("bound", [1, 7, 40, 10_000])
def test_every_prompt_is_in_one_batch_within_the_bound(bound: int) -> None:
    for seed in range(3):
        lengths = torch.randint(1, 12, (30,), generator=generator(seed, "lengths")).tolist()
        batches = token_batches(lengths, bound)
        assert sorted(index for batch in batches for index in batch) == list(range(30))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= bound
    assert len(batches) == {1: 30, 10_000: 1}.get(bound, len(batches))


def test_batches_are_filled_with_prompts_of_similar_length() -> None:
    assert token_batches([3, 9, 4, 8, 3], 16) == [[1], [3, 2], [0, 4]]
    assert token_batches([5, 5, 5, 5], 10) == [[0, 1], [2, 3]]
    assert token_batches([], 10) == []


def test_padding_is_on_the_right() -> None:
    ids, mask = pad_prompts([[7, 8, 9], [4]])
    assert ids.tolist() == [[7, 8, 9], [4, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64
