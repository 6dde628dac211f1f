"""The result of a run in numbers: summary.json, the printed table, the cost beforehand."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from longtake.grpo.config import GRPOConfig
from longtake.grpo.nfe import mean_rollout_evaluations
from longtake.grpo.state import Counters
from longtake.runtime.progress import result_table


def summarise(
    config: GRPOConfig,
    counters: Counters,
    held_out: Mapping[str, Any],
    rewards: Mapping[str, Any],
    *,
    wall_s: float,
    stopped: str | None,
) -> dict[str, Any]:
    """The contents of summary.json."""
    counts = asdict(counters)
    return {
        "updates": counters.updates,
        "wall_s": round(wall_s, 1),
        "seed": config.seed,
        "stopped": stopped,
        "held_out": dict(held_out),
        "rewards": dict(rewards),
        "nfe": {
            key: counts[key]
            for key in ("rollout", "rollout_naive", "train_forwards", "train_forwards_naive")
        },
        "unscored": counters.unscored,
    }


def print_summary(summary: Mapping[str, Any], report: Path) -> None:
    """Print the before/after table, what it cost, and where the report is."""
    console = Console()
    rows: list[list[str | float | int | None]] = []
    for label, group in (("oracle", "held_out"), ("reward", "rewards")):
        for name, r in summary[group].items():
            interval = next((v for k, v in r.items() if k.startswith("ci")), None)
            text = "-" if interval is None else f"[{interval[0]:+.3f}, {interval[1]:+.3f}]"
            rows.append([f"{label} {name}", r["before"], r["after"], r["diff"], text, r["n"]])
    columns = ["held-out prompts", "before", "after", "change", "interval", "n"]
    title = (
        f"GRPO seed {summary['seed']}: {summary['updates']} updates in {summary['wall_s']:.0f} s"
    )
    console.print(result_table(title, columns, rows))
    nfe, unscored = summary["nfe"], sum(summary["unscored"].values())
    console.print(
        f"{nfe['rollout']:.0f} rollout evaluations (naive {nfe['rollout_naive']:.0f}), "
        f"{nfe['train_forwards']} training forwards (naive {nfe['train_forwards_naive']}), "
        f"{unscored} unscored samples",
        markup=False,
    )
    if summary["stopped"]:
        console.print(f"Stopped early: {summary['stopped']}", markup=False)
    console.print(f"Report: {report}", markup=False, soft_wrap=True)


def estimate(config: GRPOConfig) -> str:
    """What a run would do and cost, in words and counts."""
    rollout, sde, size = config.rollout, config.sde, config.num_generations
    per_prompt = (
        mean_rollout_evaluations(rollout.num_steps, sde.num_sde_steps, size)
        if sde.share_prefix
        else float(size * rollout.num_steps)
    )
    prompts = config.num_updates * config.prompts_per_update
    forwards = (1 + (config.loss.beta > 0)) * config.num_iterations
    evaluation = 2 * config.evaluation.num_prompts * config.evaluation.samples_per_prompt
    rewards = ", ".join(f"{name} x{w:g}" for name, w in config.rewards.reward_weights.items())
    videos = f"({rollout.num_frames} frames, {rollout.height}x{rollout.width})"
    branches = 1 if rollout.cfg == "none" or rollout.guidance_scale == 1 else 2
    return "\n".join(
        [
            f"checkpoint  {config.checkpoint}",
            f"prompts     {config.prompts}",
            f"rewards     {rewards}",
            f"updates     {config.num_updates} of {config.prompts_per_update} prompts"
            f" x {size} videos {videos}",
            f"rollout     {prompts * per_prompt:,.0f} velocity evaluations expected"
            f" ({per_prompt:g} a prompt), each {branches} DiT samples",
            f"update      {prompts * forwards:,} training forwards (policy and reference)",
            f"decoding    {prompts * size:,} videos, each scored by every reward",
            f"held-out    {evaluation} videos, {evaluation * rollout.num_steps:,} evaluations",
        ]
    )
