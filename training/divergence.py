"""Stop a training whose loss is no longer a number, before it is saved as if it were one."""

import math

from longtake.runtime.errors import LongtakeError


class DivergenceError(LongtakeError, ArithmeticError):
    """The loss became infinite or NaN."""


def check_finite(loss: float, part: str, step: int) -> float:
    """Return ``loss`` if it is finite.

    Raises:
        DivergenceError: naming the part, the step and the remedy.
    """
    if not math.isfinite(loss):
        raise DivergenceError(
            f"the loss of the {part} is {loss} at step {step}\n"
            "  remedy: start again with a lower learning rate; the saved state may already be lost"
        )
    return loss
