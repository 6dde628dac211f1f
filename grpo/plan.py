"""Which prompts an update sees, the critical timestep and size of each, and whose they are.

A plan is a pure function of (config, prompts, update): every process computes the whole of it and
works on its share, so nothing depends on how the batch is split (Algorithm 1, l.3-7).
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from longtake.grpo.config import GRPOConfig
from longtake.runtime.errors import UserError
from longtake.runtime.rng import derive_key, generator

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTask:
    """One group to sample."""

    update: int
    slot: int
    """Position in the update's batch over all ranks; names the group's random draws."""
    prompt_id: int
    """Line of the prompt file, from 0."""
    prompt: str
    t_index: int
    """Critical step t', an index into the schedule, in [0, T')."""
    height: int
    """Pixels, as ``width``."""
    width: int


def read_prompts(path: Path) -> list[str]:
    """Prompts of a UTF-8 text file, one a line; blank lines are left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the prompt file cannot be read: {error}",
            received=str(path),
            expected="a UTF-8 text file with one prompt per line",
            remedy="check the path; convert other encodings with iconv -f LATIN1 -t UTF-8",
        ) from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError(
            "the prompt file has no prompts",
            received=str(path),
            expected="at least one non-blank line",
            remedy="write one prompt per line",
        )
    return prompts


def plan_update(config: GRPOConfig, prompts: Sequence[str], update: int) -> list[PromptTask]:
    """The groups of one update: prompts walk through one permutation of the file per epoch."""
    count = config.prompts_per_update
    # A size per group, never per member: members are compared with each other.
    sizes = config.rollout.bucket_sizes() or [(config.rollout.height, config.rollout.width)]
    steps = critical_steps(config, update)
    tasks = []
    for slot in range(count):
        # By counting, not by an iterator: a resumed run finds its place without any state.
        epoch, position = divmod(update * count + slot, len(prompts))
        prompt_id = _permutation(config.seed, epoch, len(prompts))[position]
        bucket = derive_key(config.seed, "bucket", update, slot) % len(sizes)
        tasks.append(
            PromptTask(
                update=update,
                slot=slot,
                prompt_id=prompt_id,
                prompt=prompts[prompt_id],
                t_index=steps[slot],
                height=sizes[bucket][0],
                width=sizes[bucket][1],
            )
        )
    return tasks


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> tuple[int, ...]:
    return tuple(torch.randperm(size, generator=generator(seed, "epoch", epoch)).tolist())


def critical_steps(config: GRPOConfig, update: int) -> list[int]:
    """T' of every slot of an update, drawn from the first T' steps.

    ``uniform`` draws each slot alone (Algorithm 1 l.7). ``stratified`` spreads the slots evenly
    over the T' steps and permutes them, which has the same marginal and less variance.
    """
    count, num_steps = config.prompts_per_update, config.sde.num_sde_steps
    draws = [derive_key(config.seed, "t", update, slot) / 2**63 for slot in range(count)]
    if config.sde.timestep_strategy == "uniform":
        # u < 1, so the last index is T' - 1: the report's range [0, 6] read as 0..5.
        return [int(u * num_steps) for u in draws]
    order = torch.randperm(count, generator=generator(config.seed, "strata", update)).tolist()
    return [int((order[i] + u) / count * num_steps) for i, u in enumerate(draws)]


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of a run; a group never leaves its rank."""

    rank: int = 0
    size: int = 1

    @classmethod
    def connect(cls, device: torch.device) -> "Ranks":
        """Join the process group that torchrun or accelerate announced in the environment."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(rank=dist.get_rank(), size=dist.get_world_size())

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run directory."""
        return self.rank == 0

    def mine(self, items: Sequence[Item]) -> list[Item]:
        """This rank's contiguous share of a list that every rank holds; shares may differ by 1."""
        # Contiguous, so that gathered results are in the order of the plan.
        n = len(items)
        return list(items[self.rank * n // self.size : (self.rank + 1) * n // self.size])

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Add tensors over the ranks, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def gather(self, value: Item) -> list[Item]:
        """Every rank's value, in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values
