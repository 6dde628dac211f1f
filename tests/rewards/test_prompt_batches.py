import pytest
import torch

from longtake.rewards.prompt_batches import pad_prompts, token_batches
from longtake.runtime.errors import UserError
from longtake.runtime.rng import generator


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


def test_a_bound_below_one_is_refused() -> None:
    with pytest.raises(UserError, match="tokens_per_pass must be positive"):
        token_batches([1], 0)


def test_padding_is_on_the_right() -> None:
    ids, mask = pad_prompts([[7, 8, 9], [4]])
    assert ids.tolist() == [[7, 8, 9], [4, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64
