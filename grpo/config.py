"""Every setting of a GRPO run, with unit, range and source.

Names follow TRL where TRL has one. Nested groups hold plain types only, so OmegaConf can merge
YAML files and ``--set a.b=c`` into them. This module does not import torch: ``--help`` and
``--dry-run`` need it. "Report" is the LongCat-Video technical report; its settings are Tables 5
and 9 (``presets.table9``). Defaults are the report's where they concern the algorithm and the
sandbox's where they concern size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longtake.runtime.errors import ConfigError

NOISE_KINDS = ("flow_truncated", "constant")
REWEIGHT_MODES = ("exact", "sigma", "paper", "none")
TIMESTEP_STRATEGIES = ("uniform", "stratified")
SCALES = ("max_group", "group", "batch", "none")
AGGREGATIONS = ("weighted_advantages", "weighted_rewards")
RATIOS = ("mean", "sum", "score")
GUIDANCE_RULES = ("cfg_zero", "cfg", "none")
TRACKERS = ("tensorboard", "wandb", "trackio")
DTYPES = ("float32", "bfloat16")

_ROOT = Path(__file__).resolve().parents[1]
TINY_CHECKPOINT = str(_ROOT / "checkpoints" / "tiny")
TRAIN_PROMPTS = str(_ROOT / "benchmarks_data" / "sandbox_prompts" / "train.txt")
HELD_OUT_PROMPTS = str(_ROOT / "benchmarks_data" / "sandbox_prompts" / "held_out.txt")


def _choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(
            f"{key} has an unknown value", received=value, expected=" | ".join(choices)
        )


def _at_least(key: str, value: int | None, minimum: int) -> None:
    if value is not None and value < minimum:
        raise ConfigError(f"{key} is too small", received=value, expected=f">= {minimum}")


def _interval(
    key: str, value: float | None, low: float, high: float = math.inf, *, open_low: bool = False
) -> None:
    """Check low <= value < high (low < value with ``open_low``); None passes, NaN fails."""
    if value is None:
        return
    above = value > low if open_low else value >= low
    if not (above and value < high):
        bound = "<" if open_low else "<="
        raise ConfigError(
            f"{key} is out of range", received=value, expected=f"{low:g} {bound} value < {high:g}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutConfig:
    """How the groups of videos are sampled and decoded."""

    num_steps: int = 16
    """Sampling steps T per video, >= 1. Report: 16 (Table 9)."""
    shift: float | None = None
    """Timestep shift, > 0; null takes the checkpoint's scheduler. Report: 12 (Table 9)."""
    guidance_scale: float = 4.0
    """Guidance scale, >= 0; 1 is no guidance. Report: CFG 4 (Table 9)."""
    cfg: str = "cfg_zero"
    """Guidance rule: cfg_zero | cfg | none. Report: CFG-Zero (section 4.3)."""
    micro_batch: int = 4
    """Videos per forward, >= 1. Changes memory and speed, not the samples' noise."""
    decode_chunk: int = 8
    """Videos per VAE call, >= 1."""
    num_frames: int = 17
    """Frames per video, 4 n + 1 (the VAE packs 4 frames into one latent). Report: 93 (Table 5)."""
    height: int = 64
    """Pixels, a multiple of 16 (VAE 8 x patch 2). Report: 480p."""
    width: int = 64
    """Pixels, a multiple of 16. Report: 832 at 480p."""
    fps: float = 8.0
    """Frames per second, > 0. Report: 15 (section 3.4.1)."""
    size_buckets: list[str] = field(default_factory=list)
    """Sizes "HEIGHTxWIDTH" that prompts are spread over; empty uses height and width only. A group
    never mixes sizes. Report: 480p and 720p (Table 5)."""

    def __post_init__(self) -> None:
        _at_least("rollout.num_steps", self.num_steps, 1)
        _interval("rollout.shift", self.shift, 0, open_low=True)
        _interval("rollout.guidance_scale", self.guidance_scale, 0)
        _choice("rollout.cfg", self.cfg, GUIDANCE_RULES)
        _at_least("rollout.micro_batch", self.micro_batch, 1)
        _at_least("rollout.decode_chunk", self.decode_chunk, 1)
        _at_least("rollout.num_frames", self.num_frames, 1)
        _interval("rollout.fps", self.fps, 0, open_low=True)
        if self.num_frames % 4 != 1:
            raise ConfigError(
                "rollout.num_frames does not fit the VAE",
                received=self.num_frames,
                expected="4 n + 1 frames",
                remedy=f"use {self.num_frames // 4 * 4 + 1}",
            )
        for height, width in ((self.height, self.width), *self.bucket_sizes()):
            if height < 16 or width < 16 or height % 16 or width % 16:
                raise ConfigError(
                    "video size does not fit the VAE and the patches",
                    received=f"{height}x{width}",
                    expected="positive multiples of 16",
                )

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


@dataclass(frozen=True, kw_only=True, slots=True)
class SDEConfig:
    """The one stochastic step of each video (section 3.3.1)."""

    num_sde_steps: int = 6
    """T': the critical timestep is drawn from the first T' steps, 1 <= T' <= T. Report: range
    [0, 6], read as indices 0..5 (A.1.3)."""
    kind: str = "flow_truncated"
    """Noise schedule: flow_truncated (report) | constant. The unbounded schedule is left out, as
    it is infinite at the first step, t = 1."""
    a: float = 1.0
    """Noise amplitude, > 0, dimensionless. Report: 1."""
    tau: float = 0.45
    """Bound of the step's standard deviation, > 0, latent units. Report: 0.45."""
    reweight: str = "exact"
    """Loss reweighting: exact | sigma | paper | none (``sde.reweight`` explains them)."""
    timestep_strategy: str = "uniform"
    """Draw of t' over prompts: uniform (report) | stratified (every t' equally often)."""
    share_prefix: bool = True
    """Sample the ODE prefix once per prompt instead of once per member; the samples are equal."""

    def __post_init__(self) -> None:
        _at_least("sde.num_sde_steps", self.num_sde_steps, 1)
        _choice("sde.kind", self.kind, NOISE_KINDS)
        _interval("sde.a", self.a, 0, open_low=True)
        _interval("sde.tau", self.tau, 0, open_low=True)
        _choice("sde.reweight", self.reweight, REWEIGHT_MODES)
        _choice("sde.timestep_strategy", self.timestep_strategy, TIMESTEP_STRATEGIES)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvantageConfig:
    """From rewards to advantages (Eq. 9-10)."""

    scale: str = "max_group"
    """Divisor of a centred reward: max_group (report) | group | batch | none."""
    aggregation: str = "weighted_advantages"
    """weighted_advantages (report): scale each reward, then add; weighted_rewards: the reverse."""

    def __post_init__(self) -> None:
        _choice("advantage.scale", self.scale, SCALES)
        _choice("advantage.aggregation", self.aggregation, AGGREGATIONS)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """The policy and KL losses (Eq. 43-44)."""

    beta: float = 3e-4
    """KL loss weight, >= 0. Report: 3e-4 (Table 9)."""
    policy_weight: float = 1.0
    """Policy loss weight, >= 0. Report: 1 (Table 9)."""
    epsilon: float | None = None
    """Clip range of the ratio, in (0, 1); null does not clip. The report names none."""
    ratio: str = "mean"
    """Reduction of the log-ratio and the KL over latent dims: mean | sum; score replaces the
    ratio by its logarithm. The report is silent."""
    train_cfg: bool = True
    """The velocity in the loss is the guided one that sampled the video; false trains the
    conditional branch alone. The report is silent."""
    detach_uncond: bool = False
    """No gradient through the unconditional branch."""
    detach_cfg_zero_scale: bool = True
    """No gradient through the CFG-Zero* scale s*."""

    def __post_init__(self) -> None:
        _interval("loss.beta", self.beta, 0)
        _interval("loss.policy_weight", self.policy_weight, 0)
        _interval("loss.epsilon", self.epsilon, 0, 1, open_low=True)
        _choice("loss.ratio", self.ratio, RATIOS)
        if self.epsilon is not None and self.ratio == "score":
            raise ConfigError(
                "loss.epsilon needs a ratio to clip",
                received=f"loss.epsilon={self.epsilon}, loss.ratio=score",
                expected="loss.epsilon=null with loss.ratio=score",
                remedy="set loss.ratio=mean",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW. The report gives the learning rate only."""

    learning_rate: float = 1e-4
    """Peak learning rate, > 0. Report: 1e-4 (Table 9)."""
    adam_beta1: float = 0.9
    """Decay of the first moment, in [0, 1)."""
    adam_beta2: float = 0.999
    """Decay of the second moment, in [0, 1)."""
    adam_epsilon: float = 1e-8
    """Added to the root of the second moment, > 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay, >= 0."""
    max_grad_norm: float = 1.0
    """Bound of the global gradient norm, > 0."""
    warmup_updates: int = 0
    """Updates of linear warm-up, >= 0; the rate is constant afterwards."""
    ema_decay: float | None = None
    """Decay of an average of the adapter's weights, in [0, 1); null keeps none."""

    def __post_init__(self) -> None:
        _interval("optimizer.learning_rate", self.learning_rate, 0, open_low=True)
        _interval("optimizer.adam_beta1", self.adam_beta1, 0, 1)
        _interval("optimizer.adam_beta2", self.adam_beta2, 0, 1)
        _interval("optimizer.adam_epsilon", self.adam_epsilon, 0, open_low=True)
        _interval("optimizer.weight_decay", self.weight_decay, 0)
        _interval("optimizer.max_grad_norm", self.max_grad_norm, 0, open_low=True)
        _at_least("optimizer.warmup_updates", self.warmup_updates, 0)
        _interval("optimizer.ema_decay", self.ema_decay, 0, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRAConfig:
    """The trained adapter, on the linears of all self-attention, cross-attention and FFN layers.

    Those are the layers of Table 9. The policy is the model with the adapter, the reference is the
    model without it.
    """

    rank: int = 128
    """Rank, >= 1. Report: 128 (Table 9)."""
    alpha: float = 64.0
    """Numerator of the scale alpha / rank, > 0. Report: 64 (Table 9)."""

    def __post_init__(self) -> None:
        _at_least("lora.rank", self.rank, 1)
        _interval("lora.alpha", self.alpha, 0, open_low=True)


def _sandbox_rewards() -> dict[str, float]:
    return {"general": 1.0, "percentile": 1.0, "motion_quality": 1.0, "text_alignment": 1.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig:
    """Which rewards train the policy."""

    reward_weights: dict[str, float] = field(default_factory=_sandbox_rewards)
    """Name in ``rewards.REWARDS`` -> weight of its advantage, >= 0, at least one positive. Weight 0
    scores and logs a reward without training on it. Report: four rewards at 1 (Table 9)."""
    sources: dict[str, str] = field(default_factory=dict)
    """Reward name -> reward directory, open_clip folder or server address to load it from
    (``longtake.rewards.sources``); the other names are those of ``rewards.REWARDS``."""

    def __post_init__(self) -> None:
        for name, weight in self.reward_weights.items():
            _interval(f"rewards.reward_weights.{name}", weight, 0)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """Held-out evaluation before and after training."""

    prompts: str = HELD_OUT_PROMPTS
    """UTF-8 text file of held-out prompts; the first ``num_prompts`` lines are used."""
    num_prompts: int = 48
    """Held-out prompts, >= 2; the bootstrap resamples prompts."""
    metrics: list[str] = field(default_factory=lambda: ["alignment", "motion", "visual"])
    """Held-out metrics the caller provides (the sandbox's oracles); empty for none. They never
    enter training."""
    samples_per_prompt: int = 2
    """Videos per prompt, >= 1; the same noise before and after."""
    num_resamples: int = 2000
    """Bootstrap resamples, >= 100."""
    confidence: float = 0.95
    """Coverage of the intervals, in (0, 1)."""
    seed: int = 2024
    """Names the held-out prompts, noise and resamples; independent of the run's seed."""

    def __post_init__(self) -> None:
        _at_least("evaluation.num_prompts", self.num_prompts, 2)
        _at_least("evaluation.samples_per_prompt", self.samples_per_prompt, 1)
        _at_least("evaluation.num_resamples", self.num_resamples, 100)
        _interval("evaluation.confidence", self.confidence, 0, 1, open_low=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class GRPOConfig:
    """One GRPO run (Algorithm 1)."""

    seed: int = 0
    """Names every random draw of the run."""
    checkpoint: str = TINY_CHECKPOINT
    """Directory in the LongCat-Video layout."""
    prompts: str = TRAIN_PROMPTS
    """UTF-8 text file with one training prompt per line; the sandbox's train split by default."""
    num_updates: int = 40
    """Optimizer updates, >= 1. Report: 500 (Table 5)."""
    prompts_per_update: int = 8
    """Groups per update over all ranks, >= 1. Report: 64 (Table 9)."""
    num_generations: int = 4
    """Group size G: videos per prompt, >= 1; >= 2 unless advantage.scale=none. Report: 4."""
    num_iterations: int = 1
    """Updates on each batch of videos, >= 1. Report: "Online training: True", read as 1."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Sampling."""
    sde: SDEConfig = field(default_factory=SDEConfig)
    """The stochastic step."""
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    """Advantages."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Losses."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """Adapter."""
    rewards: RewardConfig = field(default_factory=RewardConfig)
    """Training rewards."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Held-out evaluation."""
    checkpoint_every: int = 10
    """Updates between saved states, >= 1; the last update is always saved."""
    keep_checkpoints: int = 2
    """Saved states to keep, >= 1."""
    log_samples_every: int = 10
    """Updates between saved sample grids, >= 0; 0 saves none."""
    trackers: list[str] = field(default_factory=list)
    """Any of tensorboard, wandb, trackio; metrics.jsonl is always written."""
    device: str = "auto"
    """Torch device, for example cpu or cuda:0; auto takes a GPU when there is one."""
    dtype: str = "float32"
    """Type of the frozen weights and activations of the DiT: float32 | bfloat16."""
    num_threads: int | None = None
    """CPU threads of torch, >= 1; null leaves torch's choice."""

    def __post_init__(self) -> None:
        _at_least("num_updates", self.num_updates, 1)
        _at_least("prompts_per_update", self.prompts_per_update, 1)
        _at_least("num_generations", self.num_generations, 1)
        _at_least("num_iterations", self.num_iterations, 1)
        _at_least("checkpoint_every", self.checkpoint_every, 1)
        _at_least("keep_checkpoints", self.keep_checkpoints, 1)
        _at_least("log_samples_every", self.log_samples_every, 0)
        _at_least("num_threads", self.num_threads, 1)
        _choice("dtype", self.dtype, DTYPES)
        for tracker in self.trackers:
            _choice("trackers", tracker, TRACKERS)
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
