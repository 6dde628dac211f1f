"""Multi-reward group advantages with the max group std (Eq. 9-10, 50-51, Algorithm 1 l.19-30).

Axis suffixes: K rewards, P prompts of this rank, G members of a group. NaN marks an unscored
reward; it enters no mean, std or maximum, and its sample gets 0 from that reward.

Two choices where the report is silent: the std is the population one (ddof 0), and no epsilon is
added to it; a maximum of exactly 0 gives advantages 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AdvantageOutput:
    """Advantages of one update and the statistics they came from, in the rewards' dtype."""

    advantage_PG: Tensor
    """Weighted total, 0 for a sample without any usable reward."""
    per_reward_KPG: Tensor
    """Unweighted advantages; ``advantage_PG`` is their sum with the weights."""
    mean_KP: Tensor
    """Group means; NaN where no member is scored."""
    std_KP: Tensor
    """Group population stds; NaN where fewer than two members are scored."""
    max_std_K: Tensor
    """Largest group std of each reward over all prompts of all ranks; 0 when there is none."""
    valid_PG: Tensor
    """True where at least one reward was used for the sample."""


def advantages(
    reward_KPG: Tensor,
    weights_K: Sequence[float] | Tensor,
    *,
    scale: str = "max_group",
    aggregation: str = "weighted_advantages",
    group: dist.ProcessGroup | None = None,
) -> AdvantageOutput:
    """Weighted group-relative advantages A = sum_k w_k (R_k - mean_k) / scale_k.

    Arithmetic is fp64. With ``max_group``, ``group`` and ``none`` the result is bitwise the same
    for every split of the prompts over ranks; ``batch`` needs global sums and agrees to rounding.

    Args:
        reward_KPG: rewards of this rank's prompts, NaN (or infinite) where unscored.
        weights_K: weight of each reward; not normalised.
        scale: divisor of a centred reward: ``max_group`` (the report: largest group std over all
            ranks), ``group`` (own group's std), ``batch`` (std of all samples), ``none``.
        aggregation: ``weighted_advantages`` (the report) scales each reward, then adds;
            ``weighted_rewards`` adds the rewards, then scales the sum, and uses only samples
            scored by every reward with a non-zero weight.
        group: process group for the collectives; None is the default group.
    """
    weights = [float(weight) for weight in weights_K]
    assert reward_KPG.ndim == 3 and len(weights) == len(reward_KPG), reward_KPG.shape
    dtype = torch.promote_types(reward_KPG.dtype, torch.float32)
    reward = reward_KPG.double()
    num_rewards = len(weights)
    if aggregation == "weighted_rewards":
        reward = _mask_incomplete(reward, weights)
        parts = [weight * row for weight, row in zip(weights, reward, strict=True) if weight != 0]
        total_PG = _ordered_sum(parts) if parts else torch.zeros_like(reward[0])
        reward = torch.cat([reward, total_PG.unsqueeze(0)])  # [K+1, P, G], the sum last
    mean, std, count = group_statistics(reward)  # l.20-21
    max_std = max_group_std(std, group)  # l.22-23
    divisor = {
        "max_group": lambda: max_std.unsqueeze(1),
        "group": lambda: std,
        "batch": lambda: _batch_std(reward, group).unsqueeze(1),
        "none": lambda: torch.ones_like(max_std).unsqueeze(1),
    }[scale]()
    if aggregation == "weighted_rewards":
        divisor = divisor[-1:]
        reward, mean, std, count = (rows[:num_rewards] for rows in (reward, mean, std, count))

    used_KPG = torch.isfinite(reward) & (count >= 2).unsqueeze(-1)
    divisor_KP1 = divisor.expand(mean.shape).unsqueeze(-1)
    # A divisor of 0, or NaN for a group below two members, gives advantage 0.
    usable = used_KPG & (divisor_KP1 > 0)
    per_reward = torch.where(usable, (reward - mean.unsqueeze(-1)) / divisor_KP1, 0.0)  # l.25
    advantage = _ordered_sum([w * row for w, row in zip(weights, per_reward, strict=True)])  # l.30
    return AdvantageOutput(
        advantage_PG=advantage.to(dtype),
        per_reward_KPG=per_reward.to(dtype),
        mean_KP=mean.to(dtype),
        std_KP=std.to(dtype),
        max_std_K=max_std[:num_rewards].to(dtype),
        valid_PG=used_KPG.any(0),
    )


def group_statistics(reward_KPG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (NaN without a scored member), population std (NaN below two) and number of members.

    ``reward_KPG`` is non-finite where unscored; each result is [K, P].
    """
    scored = torch.isfinite(reward_KPG)
    count_KP = scored.sum(-1)
    total = _ordered_sum(torch.where(scored, reward_KPG, 0.0).unbind(-1))
    low = torch.where(scored, reward_KPG, torch.inf).amin(-1)
    high = torch.where(scored, reward_KPG, -torch.inf).amax(-1)
    # The clamp matters when all members are equal: rounding must not invent a spread.
    mean_KP = torch.minimum(torch.maximum(total / count_KP, low), high)
    mean_KP = torch.where(count_KP > 0, mean_KP, torch.nan)
    deviation = torch.where(scored, reward_KPG - mean_KP.unsqueeze(-1), 0.0)
    variance = _ordered_sum((deviation * deviation).unbind(-1)) / count_KP
    std_KP = torch.where(count_KP >= 2, variance.sqrt(), torch.nan)
    return mean_KP, std_KP, count_KP


def max_group_std(std_KP: Tensor, process_group: dist.ProcessGroup | None = None) -> Tensor:
    """Largest group std of each reward, over the prompts of every rank (Algorithm 1 l.22-23).

    One MAX all-reduce of K numbers when torch.distributed is initialised; a maximum has no
    rounding, so the result does not depend on how prompts are split over ranks. A rank without
    prompts (P = 0) takes part. 0 where no group of the reward has a std.
    """
    floor = std_KP.new_zeros(std_KP.shape[0], 1)
    max_std_K = torch.cat([floor, std_KP.nan_to_num(nan=0.0)], dim=1).amax(1)
    if dist.is_initialized():
        dist.all_reduce(max_std_K, op=dist.ReduceOp.MAX, group=process_group)
    return max_std_K


def _batch_std(reward_KPG: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """Population std of each reward over every scored sample of every rank: [K]."""
    scored = torch.isfinite(reward_KPG).flatten(1)
    reward = torch.where(scored, reward_KPG.flatten(1), 0.0)
    sums = torch.stack([scored.sum(1).to(reward), reward.sum(1)])  # [2, K]
    if dist.is_initialized():
        dist.all_reduce(sums, group=process_group)
    count, total = sums
    deviation = torch.where(scored, reward - (total / count).unsqueeze(1), 0.0)
    squares = (deviation * deviation).sum(1)
    if dist.is_initialized():
        dist.all_reduce(squares, group=process_group)
    return torch.where(count >= 2, (squares / count).sqrt(), 0.0)


def _mask_incomplete(reward_KPG: Tensor, weights: Sequence[float]) -> Tensor:
    """NaN in every reward of a sample that lacks one with a non-zero weight.

    A sum with a missing term cannot be compared with full sums.
    """
    needed = [k for k, weight in enumerate(weights) if weight != 0]
    complete_PG = torch.isfinite(reward_KPG[needed]).all(0)
    return torch.where(complete_PG, reward_KPG, torch.nan)


def _ordered_sum(parts: Sequence[Tensor]) -> Tensor:
    # Elementwise additions in a fixed order. A torch reduction may choose another order when the
    # number of prompts changes, and advantages must not depend on how prompts are split.
    return reduce(add, parts)
