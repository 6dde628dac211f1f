import pytest

from longtake.runtime.errors import UserError
from longtake.sandbox.captions import parse_caption
from longtake.sandbox.facts import Split, split_of
from longtake.sandbox.splits import prompts


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_prompt_proves_its_split(split: Split) -> None:
    texts = prompts(split, 200, seed=4)
    assert len(set(texts)) == 200
    for text in texts:
        for sprite in parse_caption(text).sprites:
            assert sprite.shape and sprite.colour and sprite.motion
            assert split_of(sprite.shape, sprite.colour, sprite.motion) == split


def test_lists_are_deterministic_and_grow_by_appending() -> None:
    assert prompts("train", 30, 1) == prompts("train", 50, 1)[:30]
    assert prompts("train", 30, 1) != prompts("train", 30, 2)


def test_splits_share_no_text() -> None:
    assert not set(prompts("train", 300, 0)) & set(prompts("held_out", 300, 0))


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="held_out"):
        prompts("validation", 3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="negative"):
        prompts("train", -1)
