"""What is wrong with the input of an evaluation and what was done about it."""

from collections.abc import Iterable
from dataclasses import dataclass

_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One kind of irregularity in an input."""

    kind: str
    """Short name, such as ``duplicate rating``."""
    effect: str
    """What the result does about it, such as ``counted once``."""
    items: tuple[str, ...]
    """Every case, in words; never empty."""

    @property
    def count(self) -> int:
        """Number of cases."""
        return len(self.items)

    def __str__(self) -> str:
        shown = "; ".join(self.items[:_SHOWN])
        more = f"; and {self.count - _SHOWN} more" if self.count > _SHOWN else ""
        return f"{self.kind} ({self.count}, {self.effect}): {shown}{more}"

    def as_record(self) -> dict[str, object]:
        """JSON-ready: kind, effect, count and all items."""
        return {
            "kind": self.kind,
            "effect": self.effect,
            "count": self.count,
            "items": list(self.items),
        }


class Findings:
    """Collects findings; kinds without a case leave no trace."""

    def __init__(self, earlier: Iterable[Finding] = ()) -> None:
        self._found = list(earlier)

    def add(self, kind: str, effect: str, items: Iterable[str]) -> None:
        """Record one kind with all of its cases; does nothing when there are none."""
        cases = tuple(items)
        if cases:
            self._found.append(Finding(kind=kind, effect=effect, items=cases))

    def all(self) -> tuple[Finding, ...]:
        """Everything recorded, in order."""
        return tuple(self._found)
