"""LoRA: seeded injection, exact switching, stacking, and the two file layouts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from longtake.core.dit import DiTConfig, LongCatDiT
from longtake.core.lora import (
    TARGETS,
    active_adapters,
    adapters_off,
    add_lora,
    load_lora,
    load_lora_state_dict,
    lora_layers,
    lora_parameters,
    lora_state_dict,
    lora_weights,
    save_lora,
    target_modules,
)
from longtake.core.lora_files import PUBLISHED_DOT, from_published, read_lora, to_published
from longtake.runtime.errors import CheckpointError, UserError

GOLDEN_LORA = Path(__file__).parents[1] / "data" / "dit_lora.safetensors"
CONFIG = DiTConfig(
    hidden_size=32,
    depth=2,
    num_heads=2,
    caption_channels=12,
    adaln_tembed_dim=16,
    frequency_embedding_size=16,
)
GOLDEN_CONFIG = DiTConfig(
    hidden_size=128,
    depth=2,
    num_heads=2,
    caption_channels=48,
    adaln_tembed_dim=32,
    frequency_embedding_size=64,
)


def build(config: DiTConfig = CONFIG) -> LongCatDiT:
    dit = LongCatDiT(config).requires_grad_(False)
    source = torch.Generator().manual_seed(0)
    for parameter in dit.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.1)
    return dit.eval()


def forward(dit: LongCatDiT) -> Tensor:
    source = torch.Generator().manual_seed(1)
    z = torch.randn(2, 16, 2, 4, 4, generator=source)
    text = torch.randn(2, 1, 5, dit.config.caption_channels, generator=source)
    return dit(z, torch.tensor([300.0, 900.0]), text, torch.ones(2, 5, dtype=torch.int64))


def randomise(dit: LongCatDiT, name: str = "default", seed: int = 2) -> None:
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora_parameters(dit, name).values():
            parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.2)


def test_targets_are_the_linears_of_the_blocks() -> None:
    dit = build()
    expected = {f"blocks.{i}.{target}" for i in range(2) for target in TARGETS}
    assert set(target_modules(dit)) == expected
    add_lora(dit, rank=4, alpha=2, seed=0)
    assert set(lora_layers(dit)) == set(target_modules(dit)) == expected


def test_fresh_adapter_is_the_identity_and_the_only_trainable_part() -> None:
    dit = build()
    before = forward(dit)
    assert add_lora(dit, rank=4, alpha=2, seed=0) is dit
    assert torch.equal(forward(dit), before)
    trainable = {name for name, p in dit.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * 2 * len(TARGETS)
    assert all(".lora_" in name for name in trainable)


def test_initial_values_are_named_by_seed_and_layer() -> None:
    first = lora_state_dict(add_lora(build(), 4, 2, seed=7))
    dit = build()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = lora_state_dict(add_lora(dit, 4, 2, seed=7))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    other = lora_state_dict(add_lora(build(), 4, 2, seed=8))
    key = "blocks.0.attn.qkv.lora_A.weight"
    assert not torch.equal(first[key], other[key])
    assert not torch.equal(first[key], first["blocks.1.attn.qkv.lora_A.weight"])
    partial = lora_state_dict(add_lora(build(), 4, 2, seed=7, targets=["attn.qkv"]))
    assert torch.equal(partial[key], first[key]) and len(partial) == 4
    assert first[key].abs().max() <= 1 / 32**0.5 and first[key].std() > 0.5 / 32**0.5 / 3**0.5
    assert not any(first[k].any() for k in first if "lora_B" in k)


def test_forward_is_base_plus_scaled_product() -> None:
    dit = build()
    add_lora(dit, rank=4, alpha=2, seed=0)
    randomise(dit)
    merged = build()
    with torch.no_grad():
        for module, layer in lora_weights(dit).items():
            target_modules(merged)[module].weight += 0.5 * layer.up @ layer.down
    torch.testing.assert_close(forward(dit), forward(merged), atol=1e-5, rtol=1e-5)
    assert (forward(dit) - forward(build())).abs().max() > 1e-2


def test_adapters_off_is_bitwise_the_base_and_keeps_the_graph() -> None:
    base = forward(build())
    dit = add_lora(build(), rank=4, alpha=2, seed=0)
    randomise(dit)
    out = forward(dit)
    with adapters_off(dit):
        assert torch.equal(forward(dit), base)
        assert all(p.requires_grad for p in lora_parameters(dit).values())
    assert torch.equal(forward(dit), out)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in lora_parameters(dit).values())
    with pytest.raises(KeyError), adapters_off(dit):
        raise KeyError
    assert torch.equal(forward(dit), out)


def test_factors_stay_float32_on_a_bfloat16_base() -> None:
    dit = add_lora(build().to(torch.bfloat16), rank=4, alpha=2, seed=0)
    assert {p.dtype for p in lora_parameters(dit).values()} == {torch.float32}
    assert dit.blocks[0].attn.qkv.base_layer.weight.dtype == torch.bfloat16
    assert dit.blocks[0].attn.qkv(torch.zeros(1, 2, 32).bfloat16()).dtype == torch.bfloat16


def test_several_adapters_add_up() -> None:
    dit = build()
    for seed, name in enumerate(("style", "speed")):
        add_lora(dit, rank=2 + seed, alpha=2, seed=seed, name=name)
        randomise(dit, name, seed)
    assert active_adapters(dit) == ["style", "speed"]
    merged = build()
    with torch.no_grad():
        for name in ("style", "speed"):
            for module, layer in lora_weights(dit, name).items():
                target_modules(merged)[module].weight += layer.scaling * layer.up @ layer.down
    torch.testing.assert_close(forward(dit), forward(merged), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="already"):
        add_lora(dit, rank=2, alpha=2, seed=0, name="style")


def test_state_dict_round_trip_and_mismatch() -> None:
    dit = add_lora(build(), rank=4, alpha=2, seed=0)
    randomise(dit)
    copy = add_lora(build(), rank=4, alpha=2, seed=9)
    load_lora_state_dict(copy, lora_state_dict(dit))
    assert torch.equal(forward(copy), forward(dit))
    with pytest.raises(CheckpointError, match="lora_A"):
        load_lora_state_dict(add_lora(build(), 2, 2, seed=0), lora_state_dict(dit))


@pytest.mark.parametrize("layout", ["peft", "longcat"])
@pytest.mark.parametrize("rank", [3, 4, 6])
def test_saved_adapters_have_the_same_function(tmp_path: Path, layout: str, rank: int) -> None:
    dit = add_lora(build(), rank=rank, alpha=2, seed=0)
    randomise(dit)
    path = tmp_path / ("adapter" if layout == "peft" else "adapter.safetensors")
    save_lora(dit, path, layout)
    copy = load_lora(build(), path)
    torch.testing.assert_close(forward(copy), forward(dit), atol=2e-6, rtol=1e-5)
    assert not any(p.requires_grad for p in copy.parameters())
    twice = load_lora(build(), path, multiplier=2.0)
    assert not torch.allclose(forward(twice), forward(dit), atol=1e-3)


def test_peft_folder_loads_in_peft_itself(tmp_path: Path) -> None:
    from peft import PeftModel

    dit = load_lora(build(GOLDEN_CONFIG), GOLDEN_LORA)  # mixed ranks: 12, 8 and 4
    save_lora(dit, tmp_path, "peft")
    reference = PeftModel.from_pretrained(build(GOLDEN_CONFIG), str(tmp_path))
    torch.testing.assert_close(forward(reference.model), forward(dit), atol=1e-6, rtol=1e-6)


def test_published_file_survives_a_round_trip_bit_for_bit(tmp_path: Path) -> None:
    original = load_file(GOLDEN_LORA)
    dit = load_lora(build(GOLDEN_CONFIG), GOLDEN_LORA)
    save_lora(dit, tmp_path / "peft", "peft")
    through_peft = load_lora(build(GOLDEN_CONFIG), tmp_path / "peft")
    save_lora(through_peft, tmp_path / "again.safetensors", "longcat")
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == original.keys()
    assert all(torch.equal(again[key], original[key]) for key in original)


def test_published_layout_means_one_down_block_per_fused_part() -> None:
    tensors = load_file(GOLDEN_LORA)
    key = PUBLISHED_DOT.join(["lora", "blocks", "0", "attn", "qkv"])
    layer = from_published(tensors, GOLDEN_LORA)["blocks.0.attn.qkv"]
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    hidden = x @ tensors[f"{key}.lora_down.weight"].T
    parts = [
        hidden[:, 4 * i : 4 * i + 4] @ tensors[f"{key}.lora_up.blocks.{i}.weight"].T
        for i in range(3)
    ]
    expected = torch.cat(parts, dim=1) * 0.5
    torch.testing.assert_close(x @ layer.down.T @ layer.up.T * layer.scaling, expected)


def test_dense_up_of_a_fused_layer_becomes_repeated_downs() -> None:
    dit = add_lora(build(), rank=6, alpha=2, seed=0)
    randomise(dit)
    weights = lora_weights(dit)
    tensors = to_published(weights)
    key = PUBLISHED_DOT.join(["lora", "blocks", "0", "attn", "qkv"])
    assert tensors[f"{key}.lora_down.weight"].shape == (18, 32)
    assert tensors[f"{key}.lora_up.blocks.2.weight"].shape == (32, 6)
    back = from_published(tensors, Path("memory"))
    for module, layer in weights.items():
        delta = layer.scaling * layer.up @ layer.down
        other = back[module].scaling * back[module].up @ back[module].down
        torch.testing.assert_close(other, delta, atol=1e-7, rtol=1e-6)


def edit(tmp_path: Path, change: str) -> Path:
    tensors = load_file(GOLDEN_LORA)
    key = PUBLISHED_DOT.join(["lora", "blocks", "1", "attn", "qkv"])
    if change == "no scale":
        del tensors[f"{key}.alpha_scale"]
    elif change == "no part":
        del tensors[f"{key}.lora_up.blocks.1.weight"]
    elif change == "last part":
        del tensors[f"{key}.lora_up.blocks.2.weight"]
    elif change == "stray":
        tensors["something.weight"] = torch.zeros(1)
    elif change == "wrong layer":
        for name in [name for name in tensors if name.startswith(key)]:
            tensors[name.replace("blocks___lorahyphen___1", "blocks___lorahyphen___7")] = (
                tensors.pop(name)
            )
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("no scale", r"blocks\.1\.attn\.qkv: missing alpha_scale"),
        ("no part", r"blocks\.1\.attn\.qkv: missing lora_up\.blocks\.1"),
        ("last part", r"blocks\.1\.attn\.qkv: 12 down rows"),
        ("stray", r"something\.weight"),
        ("wrong layer", r"blocks\.7\.attn\.qkv is not a target"),
    ],
)
def test_broken_published_files_name_the_layer(tmp_path: Path, change: str, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_lora(build(GOLDEN_CONFIG), edit(tmp_path, change))


def test_lora_of_another_model_lists_shapes() -> None:
    dit = build()
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn\.proj is \(128, 128\)"):
        load_lora(dit, GOLDEN_LORA)
    assert not lora_layers(dit)


def test_broken_peft_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not found"):
        read_lora(tmp_path / "nothing")
    dit = add_lora(build(), rank=4, alpha=2, seed=0)
    save_lora(dit, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(CheckpointError, match="use_dora"):
        read_lora(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
    with pytest.raises(CheckpointError, match="rank 4 in the weights, 8"):
        read_lora(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors.pop("base_model.model.blocks.0.ffn.w1.lora_B.weight")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"blocks\.0\.ffn\.w1: missing lora_B"):
        read_lora(tmp_path)


def test_bad_settings() -> None:
    with pytest.raises(UserError, match="no such LoRA"):
        lora_weights(build())
