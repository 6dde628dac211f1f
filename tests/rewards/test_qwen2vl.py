"""The reward backbone: causality, batches, shared prefixes, LoRA and reward rows."""

import pytest
import torch
from torch import Tensor

from longtake.rewards.qwen2vl.config import HeadKind
from longtake.rewards.qwen2vl.model import Qwen2VLRewardModel, common_lengths, score_variants
from longtake.rewards.qwen2vl.weights import load_reward_model, merge_lora
from longtake.runtime.errors import UserError
from longtake.tests.tiny_reward import random_prompts, tiny_config, tiny_reward_model

VIDEO = (4, 4, 6)
IMAGE = (1, 4, 6)


def video_model(seed: int = 0, head: HeadKind = "shared_linear") -> Qwen2VLRewardModel:
    return tiny_reward_model(tiny_config(head), seed)


def row(batch: dict[str, Tensor], index: int, grid: tuple[int, int, int]) -> dict[str, Tensor]:
    """One prompt of a batch with its pictures, without padding."""
    patches = grid[0] * grid[1] * grid[2]
    length = int(batch["attention_mask"][index].sum())
    return {
        "input_ids": batch["input_ids"][index : index + 1, :length],
        "attention_mask": batch["attention_mask"][index : index + 1, :length],
        "pixel_values": batch["pixel_values"][index * patches : (index + 1) * patches],
        "grid_thw": batch["grid_thw"][index : index + 1],
    }


def difference(ours: Tensor, other: Tensor) -> float:
    assert ours.shape == other.shape
    return float((ours - other).abs().max())


@pytest.mark.parametrize("head", ["ranknet", "shared_linear", "diagonal_linear"])
def test_a_row_scores_the_same_alone_and_in_a_batch(head: HeadKind) -> None:
    for seed in range(2):
        model = video_model(seed, head)
        batch = random_prompts(model.config, seed, [40, 7, 23], VIDEO)
        together = model.score(**batch)
        assert together.shape == (3, 2 if head == "ranknet" else 3)
        alone = torch.cat([model.score(**row(batch, i, VIDEO)) for i in range(3)])
        assert difference(together, alone) <= 1e-5
        assert difference(together, together.roll(1, 0)) > 0.1  # or the comparison says nothing


def test_what_follows_the_last_reward_token_changes_nothing() -> None:
    model = tiny_reward_model(tiny_config("ranknet"), 1)
    batch = random_prompts(model.config, 1, [30, 30], IMAGE)
    scores = model.score(**batch)
    cut = {**batch, "input_ids": batch["input_ids"][:, :-4]}
    cut["attention_mask"] = batch["attention_mask"][:, :-4]
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][:, -4:] = torch.tensor([5, 6, 7, 8])
    for other in (cut, changed):
        torch.testing.assert_close(model.score(**other), scores, rtol=0, atol=0)
    moved = {**batch, "input_ids": batch["input_ids"].clone()}
    moved["input_ids"][:, 15] = 5
    assert difference(model.score(**moved), scores) > 1e-2


def test_the_sequence_is_cut_at_the_last_wanted_token() -> None:
    model = video_model()
    batch = random_prompts(model.config, 0, [30, 20], VIDEO)
    seen: list[int] = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    for tokens in (None, (1,), (0,)):
        model.score(**batch, tokens=tokens)
    last = (batch["input_ids"][0] == model.config.reward_token_ids[2]).nonzero().item()
    assert seen == [last + 1, last + 1 - 3, last + 1 - 6]


@pytest.mark.parametrize("head", ["shared_linear", "diagonal_linear"])
def test_motion_quality_stops_at_its_token_and_never_reads_what_follows(head: HeadKind) -> None:
    model = video_model(3, head)
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


def test_prefix_reuse_equals_independent_passes() -> None:
    model = tiny_reward_model(tiny_config("ranknet"), 4)
    batch = random_prompts(model.config, 4, [40, 40, 40], IMAGE)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    shared = 35
    prefix = model.encode_prefix(
        ids[:, :shared], mask[:, :shared], batch["pixel_values"], batch["grid_thw"]
    )
    other = ids.clone()
    other[:, shared : shared + 5] = torch.randint(1, 90, (3, 5))
    seen = []
    for variant in (ids, other, ids):  # the first again: a used prefix is as good as new
        whole = model.score(**{**batch, "input_ids": variant})
        suffix = model.score_suffix(prefix, variant[:, shared:], mask[:, shared:])
        assert difference(suffix, whole) <= 1e-5
        seen.append(suffix)
    assert difference(seen[0], seen[1]) > 1e-2
    assert torch.equal(seen[0], seen[2])


def test_prefix_rows_may_differ_in_length() -> None:
    model = tiny_reward_model(tiny_config("ranknet"), 5)
    batch = random_prompts(model.config, 5, [40, 12], IMAGE)
    whole = model.score(**batch)
    shared = torch.tensor([30, 15])
    pieces = [row(batch, i, IMAGE)["input_ids"][0] for i in range(2)]
    heads = [piece[:n] for piece, n in zip(pieces, shared.tolist(), strict=True)]
    tails = [piece[n:] for piece, n in zip(pieces, shared.tolist(), strict=True)]

    def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
        masks = [torch.ones_like(part) for part in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(rows, batch_first=True), pad(masks, batch_first=True)

    prefix = model.encode_prefix(*padded(heads), batch["pixel_values"], batch["grid_thw"])
    assert prefix.lengths.tolist() == shared.tolist()
    assert difference(model.score_suffix(prefix, *padded(tails)), whole) <= 1e-5


def test_positions_are_plain_indices_on_all_axes() -> None:
    model = video_model()
    batch = random_prompts(model.config, 0, [9, 4], VIDEO)
    seen: list[Tensor] = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    model.score(**batch)
    assert torch.equal(seen[0], torch.arange(seen[0].shape[-1]).expand(3, 2, -1))


def test_scoring_leaves_no_graph_and_restores_the_mode() -> None:
    model = tiny_reward_model(tiny_config("ranknet"), 0).train().requires_grad_(True)
    batch = random_prompts(model.config, 0, [10], IMAGE)
    first, second = model.score(**batch), model.score(**batch)
    assert torch.equal(first, second) and not first.requires_grad  # dropout of the head is off
    assert model.training
    assert model(**batch).requires_grad


def trained_parts(model: Qwen2VLRewardModel, batch: dict[str, Tensor]) -> dict[str, float]:
    """Largest gradient by parameter of a loss that treats all scores differently."""
    scores = model(**batch)
    (scores * torch.linspace(1, 2, scores.numel()).reshape(scores.shape)).sum().backward()
    return {
        name: float(parameter.grad.abs().max())
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_lora_head_and_reward_rows_only(checkpointing: bool) -> None:
    model = video_model()
    model.add_lora(rank=4, alpha=8, seed=0)
    for name, parameter in model.named_parameters():  # B starts at zero, where A has no gradient
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    rows = model.split_reward_rows().requires_grad_(True)
    model.rm_head.requires_grad_(True)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        assert model.score(**random_prompts(model.config, 0, [12], VIDEO)).isfinite().all()
    gradients = trained_parts(model, random_prompts(model.config, 0, [12, 20], VIDEO))
    lora = {name for name in gradients if ".lora_" in name}
    assert gradients.keys() - lora == {"reward_rows", "rm_head.weight"}
    assert len(lora) == 2 * 7 * 3  # A and B, seven linear layers, three blocks
    assert all(value > 0 for value in gradients.values())
    assert rows.grad is not None and bool((rows.grad.abs().amax(1) > 0).all())


def test_all_of_the_model_can_train() -> None:
    model = tiny_reward_model(tiny_config("ranknet"), 0).requires_grad_(True).train()
    gradients = trained_parts(model, random_prompts(model.config, 0, [12], IMAGE))
    assert gradients.keys() == {name for name, _ in model.named_parameters()}


def test_the_gradient_of_the_reward_rows_is_that_of_the_embedding() -> None:
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


def test_split_rows_act_and_join_again() -> None:
    model = video_model()
    batch = random_prompts(model.config, 0, [12], VIDEO)
    before, state = model.score(**batch), dict(model.state_dict())
    rows = model.split_reward_rows()
    assert rows is model.split_reward_rows() and rows.dtype == torch.float32
    assert torch.equal(model.score(**batch), before)
    with torch.no_grad():
        rows.add_(0.5)
    moved = model.score(**batch)
    assert difference(moved, before) > 1e-2
    model.join_reward_rows()
    assert model.state_dict().keys() == state.keys()
    assert torch.equal(model.score(**batch), moved)


def test_a_new_lora_changes_no_score_and_is_named_by_its_seed() -> None:
    model = video_model()
    batch = random_prompts(model.config, 0, [12], VIDEO)
    before = model.score(**batch)
    draws_before = torch.get_rng_state()
    model.add_lora(rank=4, alpha=8, seed=3)
    assert torch.equal(torch.get_rng_state(), draws_before)
    assert torch.equal(model.score(**batch), before)
    assert (model.config.lora_rank, model.config.lora_alpha) == (4, 8)
    twin = video_model()
    twin.add_lora(rank=4, alpha=8, seed=3)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(twin.named_parameters())[name]), name
        assert parameter.requires_grad == (".lora_" in name)
    with pytest.raises(UserError, match="loaded already"):
        model.add_lora(rank=4, alpha=8, seed=3)


def test_lora_dropout_acts_in_training_only() -> None:
    model = video_model()
    model.add_lora(rank=4, alpha=8, seed=0, dropout=0.5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    batch = random_prompts(model.config, 0, [12], VIDEO)
    assert torch.equal(model.score(**batch), model.score(**batch))
    model.train()
    assert not torch.equal(model(**batch), model(**batch))


def test_merged_and_unmerged_lora_score_alike() -> None:
    for seed, (rank, alpha) in enumerate([(4, 8.0), (3, 1.0)]):
        config = tiny_config("diagonal_linear", lora_rank=rank, lora_alpha=alpha)
        unmerged = tiny_reward_model(config, seed)
        state = dict(unmerged.state_dict())
        plain = config.replace(lora_rank=0)
        merged = load_reward_model(plain, merge_lora(state, alpha / rank))
        batch = random_prompts(config, seed, [12, 30], VIDEO)
        assert difference(unmerged.score(**batch), merged.score(**batch)) <= 1e-4
        without = load_reward_model(plain, merge_lora(state, 0.0))
        assert difference(without.score(**batch), merged.score(**batch)) > 1e-2


def test_bfloat16_backbone_keeps_a_float32_head() -> None:
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


def test_the_head_stays_in_float32_under_autocast() -> None:
    model = tiny_reward_model(tiny_config("ranknet"), 2)
    batch = random_prompts(model.config, 2, [30], IMAGE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model.score(**batch)
    assert scores.dtype == torch.float32 and not torch.equal(scores, scores.bfloat16().float())


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


@pytest.mark.parametrize("keep", [[30, 30], [49, 12]])
def test_variants_equal_independent_passes(keep: list[int]) -> None:
    for seed in range(2):
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
