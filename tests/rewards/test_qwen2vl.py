"""The reward backbone: causality, batches, shared prefixes, LoRA and reward rows."""

import pytest
import torch

from longtake.rewards.qwen2vl.model import common_lengths, score_variants
from longtake.rewards.qwen2vl.weights import load_reward_model
from longtake.tests.tiny_reward import random_prompts, tiny_config, tiny_reward_model

VIDEO = (4, 4, 6)
IMAGE = (1, 4, 6)


def video_model(seed=0, head="shared_linear"):
    return tiny_reward_model(tiny_config(head), seed)


def row(batch, index, grid):
    """One prompt of a batch with its pictures, without padding."""
    patches = grid[0] * grid[1] * grid[2]
    length = int(batch["attention_mask"][index].sum())
    return {
        "input_ids": batch["input_ids"][index : index + 1, :length],
        "attention_mask": batch["attention_mask"][index : index + 1, :length],
        "pixel_values": batch["pixel_values"][index * patches : (index + 1) * patches],
        "grid_thw": batch["grid_thw"][index : index + 1],
    }


def difference(ours, other):
    assert ours.shape == other.shape
    return float((ours - other).abs().max())


@pytest.mark.parametrize("head", ["ranknet", "shared_linear", "diagonal_linear"])
def test_a_row_scores_the_same_alone_and_in_a_batch(head):
    for seed in range(2):
        model = video_model(seed, head)
        batch = random_prompts(model.config, seed, [40, 7, 23], VIDEO)
        together = model.score(**batch)
        assert together.shape == (3, 2 if head == "ranknet" else 3)
        alone = torch.cat([model.score(**row(batch, i, VIDEO)) for i in range(3)])
        assert difference(together, alone) <= 1e-5
        assert difference(together, together.roll(1, 0)) > 0.1  # or the comparison says nothing


def test_motion_quality_stops_at_its_token_and_never_reads_what_follows():
    model = video_model(3)
    batch = random_prompts(model.config, 3, [25, 31], VIDEO)
    scores = model.score(**batch)
    assert difference(model.score(**batch, tokens=(1,)), scores[:, 1:2]) <= 1e-5
    assert difference(model.score(**batch, tokens=(2, 0)), scores[:, [2, 0]]) <= 1e-5
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    for ids in changed["input_ids"]:
        after = (ids == model.config.reward_token_ids[1]).nonzero().item() + 1
        ids[after : after + 2] = torch.tensor([33, 34])
    other = model.score(**changed)
    assert difference(other[:, :2], scores[:, :2]) <= 1e-5
    assert difference(other[:, 2:], scores[:, 2:]) > 1e-2
    torch.testing.assert_close(
        model.score(**changed, tokens=(1,)), model.score(**batch, tokens=(1,)), rtol=0, atol=0
    )


def test_scoring_leaves_no_graph_and_restores_the_mode():
    model = tiny_reward_model(tiny_config("ranknet"), 0).requires_grad_(True)
    model.add_lora(rank=4, alpha=8, seed=0, dropout=0.5)
    model.train()
    batch = random_prompts(model.config, 0, [10], IMAGE)
    first, second = model.score(**batch), model.score(**batch)
    assert torch.equal(first, second) and not first.requires_grad  # dropout is off
    assert model.training
    assert model(**batch).requires_grad


def trained_parts(model, batch):
    """Largest gradient by parameter of a loss that treats all scores differently."""
    scores = model(**batch)
    (scores * torch.linspace(1, 2, scores.numel()).reshape(scores.shape)).sum().backward()
    return {
        name: float(parameter.grad.abs().max())
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def test_gradients_reach_lora_head_and_reward_rows_only():
    model = video_model()
    model.add_lora(rank=4, alpha=8, seed=0)
    for name, parameter in model.named_parameters():  # B starts at zero, where A has no gradient
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    rows = model.split_reward_rows().requires_grad_(True)
    model.rm_head.requires_grad_(True)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    gradients = trained_parts(model, random_prompts(model.config, 0, [12, 20], VIDEO))
    lora = {name for name in gradients if ".lora_" in name}
    assert gradients.keys() - lora == {"reward_rows", "rm_head.weight"}
    assert len(lora) == 2 * 7 * 3  # A and B, seven linear layers, three blocks
    assert all(value > 0 for value in gradients.values())
    assert rows.grad is not None and bool((rows.grad.abs().amax(1) > 0).all())


def test_the_gradient_of_the_reward_rows_is_that_of_the_embedding():
    for seed in range(2):
        model = video_model(seed)
        batch = random_prompts(model.config, seed, [12, 20], VIDEO)
        matrix = model.embedding.weight.requires_grad_(True)
        model(**batch).square().sum().backward()
        assert matrix.grad is not None
        expected = matrix.grad[list(model.config.reward_token_ids)]
        matrix.requires_grad_(False)
        rows = model.split_reward_rows().requires_grad_(True)
        model(**batch).square().sum().backward()
        assert rows.grad is not None
        torch.testing.assert_close(rows.grad, expected)


def test_a_new_lora_changes_no_score_and_is_named_by_its_seed():
    model = video_model()
    batch = random_prompts(model.config, 0, [12], VIDEO)
    before = model.score(**batch)
    model.add_lora(rank=4, alpha=8, seed=3)
    assert torch.equal(model.score(**batch), before)
    assert (model.config.lora_rank, model.config.lora_alpha) == (4, 8)
    twin = video_model()
    twin.add_lora(rank=4, alpha=8, seed=3)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(twin.named_parameters())[name]), name
        assert parameter.requires_grad == (".lora_" in name)


def test_bfloat16_backbone_keeps_a_float32_head():
    for head in ("ranknet", "shared_linear"):
        exact = tiny_reward_model(tiny_config(head), 2)
        model = load_reward_model(exact.config, exact.state_dict(), dtype=torch.bfloat16)
        assert {p.dtype for p in model.model.parameters()} == {torch.bfloat16}
        assert {p.dtype for p in model.rm_head.parameters()} == {torch.float32}
        batch = random_prompts(exact.config, 2, [30, 12], VIDEO)
        scores = model.score(**batch)
        assert scores.dtype == torch.float32
        assert not torch.equal(scores, scores.bfloat16().float())
        assert 0 < difference(scores, exact.score(**batch)) < 0.5


def two_captions(seed, keep):
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


@pytest.mark.parametrize("keep", [[30, 30], [49, 12]])
def test_variants_equal_independent_passes(keep):
    for seed in range(2):
        model, batch, variants = two_captions(seed, keep)
        pixels, grid = batch["pixel_values"], batch["grid_thw"]
        alone = [model.score(*variant, pixels, grid) for variant in variants]
        together = score_variants(model, variants, pixels, grid)
        for ours, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        assert float((alone[0] - alone[1]).abs().max()) > 1e-2
        other = variants[1][0].clone()
        other[:, 0] += 1  # prompts that differ before the picture share nothing
        variants = [variants[0], (other, variants[1][1])]
        alone = [model.score(*variant, pixels, grid) for variant in variants]
        together = score_variants(model, variants, pixels, grid)
        assert all(torch.equal(*both) for both in zip(together, alone, strict=True))


def test_common_lengths_stop_before_reward_tokens_and_padding():
    first = torch.tensor([[5, 6, 7, 150, 8], [5, 6, 150, 0, 0], [5, 6, 7, 8, 150]])
    other = torch.tensor([[5, 6, 7, 150, 8], [5, 6, 150, 0, 0], [5, 4, 7, 8, 150]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert common_lengths([(first, mask), (other, mask)], [150]).tolist() == [3, 2, 1]
    zeros = torch.zeros_like(first)  # two rows of padding agree, but share nothing
    assert common_lengths([(zeros, zeros), (zeros, zeros)], [150]).tolist() == [0, 0, 0]
