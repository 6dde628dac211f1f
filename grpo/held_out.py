"""Held-out evaluation: the same prompts and noise before and after, scored sample by sample.

The metrics given here (the sandbox's oracles) never reach the trainer. A metric that cannot score
a sample leaves it unscored; a difference uses the samples scored both times and says how many.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtake.core.sampler import sample_latents
from longtake.core.vae import VideoVAE
from longtake.core.video import to_uint8
from longtake.grpo.config import GRPOConfig
from longtake.grpo.policy import Policy
from longtake.grpo.ranks import Ranks
from longtake.rewards.contract import VideoBatch
from longtake.rewards.suite import RewardSuite
from longtake.runtime.errors import UserError
from longtake.runtime.rng import normal
from longtake.runtime.statistics import paired_bootstrap

#: Maps clips [B, T, 3, H, W] in [0, 1] and prompts to scores [B]; NaN where it cannot score.
Metric = Callable[[Tensor, Sequence[str]], Tensor]
Record = dict[str, Any]
OVERALL = "oracle_mean"
_SHOWN_CLIPS = 8
_SHOWN_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class HeldOutScores:
    """Scores of every sample, and a few clips to look at."""

    records: list[Record]
    """One per sample: prompt_id, prompt, sample, metrics, rewards (None where unscored)."""
    clips: Tensor
    """uint8 [N, T, 3, H, W], the first sample of the first prompts."""


class HeldOut:
    """Samples and scores the held-out prompts with whatever adapter is active.

    Args:
        policy: model, text encoder, guidance.
        vae: decoder.
        sigmas: schedule [T + 1].
        prompts: held-out prompts.
        config: the run's settings.
        metrics: name -> metric; :data:`OVERALL` is added as their mean.
        suite: training rewards, reported beside the metrics.
        ranks: prompts are shared out over the ranks.
    """

    def __init__(
        self,
        policy: Policy,
        vae: VideoVAE,
        sigmas: Tensor,
        prompts: Sequence[str],
        config: GRPOConfig,
        metrics: Mapping[str, Metric],
        suite: RewardSuite,
        ranks: Ranks,
    ) -> None:
        self.policy, self.vae, self.sigmas, self.config = policy, vae, sigmas, config
        self.metrics, self.suite, self.ranks = metrics, suite, ranks
        per_prompt = config.evaluation.samples_per_prompt
        self.samples = [(i, p, s) for i, p in enumerate(prompts) for s in range(per_prompt)]

    @torch.no_grad()
    def evaluate(self, on_progress: Callable[[int], None]) -> HeldOutScores:
        """Score every sample; ``on_progress(done)`` may raise to stop."""
        rollout = self.config.rollout
        records: list[Record] = []
        clips: list[Tensor] = []
        mine = self.ranks.mine(self.samples)
        for start in range(0, len(mine), rollout.decode_chunk):
            chunk = mine[start : start + rollout.decode_chunk]
            video = self._sample(chunk)
            records += self._score(chunk, video)
            clips += [v for v, (_, _, s) in zip(to_uint8(video), chunk, strict=True) if s == 0]
            del clips[self._num_shown(video) :]
            on_progress(len(records))
        gathered = [r for part in self.ranks.gather(records) for r in part]
        return HeldOutScores(records=gathered, clips=torch.stack(clips).contiguous())

    def _num_shown(self, video: Tensor) -> int:
        return max(1, min(_SHOWN_CLIPS, _SHOWN_BYTES // video[0].numel()))

    def _sample(self, chunk: Sequence[tuple[int, str, int]]) -> Tensor:
        rollout, device = self.config.rollout, next(self.policy.dit.parameters()).device
        shape = self.vae.latent_shape(rollout.num_frames, rollout.height, rollout.width)
        seed = self.config.evaluation.seed
        noise = torch.cat(
            [normal((1, *shape), seed, "held_out", i, s, device=device) for i, _, s in chunk]
        )
        text = self.policy.text
        z = sample_latents(
            self.policy.dit,
            noise,
            text.encode([prompt for _, prompt, _ in chunk]),
            text.encode([""]),
            self.sigmas,
            rollout.guidance_scale,
            self.policy.mode,
        )
        return self.vae.decode(z, chunk=rollout.decode_chunk)

    def _score(self, chunk: Sequence[tuple[int, str, int]], video: Tensor) -> list[Record]:
        prompts = [prompt for _, prompt, _ in chunk]
        # Metrics and rewards judge the 8-bit video a viewer gets, as rewards do in training.
        pixels = to_uint8(video)
        columns = {name: _safely(f, pixels.cpu(), prompts) for name, f in self.metrics.items()}
        scores = self.suite.score(
            VideoBatch(video=pixels, prompts=prompts, fps=self.config.rollout.fps)
        )
        records = []
        for row, (prompt_id, prompt, sample) in enumerate(chunk):
            metrics = {name: column[row] for name, column in columns.items()}
            if metrics:
                metrics[OVERALL] = math.fsum(metrics.values()) / len(metrics)
            rewards = {name: float(column[row]) for name, column in scores.columns.items()}
            records.append(
                {
                    "prompt_id": prompt_id,
                    "prompt": prompt,
                    "sample": sample,
                    "metrics": _nullable(metrics),
                    "rewards": _nullable(rewards),
                }
            )
        return records


def _safely(metric: Metric, video: Tensor, prompts: Sequence[str]) -> list[float]:
    """Scores of a batch; a prompt the metric does not understand leaves its sample unscored."""
    try:
        return [float(v) for v in metric(video, prompts)]
    except UserError:
        if len(prompts) == 1:
            return [math.nan]
        rows = zip(video.split(1), prompts, strict=True)
        return [_safely(metric, clip, [prompt])[0] for clip, prompt in rows]


def _nullable(values: Mapping[str, float]) -> dict[str, float | None]:
    return {k: (v if math.isfinite(v) else None) for k, v in values.items()}


def compare(
    before: Sequence[Record], after: Sequence[Record], group: str, config: GRPOConfig
) -> dict[str, dict[str, Any]]:
    """Paired differences with bootstrap intervals clustered by prompt.

    Args:
        before: records of the reference model.
        after: records of the trained model, same samples.
        group: "metrics" or "rewards".
        config: resamples, confidence and seed.

    Returns:
        name -> before, after, diff, ci95, n, n_clusters, dropped.
    """
    by_key = {(r["prompt_id"], r["sample"]): r for r in after}
    pairs = [(r, by_key[r["prompt_id"], r["sample"]]) for r in before]
    names = list(before[0][group]) if before else []
    out: dict[str, dict[str, Any]] = {}
    for name in names:
        values = [[_number(r[group][name]) for r in side] for side in zip(*pairs, strict=True)]
        if len({r["prompt_id"] for r, s in pairs if _both(r, s, group, name)}) < 2:
            out[name] = {"before": None, "after": None, "diff": None, "n": 0, "dropped": len(pairs)}
            continue
        out[name] = paired_bootstrap(
            values[0],
            values[1],
            [r["prompt_id"] for r, _ in pairs],
            confidence=config.evaluation.confidence,
            resamples=config.evaluation.num_resamples,
            seed=config.evaluation.seed,
        ).as_record()
    return out


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _both(first: Record, second: Record, group: str, name: str) -> bool:
    return first[group][name] is not None and second[group][name] is not None


def write_records(path: Path, records: Sequence[Record]) -> None:
    """One JSON line per sample."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_records(path: Path) -> list[Record]:
    """Inverse of :func:`write_records`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
