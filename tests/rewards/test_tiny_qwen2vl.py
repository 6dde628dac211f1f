"""The tiny model: small, named by its seed, and sensitive to the rotary precision."""

import torch

from longtake.rewards.tiny_qwen2vl import random_prompts, tiny_config, tiny_reward_model


def test_small_and_named_by_its_seed() -> None:
    before = torch.get_rng_state()
    model, twin, other = (tiny_reward_model(tiny_config(), seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert sum(p.numel() for p in model.model.parameters()) < 500_000
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name])
        assert not torch.equal(tensor, other.state_dict()[name])


def test_prompts_have_the_published_order() -> None:
    config = tiny_config("diagonal_linear")
    batch = random_prompts(config, 0, [5, 9], grid=(4, 4, 6))
    ids = batch["input_ids"]
    assert ids.shape == (2, 3 + 1 + 24 + 1 + 9 + 1 + 3 + 3 + 4)
    assert batch["attention_mask"].sum(1).tolist() == [45, 49]
    assert batch["pixel_values"].shape == (2 * 96, 1176)
    for row in ids:
        special = [int(token) for token in row if token >= 100]
        assert special == [102, *[101] * 24, 103, 150, 151, 152]


def test_rounded_rotary_tables_move_the_scores() -> None:
    scores = {}
    for rotary in ("float32", "bf16_frequencies", "bf16"):
        model = tiny_reward_model(tiny_config("shared_linear", rotary=rotary), 0)
        scores[rotary] = model.score(**random_prompts(model.config, 0, [60, 90], (4, 4, 6)))
    for a, b in (("float32", "bf16_frequencies"), ("bf16_frequencies", "bf16")):
        assert 1e-4 < float((scores[a] - scores[b]).abs().max()) < 0.5
