"""Where a command computes: the device behind ``--device``, and the number of processes."""

import os

import torch

from longtake.runtime.errors import UserError


def pick_device(name: str) -> torch.device:
    """``auto`` (a GPU when there is one), ``cpu``, ``cuda`` or ``cuda:N`` as a usable device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ["auto", "cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
    if name not in here:
        raise UserError(
            "no such device on this machine",
            received=name,
            expected=" | ".join(here),
            remedy="use --device auto",
        )
    return torch.device(name)


def refuse_launcher(what: str, advice: str = "") -> None:
    """Refuse a launcher (torchrun, accelerate) that started several processes.

    Args:
        what: the work, in plural: "rewards are trained".
        advice: what helps where memory is short.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        raise UserError(
            f"{what} by one process",
            received=f"WORLD_SIZE={size}",
            remedy="start without a launcher" + (f"; {advice}" if advice else ""),
        )
