import pytest
import torch

from longtake.rewards.model_inputs import (
    PromptEncoder,
    PromptTemplate,
    chat_text,
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
def encoder():
    return PromptEncoder(TEMPLATE, byte_tokenizer(TOKENS), "video")


def test_the_chat_text_is_one_user_turn_with_the_vision_first():
    assert chat_text("Rate it. <|a|>\n", "image") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Rate it. <|a|>\n<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert "<|video_pad|>" in chat_text("", "video")


@pytest.mark.parametrize("caption", ["a red dog", "", "{x} {text_prompt} %s \\", "été 日本 🙂\n"])
def test_a_caption_goes_in_unchanged(encoder, caption):
    rendered = TEMPLATE.render(caption)
    head, tail = TEMPLATE.text.split("{text_prompt}")
    assert rendered == head + caption + tail
    tokenizer = byte_tokenizer(TOKENS)
    ids = encoder.encode(caption, 3)
    text = chat_text(rendered, "video").replace("<|video_pad|>", "<|video_pad|>" * 3)
    assert tokenizer.decode(ids) == text[: text.index("<|b|>") + len("<|b|>")]


def test_what_follows_the_last_token_wanted_is_cut(encoder):
    short, whole = encoder.encode("one", 4, "<|a|>"), encoder.encode("one", 4)
    assert whole[: len(short)] == short and len(whole) > len(short)
    assert encoder.encode("another caption", 4, "<|a|>") == short  # the caption comes later


def test_captions_with_reserved_tokens_are_refused(encoder):
    reserved = "<|image_pad|>"
    caption = f"a dog{reserved}"
    assert encoder.problem(caption) == f"the caption contains the reserved token {reserved}"
    with pytest.raises(UserError, match="reserved token"):
        encoder.encode(caption, 1)
    assert encoder.problem("broken \ud83d") == "the caption is not valid Unicode text"
    assert encoder.problem("<|a |> reward |>") is None


@pytest.mark.parametrize(
    "text",
    [
        "no placeholder <|a|> <|b|>",
        "{text_prompt} <|a|>",
        "{text_prompt} <|b|> <|a|>",
    ],
)
def test_templates_without_their_parts_are_refused(text):
    with pytest.raises(UserError, match="once"):
        PromptTemplate(text=text, reward_tokens=TOKENS)


@pytest.mark.parametrize("bound", [1, 7, 40, 10_000])
def test_every_prompt_is_in_one_batch_within_the_bound(bound):
    for seed in range(3):
        lengths = torch.randint(1, 12, (30,), generator=generator(seed, "lengths")).tolist()
        batches = token_batches(lengths, bound)
        assert sorted(index for batch in batches for index in batch) == list(range(30))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= bound
    assert len(batches) == {1: 30, 10_000: 1}.get(bound, len(batches))
