"""Refusal of launchers by work that one process does."""

import os

from longtake.runtime.errors import UserError


def refuse_launcher(what: str, advice: str = "") -> None:
    """Raise UserError where a launcher (torchrun, accelerate) started more than one process.

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
