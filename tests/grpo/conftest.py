"""A checkpoint of random weights for whole GRPO updates in a test, and the oracles of tests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

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
from longtake.grpo.loss import surrogate
from longtake.grpo.plan import read_prompts
from longtake.grpo.sde import StepCoefficients, kl, log_ratio
from longtake.grpo.trainer import GRPOTrainer
from longtake.rewards.contract import Score, VideoBatch, scores_of
from longtake.rewards.suite import RewardSuite
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


class Brightness:
    """Mean pixel, or failures on demand: a reward with known behaviour."""

    name, needs_prompt, needs_time = "brightness", False, False

    def __init__(self, sign: float = 1.0, broken: str = "") -> None:
        self.sign, self.broken = sign, broken

    def score(self, batch: VideoBatch) -> list[Score]:
        if self.broken == "raise":
            raise RuntimeError("the scorer fell over")
        value = self.sign * batch.video.float().mean((1, 2, 3, 4)).cpu() / 255
        if self.broken == "nan":
            value[0] = float("nan")
        return scores_of(value)

    def to(self, device: torch.device | str) -> "Brightness":
        return self

    def fingerprint(self) -> dict[str, object]:
        return {"name": self.name}


@pytest.fixture(scope="session")
def make_trainer() -> Callable[..., GRPOTrainer]:
    """A trainer of a model with rewards named by keyword, each the arguments of Brightness."""

    def make(config: GRPOConfig, model: Checkpoint, **rewards: dict[str, Any]) -> GRPOTrainer:
        named = rewards or {"brightness": {}}
        suite = RewardSuite({name: (Brightness(**how), 1.0) for name, how in named.items()})
        return GRPOTrainer(model, suite, read_prompts(Path(config.prompts)), config)

    return make


@pytest.fixture(scope="session")
def count_forwards() -> Callable[..., Any]:
    """Counts the samples that pass through a DiT: ``with count_forwards(dit) as samples``."""

    @contextmanager
    def count(dit: nn.Module) -> Iterator[list[int]]:
        samples: list[int] = []
        hook = dit.register_forward_pre_hook(lambda _, args: samples.append(args[0].shape[0]))
        yield samples
        hook.remove()

    return count


@pytest.fixture(scope="session")
def group_loss() -> Callable[..., Tensor]:
    """The loss of ``policy_cotangent`` as a differentiable scalar.

    Velocities are [1, ...] (one forward for the group) or [G, ...] (one forward for each member).
    """

    def loss(
        v: Tensor,
        v_old: Tensor,
        v_ref: Tensor | None,
        eps_G: Tensor,
        advantage_G: Tensor,
        step: StepCoefficients,
        *,
        epsilon: float | None = None,
        policy_weight: float = 1.0,
        beta: float = 0.0,
        ratio: str = "mean",
    ) -> Tensor:
        reduction = "sum" if ratio == "sum" else "mean"
        log_r = log_ratio(eps_G, v - v_old, step.c, reduction)
        objective, _, _ = surrogate(log_r, advantage_G.to(log_r), ratio, epsilon)
        value = -policy_weight * step.lambda_policy * objective.mean()
        if v_ref is not None:
            value = value + beta * step.lambda_kl * kl(v - v_ref, step.c, reduction).mean()
        return value

    return loss
