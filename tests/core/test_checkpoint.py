"""Checkpoint directories: complete round trips, sharding, and errors that name what is wrong."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan

from longtake.core.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_dit,
    save_checkpoint,
    save_dit,
)
from longtake.core.dit import DiTConfig, LongCatDiT
from longtake.core.lora import add_lora, lora_parameters
from longtake.core.text import TextEncoder, new_text_encoder, train_tokenizer
from longtake.core.vae import VideoVAE
from longtake.core.weights import digest_tensors, shard_paths
from longtake.runtime.errors import CheckpointError

CONFIG = DiTConfig(
    hidden_size=32,
    depth=2,
    num_heads=2,
    caption_channels=16,
    adaln_tembed_dim=16,
    frequency_embedding_size=16,
)
STEM = "diffusion_pytorch_model"


def build() -> LongCatDiT:
    return LongCatDiT(CONFIG).initialize(torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("saved")
    tokenizer = train_tokenizer(["a red circle"], 100, 8, root / "scratch")
    model = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    return save_checkpoint(
        root / "tiny",
        dit=build(),
        vae=VideoVAE(model.eval()),
        text=TextEncoder(tokenizer, new_text_encoder(len(tokenizer), 16, num_heads=2).eval()),
        shift=3.0,
    )


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_round_trip_of_all_parts(saved: Path) -> None:
    loaded = load_checkpoint(saved)
    assert isinstance(loaded, Checkpoint) and loaded.shift == 3.0 and loaded.path == saved
    assert digest_tensors(loaded.dit.state_dict()) == digest_tensors(build().state_dict())
    assert loaded.dit.config == CONFIG
    assert not loaded.dit.training
    for part in (loaded.dit, loaded.vae, loaded.text):
        assert not any(p.requires_grad or p.is_meta for p in part.parameters())
    assert loaded.text.encode(["a red circle"])[0].shape == (1, 1, 8, 16)
    assert loaded.device == torch.device("cpu")


def test_digest_follows_the_contents(saved: Path, copy: Path) -> None:
    digest = load_checkpoint(saved).digest()
    assert load_checkpoint(copy).digest() == digest
    (copy / "lora").mkdir()
    (copy / "lora" / "extra.safetensors").write_bytes(b"not part of the base model")
    assert load_checkpoint(copy).digest() == digest
    (copy / "scheduler" / "scheduler_config.json").write_text('{"shift": 4.0}')
    assert load_checkpoint(copy).digest() != digest


def test_shards_stream_to_the_same_weights(tmp_path: Path) -> None:
    dit = build()
    save_dit(dit, tmp_path, max_shard_bytes=20_000)
    shards = shard_paths(tmp_path, STEM)
    assert len(shards) > 3
    assert digest_tensors(load_dit(tmp_path).state_dict()) == digest_tensors(dit.state_dict())
    half = load_dit(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    z, text = torch.zeros(1, 16, 1, 4, 4), torch.zeros(1, 1, 3, 16)
    assert torch.equal(load_dit(tmp_path)(z, torch.zeros(1), text), dit(z, torch.zeros(1), text))


def test_missing_shard_is_named(tmp_path: Path) -> None:
    save_dit(build(), tmp_path, max_shard_bytes=20_000)
    shard = shard_paths(tmp_path, STEM)[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        load_dit(tmp_path)


def test_all_missing_parts_are_listed_at_once(copy: Path) -> None:
    shutil.rmtree(copy / "vae")
    (copy / "dit" / f"{STEM}.safetensors").unlink()
    (copy / "scheduler" / "scheduler_config.json").unlink()
    expected = {
        "vae/config.json",
        f"vae/{STEM}.safetensors",
        f"dit/{STEM}.safetensors",
        "scheduler/scheduler_config.json",
    }
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(copy)
    assert all(name in str(caught.value) for name in expected)


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "nowhere")


def test_truncated_weights_name_the_file(copy: Path) -> None:
    file = copy / "dit" / f"{STEM}.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=file.name):
        load_checkpoint(copy)


def test_missing_and_unexpected_keys_are_listed(copy: Path) -> None:
    config_file = copy / "dit" / "config.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**config, "depth": 3}))
    with pytest.raises(CheckpointError, match=r"missing \(blocks\.2\."):
        load_dit(copy)
    config_file.write_text(json.dumps({**config, "depth": 1}))
    with pytest.raises(CheckpointError, match=r"unexpected \(blocks\.1\."):
        load_dit(copy)
    config_file.write_text(json.dumps({**config, "caption_channels": 8}))
    with pytest.raises(CheckpointError, match=r"y_embedder.*shape"):
        load_dit(copy)


@pytest.mark.parametrize("content", ["{", "[]", '{"hidden_size": 30, "num_heads": 4}'])
def test_unusable_dit_config(copy: Path, content: str) -> None:
    (copy / "dit" / "config.json").write_text(content)
    with pytest.raises(CheckpointError):
        load_dit(copy)


@pytest.mark.parametrize("content", ["{}", '{"shift": -1}', '{"shift": "3"}', "no json"])
def test_unusable_shift(copy: Path, content: str) -> None:
    (copy / "scheduler" / "scheduler_config.json").write_text(content)
    with pytest.raises(CheckpointError, match="scheduler"):
        load_checkpoint(copy)


def test_release_keys_of_the_config_are_accepted(copy: Path) -> None:
    file = copy / "dit" / "config.json"
    extra = {"_diffusers_version": "0.35", "enable_bsa": False, "bsa_params": {"sparsity": 0.9}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **extra}))
    assert load_dit(copy).config == dataclasses.replace(CONFIG, bsa_params={"sparsity": 0.9})


def test_saving_leaves_injected_lora_out(tmp_path: Path) -> None:
    dit = add_lora(build(), rank=2, alpha=2, seed=0)
    with torch.no_grad():
        for parameter in lora_parameters(dit).values():
            parameter.fill_(0.3)
    save_dit(dit, tmp_path)
    assert digest_tensors(load_dit(tmp_path).state_dict()) == digest_tensors(build().state_dict())
