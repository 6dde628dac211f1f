"""The suites: dimensions, categories, and how the total follows from them. Data: suites.toml."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from longtake.runtime.errors import UserError

NOT_APPLICABLE = -1
"""The public code's result of a video to which the dimension does not apply; it leaves the mean."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One scored property of videos."""

    name: str
    prompts: int
    """Prompts of the official suite."""
    samples: int
    """Videos to generate per prompt."""
    evaluated: int = 0
    """Videos per prompt that are scored; 0: all. A static filter leaves 5 of 25 for flickering."""
    per_prompt: bool = False
    """One result per prompt over all of its videos, filed under the first, instead of one each."""
    may_not_apply: bool = False
    """A video's result may be -1 (not applicable), which leaves the mean."""
    leaves_out: bool = False
    """Upstream drops videos from its results without a trace where it finds no object."""
    mostly_inapplicable_is_zero: bool = False
    """Upstream scores 0 when more than 90 % of the videos are -1."""
    low: float = 0.0
    """Score that is normalised to 0."""
    high: float = 1.0
    """Score that is normalised to 1."""
    weight: float = 1.0
    """Weight within the category."""
    unit: float = 1.0
    """Result of a video that means a score of 1 (imaging quality: 100)."""
    frames_key: str = ""
    """Field of a video's result with its number of frames, where the mean is over frames."""
    frames_hidden: bool = False
    """The mean is over frames whose numbers no result file holds: the stated score counts."""
    lowest: float = 0.0
    """Smallest possible result of a video, in units of ``unit``."""
    hazard: str = ""
    """What a reader of the score must know about upstream's way to it."""

    @property
    def scored_samples(self) -> int:
        """Videos per prompt that are scored."""
        return self.evaluated or self.samples

    @property
    def results_per_prompt(self) -> int:
        """Results that a complete evaluation has for one prompt."""
        return 1 if self.per_prompt else self.scored_samples


@dataclass(frozen=True, kw_only=True)
class Category:
    """A group of dimensions with a score of its own."""

    name: str
    dimensions: tuple[Dimension, ...]
    weight: float
    """Weight within the total."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A benchmark of the public repository."""

    name: str
    title: str
    categories: tuple[Category, ...]
    package: str
    """Python package of the public code; it holds ``prompt_file``."""
    prompt_file: str
    folder: str
    """Folder of the public repository from which the code must be started."""
    cache_variable: str
    """Environment variable with the folder of the weights."""
    name_length: int | None = None
    """File names take this many characters of the prompt; None: all."""
    outside_total: tuple[str, ...] = ()
    """Dimensions that the public code scores as well and that no total uses."""

    @cached_property
    def dimensions(self) -> dict[str, Dimension]:
        """Dimension by name, in the order of the categories."""
        return {d.name: d for category in self.categories for d in category.dimensions}

    def dimension(self, name: str) -> Dimension:
        """The dimension of a name as in result files or as printed (`Human Anatomy`)."""
        key = name.replace(" ", "_")
        if key not in self.dimensions:
            raise UserError(
                f"unknown dimension of {self.title}",
                received=name,
                expected=", ".join(self.dimensions),
            )
        return self.dimensions[key]

    def video_name(self, prompt: str, index: int) -> str:
        """File name of a sample. Never stripped: 20 official names end in a space before `-`."""
        return f"{prompt[: self.name_length]}-{index}.mp4"

    def totals(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Every category whose dimensions are all there, and `Total` when every category is.

        Category: sum w (x - low) / (high - low) / sum w, for VBench 2.0 the plain mean. Total: the
        weighted mean of the categories, for VBench 1.0 (4, 1) / 5. A missing dimension is never 0.
        """
        # Sums run in the order of the suite, so that totals do not move by rounding.
        lines: dict[str, float] = {}
        for category in self.categories:
            if all(d.name in scores for d in category.dimensions):
                lines[category.name] = sum(
                    d.weight * (scores[d.name] - d.low) / (d.high - d.low)
                    for d in category.dimensions
                ) / sum(d.weight for d in category.dimensions)
        if len(lines) == len(self.categories):
            lines["Total"] = sum(c.weight * lines[c.name] for c in self.categories) / sum(
                c.weight for c in self.categories
            )
        return lines

    def shares(self, line: str) -> dict[str, float]:
        """How much a line (dimension, category, `Total`) moves by each dimension, d line / d x."""
        if line in self.dimensions:
            return {line: 1.0}
        total = sum(c.weight for c in self.categories)
        return {
            d.name: (category.weight / total if line == "Total" else 1.0)
            * d.weight
            / sum(other.weight for other in category.dimensions)
            / (d.high - d.low)
            for category in self.categories
            if line in (category.name, "Total")
            for d in category.dimensions
        }


def _suite(name: str, table: dict[str, Any]) -> Suite:
    default, weights = table.pop("default"), table.pop("weights", {})
    categories = tuple(
        Category(
            name=category,
            dimensions=tuple(
                Dimension(name=dimension, **(default | fields))
                for dimension, fields in members.items()
            ),
            weight=weights.get(category, 1),
        )
        for category, members in table.pop("categories").items()
    )
    outside = tuple(table.pop("outside_total", ()))
    return Suite(name=name, categories=categories, outside_total=outside, **table)


SCORED_SUITES: dict[str, Suite] = {
    name: _suite(name, table)
    for name, table in tomllib.loads(
        Path(__file__).with_name("suites.toml").read_text(encoding="utf-8")
    ).items()
}
"""Suites whose result files are scored."""
VBENCH2, VBENCH1 = SCORED_SUITES["vbench2"], SCORED_SUITES["vbench1"]
SUITES = {suite.name: suite for suite in (VBENCH2, VBENCH1)}
"""Suites that are planned, generated and run here too; image-to-video would need its images."""


def find_suite(name: str, among: Mapping[str, Suite] = SUITES) -> Suite:
    """The suite of a name."""
    if name not in among:
        raise UserError("unknown suite", received=name, expected=", ".join(among))
    return among[name]
