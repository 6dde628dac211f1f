"""Results of single videos, and how a dimension's score follows from them.

A dimension is the mean over the videos to which it applies (results other than -1), not over
prompts; `scripts/cal_final_score.py` and the `compute_*` functions of the public code at the pinned
commit. The score in a result file is recomputed here, because naive tools average the -1 as well.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from longtake.evaluation.vbench.suites import NOT_APPLICABLE, Dimension

STATED_TOLERANCE = 1e-6
RESULT_FILE = "result file"
_MOSTLY = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoResult:
    """What one video got in one dimension (Diversity: all videos of a prompt)."""

    value: float
    """As in the file: in units of the dimension; -1 may mean not applicable."""
    frames: float = 1.0
    """Weight in the mean."""
    entry: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """As the public code wrote it, with the path and the reasons of its judge."""


@dataclass(kw_only=True)
class DimensionResults:
    """Everything known about one dimension of one model."""

    dimension: Dimension
    stated: float | None
    """Score that the file states; None when it states none."""
    videos: dict[str, VideoResult]
    """By file name; finite and in range."""
    unscored: dict[str, str] = field(default_factory=dict)
    """Reason by file name, for videos without a usable result."""
    origin: str = RESULT_FILE
    """Who scored: `ours`, `upstream runner`, or somebody of whom only the file is known."""
    provenance: Mapping[str, object] = field(default_factory=dict)
    """What made the results, where our record says so: commit, digest of the suite."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with the file as a whole."""
    source: str = ""
    """File that was read."""

    @property
    def applicable(self) -> dict[str, VideoResult]:
        """The videos that count."""
        if not self.dimension.may_not_apply:
            return self.videos
        return {n: v for n, v in self.videos.items() if v.value != NOT_APPLICABLE}

    @property
    def forced_to_zero(self) -> bool:
        """Whether upstream's rule for a dimension that applies to almost no video holds."""
        dropped = len(self.videos) - len(self.applicable)
        return self.dimension.mostly_inapplicable_is_zero and dropped > _MOSTLY * len(self.videos)

    @property
    def recomputed(self) -> float | None:
        """Score in [0, 1] from the videos; None when none counts."""
        if self.forced_to_zero:
            return 0.0
        counted = self.applicable.values()
        weight = sum(v.frames for v in counted)
        if not weight:
            return None
        return sum(v.value * v.frames for v in counted) / weight / self.dimension.unit

    @property
    def score(self) -> float | None:
        """The score to use: recomputed, unless only the file knows the weights."""
        if self.stated is not None and (self.dimension.frames_hidden or not self.videos):
            return self.stated
        return self.recomputed

    def notes(self) -> list[str]:
        """What a reader of the score must know: problems, corrections, upstream's hazards."""
        notes = list(self.problems)
        name = self.dimension.name
        recomputed = self.recomputed
        if self.videos and recomputed is None:
            notes.append("no video counts: all are -1 (not applicable)")
        if self.forced_to_zero:
            notes.append("more than 90 % of the videos are -1; upstream's rule makes this 0")
        if self.stated is not None and recomputed is not None:
            notes += self._compare_stated(recomputed)
        ones = sum(v.value == self.dimension.unit for v in self.videos.values())
        if name == "Human_Anatomy" and ones:
            notes.append(f"{ones} videos are exactly 1; upstream gives 1 where it finds no person")
        if name == "Instance_Preservation" and ones and self.origin == RESULT_FILE:
            notes.append(
                f"{ones} videos are exactly 1; upstream also gives 1 to videos under 2 s and where "
                "judging a clip failed"
            )
        if name == "Human_Interaction" and self.videos:
            notes.append("upstream samples one of its language model's answers: not repeatable")
        return notes

    def _compare_stated(self, recomputed: float) -> list[str]:
        assert self.stated is not None
        if not math.isfinite(self.stated):
            return [f"the file states {self.stated}; its videos give {recomputed:.6g}"]
        if abs(self.stated - recomputed) <= STATED_TOLERANCE:
            return []
        if self.dimension.frames_hidden:
            return [f"weighted by frames in the file; the plain mean is {recomputed:.6g}"]
        values = [v.value / self.dimension.unit for v in self.videos.values()]
        naive = sum(values) / len(values)
        why = " (the mean with the -1)" if abs(naive - self.stated) <= STATED_TOLERANCE else ""
        return [f"the file states {self.stated:.6g}{why}; its videos give {recomputed:.6g}"]
