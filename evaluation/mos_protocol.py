"""Three raters for every video, two more where they differ: the protocol as a state machine.

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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from longtake.runtime.errors import ConfigError

Scope = Literal["video", "dimension"]


class State(StrEnum):
    """Where a unit is in the protocol."""

    WAITING = "waiting"
    AGREED = "agreed"
    ESCALATED = "escalated"
    RESOLVED = "resolved"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProtocolConfig:
    """The rule."""

    first_raters: int = 3
    """Raters of every video, >= 2 (report section 5.1: 3)."""
    extra_raters: int = 2
    """Raters added after a discrepancy, >= 0 (report section 5.1: 2)."""
    threshold: float = 2.0
    """Range of the first raters' scores, in scale points, that calls for more; > 0."""
    scope: Scope = "video"
    """``video``: a discrepancy in any dimension has the whole video rated again; ``dimension``:
    only the dimension concerned."""

    def __post_init__(self) -> None:
        if self.first_raters < 2 or self.extra_raters < 0 or not self.threshold > 0:
            raise ConfigError(
                "the rating protocol cannot be used",
                received=f"{self.first_raters} raters, {self.extra_raters} more, "
                f"threshold {self.threshold:g}",
                expected="at least 2 raters, 0 or more extra ones, a threshold > 0",
            )
        if self.scope not in ("video", "dimension"):
            raise ConfigError(
                "unknown scope of the protocol",
                received=self.scope,
                expected="video or dimension",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One video, or one dimension of it, in the protocol."""

    sample: str
    """The video."""
    dimensions: tuple[str, ...]
    """What a rater rates at once."""
    state: State
    """Where it is."""
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


def transition(
    state: State, num_complete: int, discrepancy: float | None, config: ProtocolConfig
) -> State:
    """The state after ``num_complete`` raters; the same state when nothing follows."""
    if state is State.WAITING and discrepancy is not None and num_complete >= config.first_raters:
        return State.ESCALATED if discrepancy >= config.threshold else State.AGREED
    if state is State.ESCALATED and num_complete >= config.first_raters + config.extra_raters:
        return State.RESOLVED
    return state


def assess(
    ratings: Iterable[tuple[str, str, str, float]],
    dimensions: Sequence[str],
    config: ProtocolConfig,
    samples: Iterable[str] = (),
) -> tuple[Unit, ...]:
    """Run the machine over ratings.

    Args:
        ratings: (sample, rater, dimension, score) in the order in which they were made; each
            (sample, rater, dimension) once.
        dimensions: the dimensions of the study.
        config: the rule.
        samples: videos to be rated, also those without ratings; others follow in order.
    """
    given: dict[str, dict[str, _Given]] = {sample: {} for sample in samples}
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
    sample: str,
    dimensions: tuple[str, ...],
    by_rater: Mapping[str, _Given],
    config: ProtocolConfig,
) -> Unit:
    finished = {
        rater: max(given[d][1] for d in dimensions)
        for rater, given in by_rater.items()
        if all(d in given for d in dimensions)
    }
    complete = tuple(sorted(finished, key=finished.__getitem__))
    some = tuple(r for r, given in by_rater.items() if any(d in given for d in dimensions))
    discrepancy: float | None = None
    if len(complete) >= config.first_raters:
        first = [by_rater[rater] for rater in complete[: config.first_raters]]
        by_dimension = [[given[d][0] for given in first] for d in dimensions]
        discrepancy = max(max(scores) - min(scores) for scores in by_dimension)
    state = State.WAITING
    while (after := transition(state, len(complete), discrepancy, config)) is not state:
        state = after
    disputed = state in (State.ESCALATED, State.RESOLVED)
    asked = config.first_raters + (config.extra_raters if disputed else 0)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """One thing for one rater to do."""

    sample: str
    """The video."""
    rater: str
    """Who."""
    dimensions: tuple[str, ...]
    """What to rate."""


def assign(
    units: Sequence[Unit], raters: Sequence[str], seed: int = 0
) -> tuple[tuple[Assignment, ...], tuple[str, ...]]:
    """Who rates what next.

    Raters who began a video finish it. The others are drawn among those who have not rated it,
    the least loaded first. The order is shuffled for each rater, so that neither the order of the
    list nor that of the models shows.

    Returns:
        The assignments, rater by rater, and in words the units for which no rater is left.
    """
    rng = random.Random(seed)
    load = dict.fromkeys(raters, 0)
    planned: dict[tuple[str, str], list[str]] = {}
    short = []
    for unit in rng.sample(list(units), len(units)):
        begun = [rater for rater in unit.partial if rater in load][: unit.needed]
        free = [r for r in load if r not in unit.complete and r not in unit.partial]
        rng.shuffle(free)
        free.sort(key=load.__getitem__)
        chosen = begun + free[: unit.needed - len(begun)]
        for rater in chosen:
            load[rater] += 1
            planned.setdefault((rater, unit.sample), []).extend(unit.dimensions)
        if len(chosen) < unit.needed:
            short.append(f"{unit.sample}: {unit.needed - len(chosen)} more raters needed")
    keys = rng.sample(sorted(planned), len(planned))
    keys.sort(key=lambda key: list(load).index(key[0]))
    made = tuple(
        Assignment(sample=sample, rater=rater, dimensions=tuple(planned[rater, sample]))
        for rater, sample in keys
    )
    return made, tuple(short)


def budget_factor(escalation_rate: float, config: ProtocolConfig) -> float:
    """Expected ratings of a study over those of its first round: 1 + (extra / first) x rate."""
    return 1.0 + config.extra_raters / config.first_raters * escalation_rate
