"""Held-out evaluation: the same prompts and noise before and after, scored sample by sample.

The metrics given here (the sandbox's oracles) never reach the trainer. A metric that cannot score
a sample leaves it unscored; a difference uses the samples scored both times and says how many.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from longtake.core.checkpoint import Checkpoint
from longtake.core.sampler import sample_latents
from longtake.core.video import to_uint8
from longtake.grpo.config import GRPOConfig
from longtake.grpo.plan import Ranks
from longtake.rewards.contract import VideoBatch
from longtake.rewards.suite import RewardSuite
from longtake.runtime.errors import UserError
from longtake.runtime.files import explained, read_jsonl, replacing, write_jsonl
from longtake.runtime.rng import normal
from longtake.runtime.statistics import paired_bootstrap

#: Maps clips [B, T, 3, H, W] in [0, 1] and prompts to scores [B]; NaN where it cannot score.
Metric = Callable[[Tensor, Sequence[str]], Tensor]
Record = dict[str, Any]
OVERALL = "oracle_mean"
"""Mean of all metrics of a sample, and the number that a run is judged by."""
_SHOWN_CLIPS = 8
_SHOWN_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class HeldOutScores:
    """Scores of every sample, and a few clips to look at."""

    records: list[Record]
    """One per sample: prompt_id, prompt, sample, metrics, rewards (None where unscored)."""
    clips: Tensor
    """uint8 [N, T, 3, H, W], the first sample of the first prompts."""

    def write(self, folder: Path, name: str) -> None:
        """Write ``name.safetensors``, then ``name.jsonl``, which makes the pair complete."""
        clips = folder / f"{name}.safetensors"
        with explained(f"write {clips.name}", clips), replacing(clips) as temporary:
            save_file({"clips": self.clips}, temporary)
        write_jsonl(folder / f"{name}.jsonl", self.records)

    @classmethod
    def read(cls, folder: Path, name: str) -> "HeldOutScores":
        """Inverse of :meth:`write`."""
        clips = load_file(folder / f"{name}.safetensors")["clips"]
        return cls(records=read_jsonl(folder / f"{name}.jsonl"), clips=clips)

    def shown(self) -> list[Record]:
        """The records of the clips."""
        return [r for r in self.records if r["sample"] == 0][: len(self.clips)]


class HeldOut:
    """Samples and scores the held-out prompts with whatever adapter is active.

    :data:`OVERALL` is added to the metrics; the training rewards of ``suite`` are reported beside
    them. Prompts are shared out over the ranks.
    """

    def __init__(
        self,
        model: Checkpoint,
        prompts: Sequence[str],
        config: GRPOConfig,
        metrics: Mapping[str, Metric],
        suite: RewardSuite,
        ranks: Ranks,
    ) -> None:
        self.model, self.config, self.metrics = model, config, metrics
        self.suite, self.ranks = suite, ranks
        self.sigmas = model.sigmas(config.rollout.num_steps, config.rollout.shift)
        per_prompt = config.evaluation.samples_per_prompt
        samples = [(i, p, s) for i, p in enumerate(prompts) for s in range(per_prompt)]
        self.samples = ranks.mine(samples)

    @torch.no_grad()
    def evaluate(self, on_progress: Callable[[int], None]) -> HeldOutScores:
        """Score every sample; ``on_progress(done)`` may raise to stop."""
        size = self.config.rollout.decode_chunk
        records: list[Record] = []
        clips: list[Tensor] = []
        for start in range(0, len(self.samples), size):
            chunk = self.samples[start : start + size]
            # Metrics and rewards judge the 8-bit video a viewer gets, as rewards do in training.
            video = to_uint8(self._sample(chunk))
            records += self._score(chunk, video)
            clips += [clip for clip, (_, _, s) in zip(video, chunk, strict=True) if s == 0]
            del clips[max(1, min(_SHOWN_CLIPS, _SHOWN_BYTES // video[0].numel())) :]
            on_progress(len(records))
        gathered = [r for part in self.ranks.gather(records) for r in part]
        return HeldOutScores(records=gathered, clips=torch.stack(clips).cpu().contiguous())

    def _sample(self, chunk: Sequence[tuple[int, str, int]]) -> Tensor:
        rollout, model = self.config.rollout, self.model
        shape = model.vae.latent_shape(rollout.num_frames, rollout.height, rollout.width)
        # Not the run's seed: runs of different seeds are compared on the same noise.
        key = (self.config.evaluation.seed, "held_out")
        noise = [normal((1, *shape), *key, i, s, device=model.device) for i, _, s in chunk]
        z = sample_latents(
            model.dit,
            torch.cat(noise),
            model.text.encode([prompt for _, prompt, _ in chunk]),
            model.text.encode([""]),
            self.sigmas,
            rollout.guidance_scale,
            rollout.cfg,
        )
        return model.vae.decode(z, chunk=rollout.decode_chunk)

    def _score(self, chunk: Sequence[tuple[int, str, int]], video: Tensor) -> list[Record]:
        prompts = [prompt for _, prompt, _ in chunk]
        columns = {name: _scores(f, video.cpu(), prompts) for name, f in self.metrics.items()}
        scores = self.suite.score(
            VideoBatch(video=video, prompts=prompts, fps=self.config.rollout.fps)
        )
        records = []
        for row, (prompt_id, prompt, sample) in enumerate(chunk):
            metrics = {name: column[row] for name, column in columns.items()}
            if metrics:
                # NaN in one leaves the mean unscored: a mean of fewer metrics is another number.
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


def _scores(metric: Metric, video: Tensor, prompts: Sequence[str]) -> list[float]:
    """Scores of a batch; a prompt the metric does not understand leaves its sample unscored."""
    try:
        return [float(v) for v in metric(video, prompts)]
    except UserError:
        if len(prompts) == 1:
            return [math.nan]
        rows = zip(video.split(1), prompts, strict=True)
        return [_scores(metric, clip, [prompt])[0] for clip, prompt in rows]


def _nullable(values: Mapping[str, float]) -> dict[str, float | None]:
    return {k: (v if math.isfinite(v) else None) for k, v in values.items()}


def compare(
    before: Sequence[Record], after: Sequence[Record], group: str, config: GRPOConfig
) -> dict[str, dict[str, Any]]:
    """Name -> before, after, diff, ci95, n, n_clusters, dropped; intervals by prompt.

    ``group`` is "metrics" or "rewards" of the records of the same samples before and after.
    """
    by_key = {(r["prompt_id"], r["sample"]): r for r in after}
    pairs = [(r, by_key[r["prompt_id"], r["sample"]]) for r in before]
    differences: dict[str, dict[str, Any]] = {}
    for name in before[0][group] if before else []:
        values = [
            [math.nan if r[group][name] is None else r[group][name] for r in side]
            for side in zip(*pairs, strict=True)
        ]
        interval = paired_bootstrap(
            values[0],
            values[1],
            [r["prompt_id"] for r, _ in pairs],
            confidence=config.evaluation.confidence,
            resamples=config.evaluation.num_resamples,
            seed=config.evaluation.seed,
        )
        if interval.n_clusters < 2:  # one prompt says nothing about others
            empty = {"before": None, "after": None, "diff": None, "n": 0, "dropped": len(pairs)}
            differences[name] = empty
        else:
            differences[name] = interval.as_record()
    return differences
