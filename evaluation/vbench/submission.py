"""The zip for the public leaderboard: checked first, one folder deep, scores without the -1.

The public aggregator looks one level deep only and takes a missing dimension for 0, so results in
the layout of the public `evaluate.sh` (two levels) get a total of 0. Here they are found at any
depth and packed so that it finds them.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtake.evaluation.vbench.aggregate import Scores, aggregate, planned_results
from longtake.evaluation.vbench.plan import Plan
from longtake.evaluation.vbench.result_files import RESULTS_ENDING, public_content, read_results
from longtake.evaluation.vbench.suites import Suite
from longtake.runtime.errors import RunDirectoryError, UserError
from longtake.runtime.files import replacing

_TIME = (1980, 1, 1, 0, 0, 0)  # the bytes of the zip depend on the results only


def submit(suite: Suite, source: Path, out: Path, plan: Plan | None = None) -> Scores:
    """Check the results of a model and pack them.

    Args:
        suite: which leaderboard.
        source: results at any depth; see :func:`read_results`.
        out: the zip to write.
        plan: the videos that must have results; None compares numbers with the official suite.

    Returns:
        The scores that the leaderboard will compute.

    Raises:
        UserError: a dimension or a video is missing, or a file is unusable; lists everything.
        RunDirectoryError: the zip cannot be written.
    """
    found = read_results(suite, source)
    scores = aggregate(found, plan)
    lacking = [
        f"{name}: {'; '.join(line.notes) or 'no score'}"
        if line.score is None
        else f"{name}: {len(line.unscored or {})} videos unscored, {_first(line.unscored)}"
        for name, line in scores.dimensions.items()
        if not line.is_complete
    ]
    if lacking or scores.problems:
        raise UserError(
            "the results are not complete, so nothing was packed",
            received="\n    ".join([str(source), *scores.problems, *lacking]),
            expected=f"all {len(suite.dimensions)} dimensions with every video scored",
            remedy="run what is missing with `eval vbench run`; it continues where it stopped",
        )
    try:
        with (
            replacing(out) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for name, results in planned_results(found, plan).items():
                info = zipfile.ZipInfo(f"{name}/{name}{RESULTS_ENDING}", _TIME)
                info.compress_type = zipfile.ZIP_DEFLATED
                text = json.dumps(public_content(results), indent=4, ensure_ascii=False)
                archive.writestr(info, text)
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write the zip: {error.strerror or error}",
            received=str(out),
            remedy="choose another --out",
        ) from error
    return scores


def _first(reasons: Mapping[str, Any] | None) -> str:
    return "; ".join(f"{video}: {why}" for video, why in list((reasons or {}).items())[:1])
