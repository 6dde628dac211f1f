"""Every setting of a GRPO run with unit, range and source, and the presets that fill them.

Names follow TRL where TRL has one. This module does not import torch, so that a mistyped setting is
answered at once. "Report" is the LongCat-Video technical report; its settings are Tables 5 and 9
(:func:`table9`). Defaults are the report's where they concern the algorithm and the sandbox's where
they concern size. A preset is a function that returns a :class:`GRPOConfig`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from longtake.rewards.registry import TINY_REWARDS
from longtake.runtime.config import Config
from longtake.runtime.errors import ConfigError

GuidanceRule = Literal["cfg_zero", "cfg", "none"]
ReweightMode = Literal["exact", "sigma", "paper", "none"]
Scale = Literal["max_group", "group", "batch", "none"]
Aggregation = Literal["weighted_advantages", "weighted_rewards"]
Ratio = Literal["mean", "sum", "score"]
Decay = Annotated[float, Field(ge=0, lt=1)]

_ROOT = Path(__file__).resolve().parents[1]
TINY_CHECKPOINT = str(_ROOT / "checkpoints" / "tiny")
TRAIN_PROMPTS = str(_ROOT / "benchmarks_data" / "sandbox_prompts" / "train.txt")
HELD_OUT_PROMPTS = str(_ROOT / "benchmarks_data" / "sandbox_prompts" / "held_out.txt")


class RolloutConfig(Config):
    """How the groups of videos are sampled and decoded."""

    num_steps: PositiveInt = 16
    """Sampling steps T per video. Report: 16 (Table 9)."""
    shift: PositiveFloat | None = None
    """Timestep shift; null takes the checkpoint's scheduler. Report: 12 (Table 9)."""
    guidance_scale: NonNegativeFloat = 4.0
    """Guidance scale; 1 is no guidance. Report: CFG 4 (Table 9)."""
    cfg: GuidanceRule = "cfg_zero"
    """Guidance rule. Report: CFG-Zero (section 4.3)."""
    micro_batch: PositiveInt = 4
    """Videos per forward. Changes memory and speed, not the samples' noise."""
    decode_chunk: PositiveInt = 8
    """Videos per VAE call."""
    num_frames: PositiveInt = 17
    """Frames per video, 4 n + 1 (the VAE packs 4 frames into one latent). Report: 93 (Table 5)."""
    height: int = 64
    """Pixels, a multiple of 16 (VAE 8 x patch 2). Report: 480p."""
    width: int = 64
    """Pixels, a multiple of 16. Report: 832 at 480p."""
    fps: PositiveFloat = 8.0
    """Frames per second. Report: 15 (section 3.4.1)."""
    size_buckets: list[str] = []
    """Sizes "HEIGHTxWIDTH" that prompts are spread over; empty uses height and width only. A group
    never mixes sizes. Report: 480p and 720p (Table 5)."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.num_frames % 4 != 1:
            raise ConfigError(
                "rollout.num_frames does not fit the VAE",
                received=self.num_frames,
                expected="4 n + 1 frames",
                remedy=f"use {self.num_frames // 4 * 4 + 1}",
            )
        # Here and not in the VAE: after minutes of loading it would be too late to say.
        for height, width in ((self.height, self.width), *self.bucket_sizes()):
            if height < 16 or width < 16 or height % 16 or width % 16:
                raise ConfigError(
                    "video size does not fit the VAE and the patches",
                    received=f"{height}x{width}",
                    expected="positive multiples of 16",
                )
        return self

    def bucket_sizes(self) -> list[tuple[int, int]]:
        """``size_buckets`` as (height, width) pairs."""
        sizes = []
        for text in self.size_buckets:
            height, cross, width = text.partition("x")
            if not (cross and height.isdecimal() and width.isdecimal()):
                raise ConfigError(
                    "rollout.size_buckets has an unreadable entry",
                    received=text,
                    expected="HEIGHTxWIDTH, for example 480x832",
                )
            sizes.append((int(height), int(width)))
        return sizes


class SDEConfig(Config):
    """The one stochastic step of each video (section 3.3.1)."""

    num_sde_steps: PositiveInt = 6
    """T': the critical timestep is drawn from the first T' steps, T' <= T. Report: range
    [0, 6], read as indices 0..5 (A.1.3)."""
    kind: Literal["flow_truncated", "constant"] = "flow_truncated"
    """Noise schedule; the report's is flow_truncated. The unbounded schedule is left out, as
    it is infinite at the first step, t = 1."""
    a: PositiveFloat = 1.0
    """Noise amplitude, dimensionless. Report: 1."""
    tau: PositiveFloat = 0.45
    """Bound of the step's standard deviation, latent units. Report: 0.45."""
    reweight: ReweightMode = "exact"
    """Loss reweighting (``grpo/sde.py`` explains them)."""
    timestep_strategy: Literal["uniform", "stratified"] = "uniform"
    """Draw of t' over prompts: uniform (report), or stratified, every t' equally often."""
    share_prefix: bool = True
    """Sample the ODE prefix once per prompt instead of once per member; the samples are equal."""


class AdvantageConfig(Config):
    """From rewards to advantages (Eq. 9-10)."""

    scale: Scale = "max_group"
    """Divisor of a centred reward: the std of the widest group (report), of the own group, of all
    samples, or 1."""
    aggregation: Aggregation = "weighted_advantages"
    """weighted_advantages (report): scale each reward, then add; weighted_rewards: the reverse."""


class LossConfig(Config):
    """The policy and KL losses (Eq. 43-44)."""

    beta: NonNegativeFloat = 3e-4
    """KL loss weight. Report: 3e-4 (Table 9)."""
    policy_weight: NonNegativeFloat = 1.0
    """Policy loss weight. Report: 1 (Table 9)."""
    epsilon: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Clip range of the ratio; null does not clip. The report names none."""
    ratio: Ratio = "mean"
    """Reduction of the log-ratio and the KL over latent dims; score replaces the ratio by its
    logarithm. The report is silent."""
    train_cfg: bool = True
    """The velocity in the loss is the guided one that sampled the video; false trains the
    conditional branch alone. The report is silent."""
    detach_uncond: bool = False
    """No gradient through the unconditional branch."""
    detach_cfg_zero_scale: bool = True
    """No gradient through the CFG-Zero* scale s*."""

    @model_validator(mode="after")
    def _clip_needs_a_ratio(self) -> Self:
        if self.epsilon is not None and self.ratio == "score":
            raise ConfigError(
                "loss.epsilon needs a ratio to clip",
                received=f"loss.epsilon={self.epsilon}, loss.ratio=score",
                expected="loss.epsilon=null with loss.ratio=score",
                remedy="set loss.ratio=mean",
            )
        return self


class OptimizerConfig(Config):
    """AdamW. The report gives the learning rate only."""

    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate. Report: 1e-4 (Table 9)."""
    adam_beta1: Decay = 0.9
    """Decay of the first moment."""
    adam_beta2: Decay = 0.999
    """Decay of the second moment."""
    adam_epsilon: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Bound of the global gradient norm."""
    warmup_updates: NonNegativeInt = 0
    """Updates of linear warm-up; the rate is constant afterwards."""
    ema_decay: Decay | None = None
    """Decay of an average of the adapter's weights; null keeps none."""


class LoRAConfig(Config):
    """The trained adapter, on the linears of all self-attention, cross-attention and FFN layers.

    Those are the layers of Table 9. The policy is the model with the adapter, the reference is the
    model without it.
    """

    rank: PositiveInt = 128
    """Rank. Report: 128 (Table 9)."""
    alpha: PositiveFloat = 64.0
    """Numerator of the scale alpha / rank. Report: 64 (Table 9)."""


class RewardConfig(Config):
    """Which rewards train the policy."""

    reward_weights: dict[str, NonNegativeFloat] = {
        "general": 1.0,
        "percentile": 1.0,
        "motion_quality": 1.0,
        "text_alignment": 1.0,
    }
    """Name in ``rewards/registry.py`` -> weight of its advantage, at least one positive. Weight 0
    scores and logs a reward without training on it. Report: four rewards at 1 (Table 9)."""
    sources: dict[str, str] = {}
    """Reward name -> reward directory, open_clip folder or server address to load it from
    (``rewards/registry.py``); the other names are those of ``REWARDS`` there."""

    @model_validator(mode="after")
    def _weights_and_sources_agree(self) -> Self:
        if not any(weight > 0 for weight in self.reward_weights.values()):
            raise ConfigError(
                "no reward to train on",
                received=dict(self.reward_weights),
                expected="at least one reward with a positive weight",
            )
        unused = sorted(set(self.sources) - set(self.reward_weights))
        if unused:
            raise ConfigError(
                "rewards.sources names a reward that is not used",
                received=", ".join(unused),
                expected=f"sources of {', '.join(self.reward_weights)}",
                remedy="give it a weight in rewards.reward_weights, or remove its source "
                "(--set rewards.sources={} removes all)",
            )
        return self


class EvaluationConfig(Config):
    """Held-out evaluation before and after training."""

    prompts: str = HELD_OUT_PROMPTS
    """UTF-8 text file of held-out prompts; the first ``num_prompts`` lines are used."""
    num_prompts: Annotated[int, Field(ge=2)] = 48
    """Held-out prompts; the bootstrap resamples prompts."""
    metrics: list[str] = ["alignment", "motion", "visual"]
    """Held-out metrics the caller provides (the sandbox's oracles); empty for none. They never
    enter training."""
    samples_per_prompt: PositiveInt = 2
    """Videos per prompt; the same noise before and after."""
    num_resamples: Annotated[int, Field(ge=100)] = 2000
    """Bootstrap resamples."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Coverage of the intervals."""
    seed: int = 2024
    """Names the held-out prompts, noise and resamples; independent of the run's seed."""


class GRPOConfig(Config):
    """One GRPO run (Algorithm 1)."""

    seed: int = 0
    """Names every random draw of the run."""
    checkpoint: str = TINY_CHECKPOINT
    """Directory in the LongCat-Video layout."""
    prompts: str = TRAIN_PROMPTS
    """UTF-8 text file with one training prompt per line; the sandbox's train split by default."""
    num_updates: PositiveInt = 40
    """Optimizer updates. Report: 500 (Table 5)."""
    prompts_per_update: PositiveInt = 8
    """Groups per update over all ranks. Report: 64 (Table 9)."""
    num_generations: PositiveInt = 4
    """Group size G: videos per prompt; at least 2 unless advantage.scale=none. Report: 4."""
    num_iterations: PositiveInt = 1
    """Updates on each batch of videos. Report: "Online training: True", read as 1."""
    rollout: RolloutConfig = RolloutConfig()
    """Sampling."""
    sde: SDEConfig = SDEConfig()
    """The stochastic step."""
    advantage: AdvantageConfig = AdvantageConfig()
    """Advantages."""
    loss: LossConfig = LossConfig()
    """Losses."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW."""
    lora: LoRAConfig = LoRAConfig()
    """Adapter."""
    rewards: RewardConfig = RewardConfig()
    """Training rewards."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out evaluation."""
    checkpoint_every: PositiveInt = 10
    """Updates between saved states; the last update is always saved."""
    keep_checkpoints: PositiveInt = 2
    """Saved states to keep."""
    log_samples_every: NonNegativeInt = 10
    """Updates between saved sample grids; 0 saves none."""
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = []
    """Trackers; metrics.jsonl is always written."""
    device: str = "auto"
    """Torch device, for example cpu or cuda:0; auto takes a GPU when there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the frozen weights and activations of the DiT."""
    num_threads: PositiveInt | None = None
    """CPU threads of torch; null leaves torch's choice."""

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if self.num_generations < 2 and self.advantage.scale != "none":
            raise ConfigError(
                "a group of one video has no spread to scale by",
                received=f"num_generations={self.num_generations}, "
                f"advantage.scale={self.advantage.scale}",
                expected="num_generations >= 2",
                remedy="set num_generations=4 (the report's value)",
            )
        if self.sde.num_sde_steps > self.rollout.num_steps:
            raise ConfigError(
                "more SDE steps than sampling steps",
                received=f"sde.num_sde_steps={self.sde.num_sde_steps}, "
                f"rollout.num_steps={self.rollout.num_steps}",
                expected="sde.num_sde_steps <= rollout.num_steps",
                remedy=f"set sde.num_sde_steps={self.rollout.num_steps}",
            )
        return self


def tiny() -> GRPOConfig:
    """The sandbox model and its four learned rewards, those of the report, on 2 CPU cores."""
    # Its own name, so that it may change while recorded results keep theirs.
    return tiny_2026_11()


def tiny_analytic() -> GRPOConfig:
    """As ``tiny``, with rewards that are written down, not learned."""
    return tiny().replace(rewards=RewardConfig())


def tiny_2026_11() -> GRPOConfig:
    """What ``tiny`` was in November 2026, every value written out: recorded results name it."""
    return GRPOConfig(
        seed=0,
        checkpoint=TINY_CHECKPOINT,
        prompts=TRAIN_PROMPTS,
        num_updates=24,
        prompts_per_update=8,
        num_generations=4,
        num_iterations=1,
        rollout=RolloutConfig(
            num_steps=16,
            shift=None,
            guidance_scale=4.0,
            cfg="cfg_zero",
            micro_batch=4,
            decode_chunk=8,
            num_frames=17,
            height=64,
            width=64,
            fps=8.0,
            size_buckets=[],
        ),
        sde=SDEConfig(
            num_sde_steps=6,
            kind="flow_truncated",
            a=1.0,
            tau=0.45,
            reweight="exact",
            timestep_strategy="uniform",
            share_prefix=True,
        ),
        advantage=AdvantageConfig(scale="max_group", aggregation="weighted_advantages"),
        loss=LossConfig(
            beta=3e-4,
            policy_weight=1.0,
            epsilon=None,
            ratio="mean",
            train_cfg=True,
            detach_uncond=False,
            detach_cfg_zero_scale=True,
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            adam_beta1=0.9,
            adam_beta2=0.999,
            adam_epsilon=1e-8,
            weight_decay=0.0,
            max_grad_norm=1.0,
            warmup_updates=0,
            ema_decay=None,
        ),
        lora=LoRAConfig(rank=16, alpha=16.0),
        rewards=RewardConfig(
            reward_weights=dict.fromkeys(TINY_REWARDS, 1.0),
            sources=TINY_REWARDS,
        ),
        evaluation=EvaluationConfig(
            prompts=HELD_OUT_PROMPTS,
            num_prompts=96,
            metrics=["alignment", "motion", "visual"],
            samples_per_prompt=1,
            num_resamples=2000,
            confidence=0.95,
            seed=2024,
        ),
        checkpoint_every=10,
        keep_checkpoints=2,
        log_samples_every=10,
        trackers=[],
        device="auto",
        dtype="float32",
        num_threads=None,
    )


def table9() -> GRPOConfig:
    """Every value of Tables 5 and 9, for the released 13.6B model (``--set checkpoint=DIR``).

    The tables give no optimizer, clip range, average of weights or gradient bound: those are this
    repository's defaults. bfloat16 is what the released model runs in.
    """
    return GRPOConfig(
        checkpoint="LongCat-Video",
        num_updates=500,
        prompts_per_update=64,
        num_generations=4,
        num_iterations=1,
        rollout=RolloutConfig(
            num_steps=16,
            shift=12.0,
            guidance_scale=4.0,
            cfg="cfg_zero",
            micro_batch=1,
            decode_chunk=1,
            num_frames=93,
            height=480,
            width=832,
            fps=15.0,
            size_buckets=["480x832", "720x1280"],
        ),
        sde=SDEConfig(num_sde_steps=6, kind="flow_truncated", a=1.0, tau=0.45),
        advantage=AdvantageConfig(scale="max_group", aggregation="weighted_advantages"),
        loss=LossConfig(policy_weight=1.0, beta=3e-4),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        lora=LoRAConfig(rank=128, alpha=64.0),
        rewards=RewardConfig(
            reward_weights={
                "hpsv3_general": 1.0,
                "hpsv3_percentile": 1.0,
                "videoalign_mq": 1.0,
                "videoalign_ta": 1.0,
            }
        ),
        # The sandbox's oracles cannot judge real video.
        evaluation=EvaluationConfig(metrics=[]),
        dtype="bfloat16",
    )


PRESETS: dict[str, Callable[[], GRPOConfig]] = {
    "tiny": tiny,
    "tiny_2026_11": tiny_2026_11,
    "tiny_analytic": tiny_analytic,
    "table9": table9,
}
"""Name -> function that returns the configuration."""
