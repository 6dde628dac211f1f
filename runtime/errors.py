"""Errors a user can act on: each carries what was received, what was expected and the remedy."""


class LongtakeError(Exception):
    """Root of every error raised on purpose by longtake."""


class UserError(LongtakeError, ValueError):
    """Wrong input. The message has three parts: received value, expectation, remedy.

    Args:
        what: one clause naming the thing that is wrong.
        received: the offending value, shown with ``repr`` when it is not a string.
        expected: what would have been accepted.
        remedy: the next thing to type or do.
    """

    def __init__(
        self, what: str, *, received: object = None, expected: str = "", remedy: str = ""
    ) -> None:
        self.what, self.received, self.expected, self.remedy = what, received, expected, remedy
        parts = [what]
        if received is not None:
            shown = received if isinstance(received, str) else repr(received)
            parts.append(f"received: {shown}")
        if expected:
            parts.append(f"expected: {expected}")
        if remedy:
            parts.append(f"remedy: {remedy}")
        super().__init__("\n  ".join(parts))

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default exception pickling.
        return (_rebuild, (type(self), self.what, self.received, self.expected, self.remedy))


def _rebuild(
    cls: type[UserError], what: str, received: object, expected: str, remedy: str
) -> UserError:
    return cls(what, received=received, expected=expected, remedy=remedy)


class ConfigError(UserError):
    """A configuration key or value that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint directory that is missing, incomplete or does not fit the model."""


class RunDirectoryError(UserError, OSError):
    """A run directory that cannot be written (permissions, full disk, already in use)."""


class DivergenceError(UserError):
    """A training whose loss or gradient is no longer a number."""
