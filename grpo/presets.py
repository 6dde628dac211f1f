"""Ready GRPO configurations: the sandbox run and the report's run (Tables 5 and 9)."""

from collections.abc import Callable
from pathlib import Path

from longtake.grpo.config import (
    TINY_CHECKPOINT,
    AdvantageConfig,
    EvaluationConfig,
    GRPOConfig,
    LoRAConfig,
    LossConfig,
    OptimizerConfig,
    RewardConfig,
    RolloutConfig,
    SDEConfig,
)

TINY_REWARDS = {
    "hpsv3_general": "hpsv3",
    "hpsv3_percentile": "hpsv3",
    "videoalign_mq": "videoalign_mq",
    "videoalign_ta": "videoalign_ta",
}
"""Learned rewards of the sandbox -> folder in ``checkpoints/tiny/rewards``."""


def tiny() -> GRPOConfig:
    """The sandbox model and its four learned rewards, those of the report, on 2 CPU cores."""
    folder = Path(TINY_CHECKPOINT) / "rewards"
    return tiny_analytic().replace(
        rewards=RewardConfig(
            reward_weights=dict.fromkeys(TINY_REWARDS, 1.0),
            sources={name: str(folder / part) for name, part in TINY_REWARDS.items()},
        ),
    )


def tiny_analytic() -> GRPOConfig:
    """The report's algorithm on 64x64 clips of 17 frames, rewards written down, not learned."""
    return GRPOConfig(
        num_updates=24,
        prompts_per_update=8,
        num_generations=4,
        rollout=RolloutConfig(num_steps=16, num_frames=17, height=64, width=64, fps=8.0),
        sde=SDEConfig(num_sde_steps=6),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        lora=LoRAConfig(rank=16, alpha=16.0),
        evaluation=EvaluationConfig(num_prompts=96, samples_per_prompt=1),
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
    "tiny_analytic": tiny_analytic,
    "table9": table9,
}
"""Name -> function that returns the configuration."""
