"""Prompts that share a beginning score as they do alone, and the beginning runs once."""

import pytest
import torch
from torch import Tensor

from longtake.rewards.qwen2vl.model import Qwen2VLRewardModel, common_lengths, score_variants
from longtake.runtime.errors import UserError
from longtake.tests.tiny_reward import random_prompts, tiny_config, tiny_reward_model

Variant = tuple[Tensor, Tensor]


def counted(model: Qwen2VLRewardModel) -> dict[str, int]:
    """Tokens of the language model and calls of the vision tower from now on."""
    work = {"tokens": 0, "vision": 0}

    def language(module: object, args: object, kwargs: dict[str, Tensor]) -> None:
        work["tokens"] += kwargs["inputs_embeds"].shape[0] * kwargs["inputs_embeds"].shape[1]

    def vision(module: object, args: object) -> None:
        work["vision"] += 1

    model.model.language_model.register_forward_pre_hook(language, with_kwargs=True)
    model.model.visual.register_forward_pre_hook(vision)
    return work


def two_captions(
    seed: int, keep: list[int]
) -> tuple[Qwen2VLRewardModel, dict[str, Tensor], list[Variant]]:
    """A model, a batch, and its prompts with two texts that part after ``keep`` tokens of a row."""
    model = tiny_reward_model(tiny_config("ranknet"), seed)
    batch = random_prompts(model.config, seed, [40] * len(keep))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    rows = []
    for prompt, length in zip(ids, keep, strict=True):
        caption = torch.tensor([(int(prompt[length]) + 1) % 90 + 1, 17, 18])  # parts at once
        rows.append(torch.cat([prompt[:length], caption, torch.tensor([150, 9])]))
    other = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    other_mask = torch.nn.utils.rnn.pad_sequence(
        [torch.ones_like(row) for row in rows], batch_first=True
    )
    return model, batch, [(ids, mask), (other, other_mask)]


@pytest.mark.parametrize("keep", [[30, 30], [30, 21], [49, 12]])
def test_variants_equal_independent_passes(keep: list[int]) -> None:
    for seed in range(3):
        model, batch, variants = two_captions(seed, keep)
        pixels, grid = batch["pixel_values"], batch["grid_thw"]
        alone = [model.score(*variant, pixels, grid) for variant in variants]
        together = score_variants(model, variants, pixels, grid)
        for ours, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        assert float((alone[0] - alone[1]).abs().max()) > 1e-2


def test_the_beginning_is_computed_once() -> None:
    model, batch, variants = two_captions(0, [30, 30])
    work = counted(model)
    score_variants(model, variants, batch["pixel_values"], batch["grid_thw"])
    # 51 + 1 tokens up to the reward token of the first text, 30 + 3 + 1 of the second.
    assert work == {"tokens": 2 * (30 + (52 - 30) + (34 - 30)), "vision": 1}


def test_common_lengths_stop_before_reward_tokens_and_padding() -> None:
    first = torch.tensor([[5, 6, 7, 150, 8], [5, 6, 150, 0, 0], [5, 6, 7, 8, 150]])
    other = torch.tensor([[5, 6, 7, 150, 8], [5, 6, 150, 0, 0], [5, 4, 7, 8, 150]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert common_lengths([(first, mask), (other, mask)], [150]).tolist() == [3, 2, 1]
    zeros = torch.zeros_like(first)  # two rows of padding agree, but share nothing
    assert common_lengths([(zeros, zeros), (zeros, zeros)], [150]).tolist() == [0, 0, 0]


def test_prompts_that_differ_before_the_picture_run_alone() -> None:
    model, batch, variants = two_captions(1, [30, 30])
    changed = variants[1][0].clone()
    changed[:, 0] += 1
    variants[1] = (changed, variants[1][1])
    work = counted(model)
    ours = score_variants(model, variants, batch["pixel_values"], batch["grid_thw"])
    assert work["vision"] == 2
    for scores, variant in zip(ours, variants, strict=True):
        expected = model.score(*variant, batch["pixel_values"], batch["grid_thw"])
        assert torch.equal(scores, expected)


def test_misfits_are_explained() -> None:
    model, batch, variants = two_captions(0, [30, 30])
    short = (variants[1][0][:1], variants[1][1][:1])
    for wrong in ([], [variants[0], short]):
        with pytest.raises(UserError, match="do not fit each other"):
            score_variants(model, wrong, batch["pixel_values"], batch["grid_thw"])
