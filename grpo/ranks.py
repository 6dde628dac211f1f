"""The processes of a run: which groups are mine, and the few numbers that must be summed.

A group never leaves its rank. Started by torchrun or accelerate launch (``WORLD_SIZE`` > 1); a
single process needs none of it.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Rank and number of processes."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run directory."""
        return self.rank == 0

    def mine(self, items: Sequence[Item]) -> list[Item]:
        """This rank's contiguous share of a list that every rank holds; shares may differ by 1."""
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

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some rank."""
        return any(self.gather(flag))


def connect(device: torch.device) -> Ranks:
    """Join the process group that a launcher announced in the environment."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(rank=dist.get_rank(), size=dist.get_world_size())
