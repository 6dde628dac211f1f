"""The compute device behind the command line's ``--device``."""

import torch

from longtake.runtime.errors import UserError


def pick_device(name: str) -> torch.device:
    """``auto`` (a GPU when there is one), ``cpu``, ``cuda`` or ``cuda:N`` as a usable device.

    Raises:
        UserError: not a device name, or a device that this machine does not have.
    """
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
