"""Saved state of a run: adapter, optimizer, averages and counters; enough to resume bitwise.

All random draws are named by (seed, update, slot), so no generator state is saved.
"""

import json
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longtake.core.lora import (
    load_lora_state_dict,
    lora_parameters,
    lora_state_dict,
    save_lora,
)
from longtake.runtime.errors import CheckpointError


@dataclass(kw_only=True, slots=True)
class Counters:
    """Totals over the finished updates."""

    updates: int = 0
    rollout: float = 0.0
    """Evaluations in rollouts."""
    rollout_naive: float = 0.0
    """Evaluations that G whole trajectories per prompt would have taken."""
    train_forwards: int = 0
    """Policy and reference forwards in updates."""
    train_forwards_naive: int = 0
    """The same with one forward per sample."""
    unscored: dict[str, int] = field(default_factory=dict)
    """Reward -> samples without a score."""


#: What reading a damaged archive raises besides the usual errors.
_DAMAGE = (EOFError, pickle.UnpicklingError)


class AdapterAverage:
    """Exponential average of the adapter's weights.

    Args:
        parameters: the adapter's parameters by name.
        decay: weight of the past, in [0, 1).
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.mean = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: dict[str, nn.Parameter]) -> None:
        """Move the average towards the current weights."""
        for name, p in parameters.items():
            self.mean[name].lerp_(p.detach(), 1 - self.decay)


def save_state(
    folder: Path,
    dit: nn.Module,
    optimizer: torch.optim.Optimizer,
    counters: Counters,
    average: AdapterAverage | None,
) -> None:
    """Write everything into an empty folder (the run directory publishes it atomically)."""
    save_lora(dit, folder / "lora", layout="peft")
    state: dict[str, Any] = {"adapter": lora_state_dict(dit), "optimizer": optimizer.state_dict()}
    if average is not None:
        state["average"] = average.mean
    torch.save(state, folder / "state.pt")
    text = json.dumps(asdict(counters), indent=2) + "\n"
    (folder / "counters.json").write_text(text, encoding="utf-8")


def load_state(
    folder: Path,
    dit: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AdapterAverage | None,
) -> Counters:
    """Restore what :func:`save_state` wrote.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        device = next(iter(lora_parameters(dit).values())).device
        state = torch.load(folder / "state.pt", map_location=device, weights_only=True)
        counters = Counters(**json.loads((folder / "counters.json").read_text(encoding="utf-8")))
        load_lora_state_dict(dit, state["adapter"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            _copy(average.mean, state["average"])
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, *_DAMAGE) as error:
        raise CheckpointError(
            f"the saved state cannot be read: {error}",
            received=str(folder),
            expected="state.pt and counters.json as a run writes them",
            remedy="delete this folder to resume from the one before it",
        ) from error
    return counters


def _copy(target: dict[str, Tensor], source: dict[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
