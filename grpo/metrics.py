"""The metrics of one update, with TRL's names where TRL has them.

No clock enters here: two runs with one seed write the same lines. Probes under ``hacking/`` are
cheap pixel statistics whose drift is the first sign of a hacked reward (section 3.3.2, Fig. 9).
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from longtake.grpo.advantage import AdvantageOutput
from longtake.grpo.loss import LossStats
from longtake.grpo.plan import PromptTask
from longtake.grpo.ranks import Ranks
from longtake.rewards.suite import RewardSuite

Record = dict[str, float | int | None]


def mean(values: Iterable[float]) -> float | None:
    """Mean of the finite values; None if there are none."""
    kept = [v for v in values if math.isfinite(v)]
    return math.fsum(kept) / len(kept) if kept else None


def pixel_probes(video: Tensor) -> dict[str, float]:
    """Saturation, luminance and frame difference of clips [G, T, 3, H, W], each in [0, 1]."""
    pixels = video.float() / 255 if video.dtype == torch.uint8 else video.float()
    spread = pixels.amax(2) - pixels.amin(2)
    return {
        "saturation": float(spread.mean()),
        "luminance": float(pixels.mean()),
        "frame_difference": float(pixels.diff(dim=1).abs().mean()) if pixels.shape[1] > 1 else 0.0,
    }


def update_record(
    update: int,
    tasks: Sequence[PromptTask],
    reward_KPG: Tensor,
    suite: RewardSuite,
    advantage: AdvantageOutput,
    stats: Sequence[LossStats],
    videos: Sequence[Tensor],
    grad_norm: float,
    learning_rate: float,
    ranks: Ranks,
) -> Record:
    """One line of metrics.jsonl, over all ranks."""
    local = {
        "t": [task.t_index for task in tasks],
        "rewards": reward_KPG.tolist(),
        "stats": list(stats),
        "probes": [pixel_probes(video) for video in videos],
    }
    parts = ranks.gather(local)
    losses: list[LossStats] = [s for part in parts for s in part["stats"]]
    probes = [p for part in parts for p in part["probes"]]
    record: Record = {"update": update}
    totals: list[float] = []
    zero_std = []
    for k, name in enumerate(suite.names):
        groups = [torch.tensor(row) for part in parts for row in part["rewards"][k]]
        record[f"rewards/{name}/mean"] = mean(v for row in groups for v in row.tolist())
        record[f"rewards/{name}/std"] = mean(_std(row) for row in groups)
        record[f"advantages/max_group_std/{name}"] = float(advantage.max_std_K[k])
        record[f"unscored/{name}"] = sum(int((~row.isfinite()).sum()) for row in groups)
        zero_std += [_std(row) == 0 for row in groups]
        value = record[f"rewards/{name}/mean"]
        totals.append(math.nan if value is None else suite.weights[name] * value)
    record["reward"] = math.fsum(totals) if all(map(math.isfinite, totals)) else None
    record["frac_reward_zero_std"] = mean(map(float, zero_std))
    record["loss"] = mean(s.loss for s in losses)
    record["policy_loss"] = mean(s.policy_loss for s in losses)
    record["kl"] = mean(s.kl for s in losses if s.kl is not None)
    record["ratio/mean"] = mean(s.ratio_mean for s in losses)
    record["ratio/min"] = min((s.ratio_min for s in losses), default=None)
    record["ratio/max"] = max((s.ratio_max for s in losses), default=None)
    record["clip_ratio/region_mean"] = mean(s.clip_fraction for s in losses)
    record["grad_norm"] = grad_norm
    record["learning_rate"] = learning_rate
    record["sde/t_index"] = mean(float(t) for part in parts for t in part["t"])
    for name in ("saturation", "luminance", "frame_difference"):
        record[f"hacking/{name}"] = mean(p[name] for p in probes)
    return record


def _std(row: Tensor) -> float:
    kept = row[row.isfinite()].double()
    return float(kept.std(correction=0)) if len(kept) > 1 else math.nan
