"""Does the chain call the right models different? Measured on studies whose truth is known.

For each simulated study: raters with bias and noise, the protocol, the checks, the aggregation.
Two equal models must be called different in at most 5 % of the studies, by MOS, by GSB, and by any
line of a whole page of `eval compare`; a worse model must be called worse, and a ladder of models
must come out in its order, by MOS, GSB and Bradley-Terry alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import binomtest

from longtake.evaluation.dimensions import dimension_names
from longtake.evaluation.gsb import GsbResult, aggregate_gsb, pairs_as_samples
from longtake.evaluation.gsb_plan import plan_pairs
from longtake.evaluation.model_comparison import ComparisonSettings
from longtake.evaluation.mos import MosResult, MosSettings, aggregate_mos
from longtake.evaluation.rating_checks import CheckSettings, RatingTable, check_ratings
from longtake.evaluation.report.compare_lines import Line
from longtake.evaluation.samples import SampleList
from longtake.evaluation.simulated_raters import (
    SimulatedStudy,
    rater_pool,
    simulate_answers,
    simulate_ratings,
    simulated_samples,
)
from longtake.evaluation.tables import Table
from longtake.evaluation.validation_pages import (
    FIRST,
    SECOND,
    page_lines,
    page_verdict,
    suite_sides,
)

DIMENSIONS = ("visual_quality", "motion_quality")
"""Of the studies; pages have all dimensions of text-to-video."""
STEP = 0.5
"""Points between neighbours of the ladder of four models."""
GAP = 0.8
"""Points between the better and the worse model."""
CHANCES = (0.6, 0.45)
"""Chances of the better and the worse model to pass a test of VBench 2.0."""
_ERROR_RATE = 0.05
_RESAMPLES = 1000
_RECOVERIES = 20
"""Least number of studies of different models; more of them tell little."""

_FALSE_MOS = "equal models called different (MOS)"
_FALSE_GSB = "equal models called different (GSB)"
_FALSE_SIDE = "a side called favoured without a reason (GSB)"
_FALSE_PEOPLE = "equal models called different (page: people, pairs)"
_FALSE_PAGE = "equal models called different (page: people, pairs, VBench 2.0)"
_WORSE_MOS = "worse model called worse (MOS)"
_WORSE_GSB = "worse model called worse (GSB)"
_WORSE_PAGE = "worse model called worse (page: people, pairs, VBench 2.0)"
_ORDER_MOS = "order of four models recovered (MOS)"
_ORDER_PAIRS = "order of four models recovered (Bradley-Terry)"
_ERRORS = (_FALSE_MOS, _FALSE_GSB, _FALSE_SIDE, _FALSE_PEOPLE, _FALSE_PAGE)
_QUESTIONS = (*_ERRORS, _WORSE_MOS, _WORSE_GSB, _WORSE_PAGE, _ORDER_MOS, _ORDER_PAIRS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """How often something happened."""

    name: str
    """What is counted."""
    count: int
    """In how many studies."""
    studies: int
    """Of how many."""
    rate: float
    """count / studies."""
    ci_low: float
    """Lower end of the exact (Clopper-Pearson) 95 % interval."""
    ci_high: float
    """Upper end."""
    wanted: str
    """What it should be."""
    passed: bool
    """Whether it is, given the number of studies."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """All rates."""

    rates: tuple[Rate, ...]
    """One row for each question."""
    num_prompts: int
    """Prompts of a study."""

    @property
    def passed(self) -> bool:
        """Whether all did."""
        return all(rate.passed for rate in self.rates)


def validate(
    studies: int = 200,
    *,
    num_prompts: int = 60,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Validation:
    """Simulate and count.

    A false-positive rate passes unless its interval lies above 5 %; the other rates pass at 95 %
    of the studies or more.

    Args:
        studies: of equal models; of different models a tenth, at least 20.
        num_prompts: of each study.
        seed: of everything.
        on_progress: called with the number of finished studies.
    """
    counts = {name: [0, 0] for name in _QUESTIONS}
    for index in range(studies):
        own = seed * 1_000_003 + index
        answers = _equal_models(own, num_prompts)
        if index < max(_RECOVERIES, studies // 10):
            answers |= _unequal_models(own, num_prompts)
        for name, happened in answers.items():
            counts[name][0] += happened
            counts[name][1] += 1
        on_progress(index + 1)
    return Validation(
        rates=tuple(_rate(name, count, of) for name, (count, of) in counts.items()),
        num_prompts=num_prompts,
    )


def _rate(name: str, count: int, studies: int) -> Rate:
    interval = binomtest(count, studies).proportion_ci(0.95, method="exact")
    if name in _ERRORS:
        wanted, passed = f"<= {_ERROR_RATE:.0%}", bool(interval.low <= _ERROR_RATE)
    else:
        wanted, passed = f">= {1 - _ERROR_RATE:.0%}", count / studies >= 1 - _ERROR_RATE
    return Rate(
        name=name,
        count=count,
        studies=studies,
        rate=count / studies,
        ci_low=float(interval.low),
        ci_high=float(interval.high),
        wanted=wanted,
        passed=passed,
    )


def _equal_models(seed: int, num_prompts: int) -> dict[str, bool]:
    """One study of two equal models and one whole page, as answers to the first questions."""
    study = _study({FIRST: 3.3, SECOND: 3.3}, seed, num_prompts)
    pairs = simulated_gsb(study, seed)
    return {
        _FALSE_MOS: any(d.different for d in simulated_mos(study, seed).comparison.differences),
        _FALSE_GSB: any(count.different for count in pairs.counts),
        _FALSE_SIDE: any(item.p < _ERROR_RATE / len(DIMENSIONS) for item in pairs.position),
        **_equal_page(seed, num_prompts),
    }


def _equal_page(seed: int, num_prompts: int) -> dict[str, bool]:
    lines, settings = _page({FIRST: 3.3, SECOND: 3.3}, seed, num_prompts)
    suites = [suite_sides((CHANCES[1], CHANCES[1]), seed)]
    return {
        _FALSE_PEOPLE: page_verdict(lines, [], settings) != "none",
        _FALSE_PAGE: page_verdict(lines, suites, settings) != "none",
    }


def _unequal_models(seed: int, num_prompts: int) -> dict[str, bool]:
    """Studies of two and of four different models, as answers to the other questions."""
    unequal = {FIRST: 3.3 + GAP, SECOND: 3.3}
    study = _study(unequal, seed, num_prompts)
    called = {(d.better, d.different) for d in simulated_mos(study, seed).comparison.differences}
    counted = {(c.net > 0, c.different) for c in simulated_gsb(study, seed).counts}
    lines, settings = _page(unequal, seed, num_prompts)
    ladder = _study({f"M{i}": 2.5 + STEP * i for i in range(4)}, seed, num_prompts)
    order = [f"M{i}" for i in reversed(range(4))]
    ranked = simulated_mos(ladder, seed)
    strengths = simulated_gsb(ladder, seed).rankings
    return {
        _WORSE_MOS: called == {(FIRST, True)},
        _WORSE_GSB: counted == {(True, True)},
        _WORSE_PAGE: page_verdict(lines, [suite_sides(CHANCES, seed)], settings) == "first",
        _ORDER_MOS: all(_ranking(ranked, dimension) == order for dimension in DIMENSIONS),
        _ORDER_PAIRS: all([s.model for s in strengths[d].strengths] == order for d in DIMENSIONS),
    }


def _page(
    quality: dict[str, float], seed: int, num_prompts: int
) -> tuple[list[Line], ComparisonSettings]:
    """Lines of people and pairs on all dimensions of text-to-video."""
    study = _study(quality, seed, num_prompts, dimension_names("t2v"))
    settings = ComparisonSettings(resamples=_RESAMPLES, seed=seed)
    pairs = simulated_gsb(study, seed)
    return page_lines(_ratings(study, seed).table, pairs, settings), settings


def _study(
    quality: dict[str, float],
    seed: int,
    num_prompts: int,
    dimensions: tuple[str, ...] = DIMENSIONS,
) -> SimulatedStudy:
    return SimulatedStudy(
        quality={model: dict.fromkeys(dimensions, value) for model, value in quality.items()},
        raters=rater_pool(8, seed),
        num_prompts=num_prompts,
    )


def simulated_mos(study: SimulatedStudy, seed: int, resamples: int = _RESAMPLES) -> MosResult:
    """A MOS study from raters to result."""
    comparison = ComparisonSettings(resamples=resamples, seed=seed)
    settings = MosSettings(dimensions=study.dimensions, comparison=comparison)
    return aggregate_mos(_ratings(study, seed), settings)


def _ratings(study: SimulatedStudy, seed: int) -> RatingTable:
    ratings = simulate_ratings(study, seed=seed)
    return check_ratings(ratings, CheckSettings(dimensions=study.dimensions))


def simulated_gsb(
    study: SimulatedStudy, seed: int, resamples: int = _RESAMPLES, ranking_resamples: int = 0
) -> GsbResult:
    """A GSB study from the plan to the result, three raters for a pair."""
    listed = SampleList(samples=tuple(simulated_samples(study)), folder=Path())
    pairs, _ = plan_pairs(listed, seed=seed)
    table = check_ratings(
        simulate_answers(study, pairs, raters_per_pair=3, seed=seed),
        CheckSettings(dimensions=study.dimensions, scale=(-1.0, 1.0)),
        pairs_as_samples(pairs, Path()),
    )
    return aggregate_gsb(
        table,
        pairs,
        study.dimensions,
        ComparisonSettings(resamples=resamples, seed=seed),
        ranking_resamples=ranking_resamples,
    )


def _ranking(result: MosResult, dimension: str) -> list[str]:
    cells = [cell for cell in result.comparison.means if cell.dimension == dimension]
    return [cell.model for cell in sorted(cells, key=lambda cell: -cell.mean)]


def validation_table(result: Validation) -> Table:
    """The rates as a table."""
    return Table(
        name="validation",
        title=f"Simulated studies of {result.num_prompts} prompts",
        columns=("question", "studies", "rate", "95 % interval", "wanted", "result"),
        rows=tuple(
            (
                rate.name,
                rate.studies,
                f"{rate.rate:.1%}",
                f"[{rate.ci_low:.1%}, {rate.ci_high:.1%}]",
                rate.wanted,
                "passed" if rate.passed else "FAILED",
            )
            for rate in result.rates
        ),
        note="A study counts as a false positive when any dimension calls the models different; a "
        "page, when any of its 8 (with VBench 2.0: 32) lines says that a model is better.",
    )
