"""Three raters for every video, two more where they differ: the protocol, and who rates what next.

Report section 5.1, quality control: each video is annotated by three annotators; where any two
differ significantly, two more reassess it; the score is the mean of all ratings. What counts as
significant is not said; it is a setting here.

    WAITING    --first raters complete, range < threshold-->   AGREED      (final)
    WAITING    --first raters complete, range >= threshold-->  ESCALATED
    ESCALATED  --first and extra raters complete-->            RESOLVED    (final)

A rater is complete when all dimensions of the unit have a score. The range is that of the first
raters only: later ratings settle a dispute, they cannot start one.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import Field

from longtake.evaluation.checks import CheckSettings, check_ratings
from longtake.evaluation.ratings import (
    Finding,
    Findings,
    SampleList,
    opaque_name,
    place_file,
    read_ratings,
)
from longtake.runtime.config import Config
from longtake.runtime.errors import UserError
from longtake.runtime.files import write_csv

Scope = Literal["video", "dimension"]

VIDEO_FOLDER = "videos"


class State(StrEnum):
    """Where a unit is in the protocol."""

    WAITING = "waiting"
    AGREED = "agreed"
    ESCALATED = "escalated"
    RESOLVED = "resolved"


class ProtocolConfig(Config):
    """The rule; the numbers of raters are those of report section 5.1."""

    first_raters: int = Field(default=3, ge=2)
    extra_raters: int = Field(default=2, ge=0)
    """Raters added after a discrepancy."""
    threshold: float = Field(default=2.0, gt=0)
    """Range of the first raters' scores, in scale points, that calls for more. On a 5-point scale a
    range of 1 would send most videos back."""
    scope: Scope = "video"
    """``video``: a discrepancy in any dimension has the whole video rated again; ``dimension``:
    only the dimension concerned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One video, or one dimension of it, in the protocol; dimensions are rated at once."""

    sample: str
    dimensions: tuple[str, ...]
    state: State
    complete: tuple[str, ...]
    """Raters with all dimensions, in the order in which they finished."""
    partial: tuple[str, ...]
    """Raters with some dimensions."""
    discrepancy: float | None
    """Largest range of the first raters over the dimensions; None before they are complete."""
    needed: int
    """Complete raters still to come."""
    surplus: int
    """Complete raters beyond what the protocol asks; their ratings count too."""


_Given = dict[str, tuple[float, int]]
"""Scores of one rater for one video: dimension -> (score, place in the order of all ratings)."""


def assess(
    ratings: Iterable[tuple[str, str, str, float]],
    dimensions: Sequence[str],
    config: ProtocolConfig,
    samples: Iterable[str] = (),
) -> tuple[Unit, ...]:
    """Run the machine over (sample, rater, dimension, score), without repeats, in their order.

    ``samples`` are to be rated, also those without ratings.
    """
    given: dict[str, dict[str, _Given]] = {sample: {} for sample in samples}
    # The order of the log is all that says who was first; times are missing in sheets.
    for order, (sample, rater, dimension, score) in enumerate(ratings):
        given.setdefault(sample, {}).setdefault(rater, {})[dimension] = (score, order)
    groups = [tuple(dimensions)]
    if config.scope == "dimension":
        groups = [(dimension,) for dimension in dimensions]
    return tuple(
        _unit(sample, group, by_rater, config)
        for sample, by_rater in given.items()
        for group in groups
    )


def _unit(
    sample: str, dimensions: tuple[str, ...], by_rater: Mapping[str, _Given], config: ProtocolConfig
) -> Unit:
    every = {r: given for r, given in by_rater.items() if all(d in given for d in dimensions)}
    finished = {rater: max(given[d][1] for d in dimensions) for rater, given in every.items()}
    complete = tuple(sorted(finished, key=finished.__getitem__))
    some = (r for r, given in by_rater.items() if any(d in given for d in dimensions))
    state, discrepancy, asked = State.WAITING, None, config.first_raters
    if len(complete) >= config.first_raters:
        first = [by_rater[rater] for rater in complete[: config.first_raters]]
        by_dimension = [[given[d][0] for given in first] for d in dimensions]
        discrepancy = max(max(scores) - min(scores) for scores in by_dimension)
        # Nothing leads back: a study that asked for two more raters pays for them either way.
        state = State.AGREED
        if discrepancy >= config.threshold:
            asked += config.extra_raters
            state = State.RESOLVED if len(complete) >= asked else State.ESCALATED
    return Unit(
        sample=sample,
        dimensions=dimensions,
        state=state,
        complete=complete,
        partial=tuple(rater for rater in some if rater not in complete),
        discrepancy=discrepancy,
        needed=max(asked - len(complete), 0),
        surplus=max(len(complete) - asked, 0),
    )


ASSESSED = ["sample", "rater", "dimension", "score"]
"""Columns of a table of ratings that :func:`assess` takes, in its order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProtocolStatus:
    """How far a study is: units by state, and how many called for more raters."""

    states: Mapping[str, int]
    decided: int
    """Units whose first raters are complete."""
    escalated: int
    still_needed: int
    """Complete ratings of a unit that are missing."""
    budget_factor: float | None
    """Expected ratings over those of the first round, 1 + (extra / first) x rate of escalation;
    None before any unit is decided."""


def protocol_status(units: Sequence[Unit], config: ProtocolConfig) -> ProtocolStatus:
    """Counts over the units."""
    states = Counter(unit.state for unit in units)
    escalated = states[State.ESCALATED] + states[State.RESOLVED]
    decided = escalated + states[State.AGREED]
    more = config.extra_raters / config.first_raters
    return ProtocolStatus(
        states={state.value: states[state] for state in State},
        decided=decided,
        escalated=escalated,
        still_needed=sum(unit.needed for unit in units),
        budget_factor=1.0 + more * escalated / decided if decided else None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """One video for one rater."""

    sample: str
    rater: str
    dimensions: tuple[str, ...]


def assign(
    units: Sequence[Unit], raters: Sequence[str], seed: int = 0
) -> tuple[tuple[Assignment, ...], tuple[str, ...]]:
    """Who rates what next, rater by rater, and in words the units for which no rater is left.

    Raters who began a video finish it. The others are drawn among those who have not rated it,
    the least loaded first. The order is shuffled for each rater, so that neither the order of the
    list nor that of the models shows.
    """
    rng = random.Random(seed)
    load = dict.fromkeys(raters, 0)
    planned: dict[tuple[str, str], list[str]] = {}
    short = []
    for unit in rng.sample(list(units), len(units)):
        begun = [rater for rater in unit.partial if rater in load][: unit.needed]
        free = [r for r in load if r not in unit.complete and r not in unit.partial]
        rng.shuffle(free)  # before a stable sort: of equally loaded raters any may come first
        free.sort(key=load.__getitem__)
        team = begun + free[: unit.needed - len(begun)]
        for rater in team:
            load[rater] += 1
            planned.setdefault((rater, unit.sample), []).extend(unit.dimensions)
        if len(team) < unit.needed:
            short.append(f"{unit.sample}: {unit.needed - len(team)} more raters needed")
    keys = rng.sample(sorted(planned), len(planned))
    keys.sort(key=lambda key: list(load).index(key[0]))
    assignments = tuple(
        Assignment(sample=sample, rater=rater, dimensions=tuple(planned[rater, sample]))
        for rater, sample in keys
    )
    return assignments, tuple(short)


@dataclass(frozen=True, kw_only=True)
class AssignReport:
    """What :func:`write_assignments` did."""

    status: ProtocolStatus
    """Progress before the new sheets."""
    sheets: tuple[Path, ...]
    assignments: tuple[Assignment, ...]
    files: Mapping[str, str]
    """Blind name of the video of each assigned sample, relative to the folder."""
    findings: tuple[Finding, ...]


def write_assignments(
    samples: SampleList,
    ratings: Sequence[Path],
    dimensions: tuple[str, ...],
    config: ProtocolConfig,
    raters: Sequence[str],
    folder: Path,
    *,
    seed: int = 0,
) -> AssignReport:
    """Write ``sheet-RATER.csv`` with everything that the protocol asks of each rater now.

    Bring filled sheets into the log first: what is still out counts as not done. Videos get opaque
    names in ``videos/``; samples whose video is missing are not assigned.
    """
    if not raters or len(set(raters)) < len(raters):
        received, expected = ", ".join(raters) or "nobody", "different names, at least one"
        raise UserError("the raters cannot be used", received=received, expected=expected)
    given, irregular = read_ratings(ratings, dimensions)
    findings = Findings((*samples.findings, *irregular))
    lost, by_id = samples.missing_videos(), samples.by_id
    if given:
        settings = CheckSettings(dimensions=dimensions)
        checked = check_ratings(given, settings, samples, findings)
        # Before the end of a study most samples are without a rating.
        findings = Findings(f for f in checked.findings if f.kind != "sample without a rating")
        rated = checked.table[ASSESSED].itertuples(index=False, name=None)
        units = assess(rated, dimensions, config, by_id)
    else:
        findings.add("missing video", "not assigned", lost.values())
        units = assess([], dimensions, config, by_id)
    # A video that is not there would cost each rater a "cannot judge".
    assignments, short = assign([u for u in units if u.sample not in lost], raters, seed)
    findings.add("too few raters", "not assigned", short)
    files = {}
    for sample in dict.fromkeys(item.sample for item in assignments):
        source = samples.video_path(by_id[sample])
        if source is not None:
            files[sample] = f"{VIDEO_FOLDER}/{opaque_name(sample)}{source.suffix}"
            place_file(source, folder / files[sample])
    sheets = []
    for rater in dict.fromkeys(item.rater for item in assignments):
        sheets.append(sheet := folder / f"sheet-{rater.replace('/', '_')}.csv")
        if sheet.exists():
            raise UserError(
                "the sheet exists already and may be filled in",
                received=str(sheet),
                remedy="bring it in with `eval mos score`, then assign into another --output-dir",
            )
        rows = [
            {
                # Ids of lists often name the model; the checks know the opaque name too.
                "sample": opaque_name(item.sample),
                "rater": rater,
                "caption": by_id[item.sample].caption,
                "video": files.get(item.sample, ""),
                **cells,
            }
            for item in assignments
            if item.rater == rater
            for cells in _to_fill(item, config.scope, dimensions)
        ]
        write_csv(sheet, pd.DataFrame(rows))
    return AssignReport(
        status=protocol_status(units, config),
        sheets=tuple(sheets),
        assignments=assignments,
        files=files,
        findings=tuple(findings),
    )


def _to_fill(item: Assignment, scope: Scope, dimensions: Sequence[str]) -> list[dict[str, str]]:
    """Empty cells: a row with a column for each dimension, or by scope a row for each dimension."""
    if scope == "dimension":
        return [{"dimension": name, "score": ""} for name in item.dimensions]
    return [dict.fromkeys(dimensions, "")]
