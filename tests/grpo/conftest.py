"""A random checkpoint small enough to run whole GRPO updates in a test."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan

from longtake.core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from longtake.core.dit import DiTConfig, LongCatDiT
from longtake.core.lora import add_lora
from longtake.core.text import TextEncoder, new_text_encoder, train_tokenizer
from longtake.core.vae import VideoVAE
from longtake.grpo.config import (
    EvaluationConfig,
    GRPOConfig,
    LoRAConfig,
    OptimizerConfig,
    RolloutConfig,
    SDEConfig,
)
from longtake.runtime.rng import generator

PROMPTS = [
    "a red circle moving left on black",
    "a large blue square moves right on a grey background",
    "a green triangle standing still on beige",
    "a small white cross moving up on navy",
    "a yellow circle moving down on grey",
]


def build_checkpoint(folder: Path) -> Path:
    """Random weights of every part; the DiT's gates are open so that all of it matters."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(PROMPTS, 200, 24, folder / "tokenizer")
    text = TextEncoder(tokenizer, new_text_encoder(len(tokenizer), 16, num_heads=2, seed=1))
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    config = DiTConfig(
        in_channels=4,
        out_channels=4,
        hidden_size=48,
        depth=2,
        num_heads=2,
        caption_channels=16,
        adaln_tembed_dim=16,
        frequency_embedding_size=32,
        text_tokens_zero_pad=True,
    )
    dit = LongCatDiT(config).initialize(generator(0, "dit"))
    rng = generator(0, "open")
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    return save_checkpoint(folder, dit=dit, vae=VideoVAE(vae), text=text, shift=3.0)


@pytest.fixture(scope="session")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("micro"))


@pytest.fixture(scope="session")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def micro_config(checkpoint_dir: Path, prompt_file: Path) -> GRPOConfig:
    """Five frames of 32x32: latents [4, 2, 4, 4]; everything else as in the tiny preset."""
    return GRPOConfig(
        checkpoint=str(checkpoint_dir),
        prompts=str(prompt_file),
        num_updates=6,
        prompts_per_update=3,
        num_generations=4,
        rollout=RolloutConfig(num_steps=8, num_frames=5, height=32, width=32),
        sde=SDEConfig(num_sde_steps=4),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        lora=LoRAConfig(rank=4, alpha=4.0),
        evaluation=EvaluationConfig(
            prompts=str(prompt_file),
            num_prompts=3,
            samples_per_prompt=1,
            num_resamples=100,
            metrics=[],
        ),
        checkpoint_every=2,
        log_samples_every=0,
        num_threads=1,
    )


@pytest.fixture
def micro_yaml(micro_config: GRPOConfig, tmp_path: Path) -> Path:
    from longtake.runtime.config import config_to_yaml

    path = tmp_path / "micro.yaml"
    path.write_text(config_to_yaml(micro_config), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def load_micro() -> Callable[[GRPOConfig], Checkpoint]:
    """Loads the checkpoint with its adapter, as a run does."""

    def load(config: GRPOConfig) -> Checkpoint:
        model = load_checkpoint(config.checkpoint, "cpu", torch.float32)
        add_lora(model.dit, config.lora.rank, config.lora.alpha, config.seed)
        return model

    return load
