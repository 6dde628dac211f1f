"""Configurations, the published key sets, renaming, the LoRA merge, and strict loading."""

import pytest
import torch
from safetensors.torch import save_file

from longtake.core.weights import write_shards
from longtake.rewards.qwen2vl.config import (
    backbone_config,
    hpsv3_config,
    videoreward_config,
)
from longtake.rewards.qwen2vl.weights import (
    LM_HEAD,
    WEIGHTS_STEM,
    current_key,
    current_layout,
    empty_reward_model,
    load_reward_model,
    merge_lora,
    public_layout,
)
from longtake.runtime.errors import CheckpointError
from longtake.tests.tiny_reward import random_prompts, tiny_config, tiny_reward_model

PARTS = ("weight", "bias")


def published_hpsv3_keys():
    """Names (and shapes where they are known) of HPSv3.safetensors, written out by hand."""
    shapes = {"visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14)}
    for i in range(32):
        for layer in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            shapes |= {f"visual.blocks.{i}.{layer}.{part}": () for part in PARTS}
    for layer in ("ln_q", "mlp.0", "mlp.2"):
        shapes |= {f"visual.merger.{layer}.{part}": () for part in PARTS}
    shapes["visual.merger.mlp.2.weight"] = (3584, 5120)
    shapes |= {"model.embed_tokens.weight": (151658, 3584), "lm_head.weight": (151658, 3584)}
    for i in range(28):
        root = f"model.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj"):
            shapes |= {f"{root}.self_attn.{name}.{part}": () for part in PARTS}
        shapes |= {f"{root}.mlp.{name}_proj.weight": () for name in ("gate", "up", "down")}
        for name in ("self_attn.o_proj", "input_layernorm", "post_attention_layernorm"):
            shapes[f"{root}.{name}.weight"] = ()
    shapes["model.layers.5.self_attn.k_proj.weight"] = (512, 3584)
    shapes["model.layers.5.mlp.down_proj.weight"] = (3584, 18944)
    shapes["model.norm.weight"] = (3584,)
    shapes |= {"rm_head.0.weight": (1024, 3584), "rm_head.0.bias": (1024,)}
    shapes |= {"rm_head.3.weight": (16, 1024), "rm_head.3.bias": (16,)}
    return shapes | {"rm_head.5.weight": (2, 16), "rm_head.5.bias": (2,)}


def published_videoreward_keys():
    """The same of VideoReward's model.pth: PEFT layout, LoRA of rank 64 unmerged."""
    shapes = {}
    for name in published_hpsv3_keys():
        if name.startswith("rm_head."):
            continue
        if "_proj." in name:
            layer, part = name.rsplit(".", 1)
            shapes[f"{layer}.base_layer.{part}"] = ()
            shapes |= {f"{layer}.lora_{factor}.default.weight": () for factor in "AB"}
        else:
            shapes[name] = ()
    shapes["model.layers.27.mlp.up_proj.lora_A.default.weight"] = (64, 1536)
    shapes["model.layers.27.mlp.up_proj.lora_B.default.weight"] = (8960, 64)
    shapes["model.layers.0.self_attn.v_proj.lora_B.default.weight"] = (256, 64)
    shapes["visual.merger.mlp.2.weight"] = (1536, 5120)
    shapes["model.embed_tokens.weight"] = shapes["lm_head.weight"] = (151660, 1536)
    shapes["rm_head.weight"] = (1, 1536)
    return {f"base_model.model.{name}": shape for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("config", "published", "count", "layout"),
    [
        (hpsv3_config(), published_hpsv3_keys(), 736, "legacy"),
        (videoreward_config(lora=True), published_videoreward_keys(), 1123, "peft"),
    ],
    ids=["hpsv3", "videoreward"],
)
def test_published_key_sets(config, published, count, layout):
    assert len(published) == count
    state = empty_reward_model(config).state_dict()
    ours = {current_key(name) for name in published} - {LM_HEAD}
    assert ours == state.keys()
    for name, shape in published.items():
        if shape and name.split(".")[-2] != "lm_head":
            assert tuple(state[current_key(name)].shape) == shape, name
    assert public_layout(state, layout).keys() == published.keys()


def test_published_sizes():
    def parameters(config):
        return sum(t.numel() for t in empty_reward_model(config).state_dict().values())

    lm_head = 151660 * 1536
    assert parameters(videoreward_config(lora=True)) + lm_head == 2_515_372_032
    head = 1024 * 3584 + 1024 + 16 * 1024 + 16 + 2 * 16 + 2
    backbone = parameters(hpsv3_config()) - head + 151658 * 3584
    assert abs(2 * backbone + 4 * head - 16.59e9) < 0.01e9  # bytes: bfloat16, head float32


@pytest.mark.parametrize("layout", ["legacy", "peft"])
def test_layouts_round_trip_and_renaming_is_idempotent(layout):
    lora = 4 if layout == "peft" else 0
    config = tiny_config("shared_linear", lora_rank=lora)
    state = dict(tiny_reward_model(config, 0).state_dict())
    public = public_layout(state, layout)
    assert current_layout(public).keys() == state.keys() | {LM_HEAD}
    again = current_layout(current_layout(public))
    for name, tensor in state.items():
        assert torch.equal(again[name], tensor), name
    assert torch.equal(again[LM_HEAD], state["model.language_model.embed_tokens.weight"])


def lora_state(seed, dtype):
    draw = torch.Generator().manual_seed(seed)
    root = "base_model.model.model.layers.0.mlp.up_proj"
    shapes = {
        f"{root}.base_layer.weight": (12, 8),
        f"{root}.lora_A.default.weight": (3, 8),
        f"{root}.lora_B.default.weight": (12, 3),
        "base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias": (6,),
        "base_model.model.model.norm.weight": (8,),
    }
    return {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_is_the_sum_in_float64_rounded_once(dtype):
    for seed in range(3):
        state = lora_state(seed, dtype)
        base, down, up = (tensor.double() for tensor in list(state.values())[:3])
        merged = merge_lora(state, 2.0)
        root = "model.language_model"
        assert merged.keys() == {
            f"{root}.layers.0.mlp.up_proj.weight",
            f"{root}.layers.0.self_attn.q_proj.bias",
            f"{root}.norm.weight",
        }
        weight = merged[f"{root}.layers.0.mlp.up_proj.weight"]
        assert weight.dtype == dtype
        if dtype == torch.float32:
            torch.testing.assert_close(weight.double(), base + 2 * up @ down, rtol=0, atol=1e-5)
        else:  # rounding twice, or multiplying in bfloat16, would move more than a few entries
            off = weight != (base + 2 * up @ down).float().bfloat16()
            assert int(off.sum()) <= 1


CONFIG = tiny_config("shared_linear", lora_rank=4)


@pytest.fixture
def state():
    return dict(tiny_reward_model(CONFIG, 0).state_dict())


@pytest.mark.parametrize("layout", ["current", "peft"])
@pytest.mark.parametrize("shard_bytes", [2**30, 2**18])
def test_files_load_as_state_dicts_do(state, layout, shard_bytes, tmp_path):
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


def test_missing_and_unexpected_keys_are_named(state):
    legacy = public_layout(state, "peft")
    del legacy["base_model.model.rm_head.weight"]
    legacy["base_model.model.score.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_reward_model(CONFIG, legacy)
    assert "1 missing (rm_head.weight)" in str(caught.value)
    assert "1 unexpected (score.weight)" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"missing.*base_layer"):
        load_reward_model(CONFIG, tiny_reward_model(tiny_config("shared_linear"), 0).state_dict())


def test_broken_files_are_named(state, tmp_path):
    with pytest.raises(CheckpointError, match="weights not found"):
        load_reward_model(CONFIG, tmp_path)
    path = tmp_path / f"{WEIGHTS_STEM}.safetensors"
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"cannot read model\.safetensors"):
        load_reward_model(CONFIG, tmp_path)


def test_old_flat_backbone_fields_are_understood():
    flat = {
        "vocab_size": 160,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "rope_theta": 5e5,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vision_config": {"depth": 2, "hidden_size": 64},
    }
    text = backbone_config(flat).text_config
    assert (text.vocab_size, text.num_hidden_layers) == (160, 3)
    assert text.rope_parameters["rope_theta"] == 5e5
    assert text.bos_token_id is None and text.pad_token_id is None
