"""The scores of a judge in a log: which judge, and the latest answer for each clip."""

import math
from collections.abc import Iterable, Sequence

from longtake.evaluation.ratings import Rating
from longtake.runtime.errors import UserError

Answer = tuple[float, str]
"""Score (NaN: none) and why there is none."""
CONTROL_MARK = "+"
"""Between the name of a judge and that of a control in the rater of a record."""


def latest_scores(records: Iterable[Rating], rater: str) -> dict[tuple[str, str], Answer]:
    """(sample, dimension) -> the last answer of one judge (or of one of its controls)."""
    return {
        (item.sample, item.dimension): (
            math.nan if item.score is None else item.score,
            item.reason if item.score is None else "",
        )
        for item in records
        if item.rater == rater
    }


def find_judge(records: Sequence[Rating], wanted: str = "") -> str:
    """Name of the judge of a log.

    Args:
        records: of the log, without controls.
        wanted: the judge to use; empty: the only one.

    Raises:
        UserError: human ratings only, or several judges and none chosen.
    """
    automatic = (item for item in records if item.kind == "automatic")
    names = sorted({item.rater.partition(CONTROL_MARK)[0] for item in automatic})
    if wanted in names:
        return wanted
    if wanted or len(names) != 1:
        raise UserError(
            "the judge is not in the log" if wanted else "the log does not hold one judge",
            received=wanted or ", ".join(names) or "no record of kind automatic",
            expected=f"one of: {', '.join(names)}" if names else "the log of `eval judge score`",
            remedy="name the judge with --judge-name" if names else "score the samples first",
        )
    return names[0]
