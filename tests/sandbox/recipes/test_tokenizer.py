"""The tiny byte-level tokenizer, with and without learned merges."""

import pytest

from longtake.rewards.template import CHAT_TOKENS
from longtake.sandbox.recipes.tokenizer import byte_tokenizer

TEXTS = ["a red circle goes left", "a blue circle goes right", "the red square stands still"] * 4
STRANGE = "Größe 7 € \u6c34\t<x> a red  circle"


@pytest.mark.parametrize("texts", [(), TEXTS])
def test_every_text_survives_and_control_tokens_are_single(texts):
    tokenizer = byte_tokenizer(("<|R|>",), texts)
    for text in (*TEXTS[:3], STRANGE):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    for token in (*CHAT_TOKENS, "<|R|>"):
        assert tokenizer(f"a{token}b", add_special_tokens=False)["input_ids"] == [
            *tokenizer("a")["input_ids"],
            tokenizer.convert_tokens_to_ids(token),
            *tokenizer("b")["input_ids"],
        ]
    assert byte_tokenizer(("<|R|>",), texts).get_vocab() == tokenizer.get_vocab()


def test_without_texts_a_token_is_a_byte():
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == 256 + len(CHAT_TOKENS)
    assert len(tokenizer(STRANGE)["input_ids"]) == len(STRANGE.encode())


def test_words_of_the_texts_become_tokens():
    tokenizer = byte_tokenizer((), TEXTS, vocab_size=400)
    words = tokenizer.tokenize("a red circle")
    assert words == ["a", "Ġred", "Ġcircle"]  # Ġ is the byte-level name of a space
    assert len(byte_tokenizer((), TEXTS, vocab_size=260)) == 260 + len(CHAT_TOKENS)
