"""Strict loading from state dicts and files of every layout."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longtake.core.weights import write_shards
from longtake.rewards.qwen2vl.weights import (
    WEIGHTS_STEM,
    empty_reward_model,
    load_reward_model,
    public_layout,
)
from longtake.runtime.errors import CheckpointError
from longtake.tests.tiny_reward import random_prompts, tiny_config, tiny_reward_model

CONFIG = tiny_config("shared_linear", lora_rank=4)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return dict(tiny_reward_model(CONFIG, 0).state_dict())


def test_an_empty_model_takes_no_memory() -> None:
    model = empty_reward_model(CONFIG)
    tensors = [*model.parameters(), *model.buffers()]
    assert tensors and all(tensor.is_meta for tensor in tensors)


@pytest.mark.parametrize("layout", ["current", "peft"])
@pytest.mark.parametrize("shard_bytes", [2**30, 2**18])
def test_files_load_as_state_dicts_do(
    state: dict[str, torch.Tensor], layout: str, shard_bytes: int, tmp_path: Path
) -> None:
    stored = state if layout == "current" else public_layout(state, "peft")
    files = write_shards(stored, tmp_path, WEIGHTS_STEM, shard_bytes)
    assert (len(files) > 1) == (shard_bytes < 2**30)
    batch = random_prompts(CONFIG, 0, [10, 20])
    expected = tiny_reward_model(CONFIG, 0).score(**batch)
    for weights in (tmp_path, stored):
        model = load_reward_model(CONFIG, weights)
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        assert torch.equal(model.score(**batch), expected)
        loaded = model.state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_a_model_does_not_share_memory_with_its_state_dict(
    state: dict[str, torch.Tensor],
) -> None:
    model = load_reward_model(CONFIG, state)
    before = model.rm_head.weight.clone()
    state["rm_head.weight"].add_(1)
    assert torch.equal(model.rm_head.weight, before)


def test_missing_and_unexpected_keys_are_named(state: dict[str, torch.Tensor]) -> None:
    legacy = public_layout(state, "peft")
    del legacy["base_model.model.rm_head.weight"]
    legacy["base_model.model.score.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_reward_model(CONFIG, legacy)
    assert "1 missing (rm_head.weight)" in str(caught.value)
    assert "1 unexpected (score.weight)" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"missing.*base_layer"):
        load_reward_model(CONFIG, tiny_reward_model(tiny_config("shared_linear"), 0).state_dict())


def test_wrong_shapes_and_doubled_keys_are_named(state: dict[str, torch.Tensor]) -> None:
    wrong = {**state, "rm_head.weight": torch.zeros(3, 64)}
    with pytest.raises(CheckpointError, match=r"rm_head\.weight has the wrong shape"):
        load_reward_model(CONFIG, wrong)
    doubled = {**state, "base_model.model.rm_head.weight": state["rm_head.weight"]}
    with pytest.raises(CheckpointError, match="mixes key layouts"):
        load_reward_model(CONFIG, doubled)


def test_broken_files_are_named(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="weights not found"):
        load_reward_model(CONFIG, tmp_path)
    path = tmp_path / f"{WEIGHTS_STEM}.safetensors"
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"cannot read model\.safetensors"):
        load_reward_model(CONFIG, tmp_path)
