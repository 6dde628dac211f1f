"""Published VBench 2.0 scores (Table 8 of the report), shipped as data."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from longtake.evaluation.vbench.suites import Suite, find_suite
from longtake.evaluation.vbench.totals import shares
from longtake.runtime.errors import UserError

PUBLISHED = Path(__file__).resolve().parents[2] / "benchmarks_data" / "published"


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """One row of a published table."""

    name: str
    source: str
    evaluated: str
    """Year and month of the evaluation."""
    categories: Mapping[str, float]
    """Categories and `Total`, in [0, 1]."""
    dimensions: Mapping[str, float]
    """In [0, 1]; empty where only categories were published."""


def published_models(suite: Suite, folder: Path = PUBLISHED) -> dict[str, PublishedModel]:
    """All published rows of a suite by name; empty where none are shipped.

    Raises:
        UserError: the data file is damaged.
    """
    path = folder / f"{suite.name}.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        unit = {"percent": 100.0, "fraction": 1.0}[content["unit"]]
        if find_suite(content["suite"]) is not suite:
            raise ValueError(f"it holds {content['suite']}")
        rows = [
            PublishedModel(
                name=row["model"],
                source=row["source"],
                evaluated=row["evaluated"],
                categories={k: float(v) / unit for k, v in row["categories"].items()},
                dimensions={k: float(v) / unit for k, v in row.get("dimensions", {}).items()},
            )
            for row in content["models"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the published results are damaged: {type(error).__name__}: {error}",
            received=str(path),
            remedy="restore the file from the repository",
        ) from error
    return {row.name: row for row in rows}


def find_published(suite: Suite, name: str, folder: Path = PUBLISHED) -> PublishedModel:
    """The published row of a model.

    Raises:
        UserError: unknown model; lists the known ones.
    """
    rows = published_models(suite, folder)
    if name not in rows:
        raise UserError(
            f"no published {suite.title} results of this model, and no folder of results",
            received=name,
            expected=f"a folder or zip of results, or one of: {', '.join(rows) or 'none shipped'}",
        )
    return rows[name]


def rough_error(suite: Suite, categories: Mapping[str, float]) -> dict[str, float]:
    """Rough standard error of published scores, which come without results of videos.

    Each dimension counts as a share p of its prompts, with p the score of its category; then
    p (1 - p) / prompts is the variance if all videos of a prompt agree and every result is 0 or 1.
    Graded results and videos that disagree have less; prompts that two dimensions share and videos
    to which a dimension does not apply add to it.

    Args:
        suite: weights and numbers of prompts.
        categories: published scores in [0, 1].

    Returns:
        Standard error in [0, 1] by category that is given, and for `Total` when all are.
    """
    variances = {
        d.name: categories[c.name] * (1 - categories[c.name]) / d.prompts
        for c in suite.categories
        if c.name in categories
        for d in c.dimensions
    }
    errors = {}
    for line in (*(c.name for c in suite.categories), "Total"):
        parts = shares(suite, line)
        if all(name in variances for name in parts):
            errors[line] = math.sqrt(sum(s**2 * variances[name] for name, s in parts.items()))
    return errors
