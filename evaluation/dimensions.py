"""What raters judge: the dimensions of ``dimensions.toml``, the only table of their names."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

SCALE = (1, 5)
"""Lowest and highest score of a person; scores are whole numbers."""

TIER_WORDS = ("Bad", "Poor", "Fair", "Good", "Excellent")
"""Names of the scores 1 to 5, those of the absolute category rating of ITU-T P.910."""


@dataclass(frozen=True, kw_only=True, slots=True, config=ConfigDict(extra="forbid"))
class Dimension:
    """One question to a rater."""

    title: str
    """As it is shown; the key of the table is the name, as it is recorded."""
    question: str
    aspects: tuple[str, ...]
    """What the rater should look at."""
    tiers: tuple[str, str, str, str, str]
    """What a 1, 2, 3, 4 and 5 means."""
    judged: bool
    """Whether the report's automatic judge scores it too."""
    tasks: tuple[str, ...]
    code: str = ""
    """Name in VideoAlign's data and checkpoints; empty where it has none."""


DIMENSIONS: dict[str, Dimension] = TypeAdapter(dict[str, Dimension]).validate_python(
    tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
)

TASKS: dict[str, tuple[str, ...]] = {
    task: tuple(name for name, item in DIMENSIONS.items() if task in item.tasks)
    for task in ("t2v", "i2v")
}


def dimension_names(task: str, own: Sequence[str] = ()) -> tuple[str, ...]:
    """The dimensions of a study: those of the task (``t2v``, ``i2v``), or names of your own."""
    return tuple(dict.fromkeys(own)) if own else TASKS[task]


def title_of(name: str) -> str:
    """The title of a dimension; for one of your own, its name."""
    return DIMENSIONS[name].title if name in DIMENSIONS else name.replace("_", " ")
