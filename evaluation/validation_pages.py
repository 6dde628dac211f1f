"""Simulated evidence for whole pages of `eval compare`: people, blind pairs and VBench 2.0."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from longtake.evaluation.findings import Findings
from longtake.evaluation.gsb import GsbResult
from longtake.evaluation.model_comparison import ComparisonSettings
from longtake.evaluation.mos import video_scores
from longtake.evaluation.report.compare_lines import Line, gsb_line, score_lines
from longtake.evaluation.report.compare_sides import Evidence, Side, Sides
from longtake.evaluation.report.compare_vbench import SuiteSides
from longtake.evaluation.report.content import Way
from longtake.evaluation.report.inputs import Inputs
from longtake.evaluation.report.score_sets import PEOPLE
from longtake.evaluation.report.verdict import judge_together, verdict
from longtake.evaluation.vbench.bootstrap import FloatArray
from longtake.evaluation.vbench.result_files import ResultSet, parse_dimension
from longtake.evaluation.vbench.suites import VBENCH2

FIRST, SECOND = "A", "B"
"""Names of the two models in a simulated study."""
SUITE_PROMPTS = 15
"""Prompts of every VBench dimension; more would only make its intervals easier."""
_VIDEOS = 3
_PROMPT_SD, _OWN_SD = 0.15, 0.1


def page_lines(ratings: pd.DataFrame, pairs: GsbResult, settings: ComparisonSettings) -> list[Line]:
    """What people and blind pairs say of A and B, not corrected yet.

    Args:
        ratings: checked ratings of both models; every dimension is a line.
        pairs: answers to blind pairs, A as reference; as many lines again.
        settings: resampling.
    """
    nothing = Evidence(inputs=Inputs(), scores=())
    first, second = (
        Side(label=name, model=name, evidence=nothing, is_whole=False) for name in (FIRST, SECOND)
    )
    scores = video_scores(ratings)
    named = scores.assign(model=scores["model"].map({FIRST: "first", SECOND: "second"}))
    sides = Sides(first=first, second=second, plans=())
    by_people = score_lines(named, PEOPLE, sides, settings, Findings())
    return [*by_people, *map(gsb_line, pairs.counts)]


def suite_sides(chances: tuple[float, float], seed: int) -> SuiteSides:
    """VBench 2.0 results of A and B: 18 dimensions, 5 categories and the total are lines.

    Args:
        chances: of each model to pass a test.
        seed: of the results.
    """
    rng = np.random.default_rng([seed, 5])
    ease = {name: rng.normal(0.0, _PROMPT_SD, SUITE_PROMPTS) for name in VBENCH2.dimensions}
    first, second = (_suite_results(chance, ease, rng) for chance in chances)
    return SuiteSides(VBENCH2, first, second, None, [])


def page_verdict(
    lines: Sequence[Line], suites: Sequence[SuiteSides], settings: ComparisonSettings
) -> Way:
    """Which model a page with these lines calls better, by the judgement of `eval compare`."""
    judged, _ = judge_together(lines, suites, settings, Findings())
    return verdict(judged, FIRST, SECOND, settings.confidence).way


def _suite_results(
    chance: float, ease: dict[str, FloatArray], rng: np.random.Generator
) -> ResultSet:
    """Results of one model; videos of a prompt share its ease and how the model takes it."""
    found = ResultSet(suite=VBENCH2, source=Path("simulated"))
    for name, dimension in VBENCH2.dimensions.items():
        own = rng.normal(0.0, _OWN_SD, SUITE_PROMPTS)
        passes = np.clip(chance + ease[name] + own, 0.0, 1.0)
        videos = 1 if dimension.per_prompt else _VIDEOS
        results = rng.random((SUITE_PROMPTS, videos)) < passes[:, None]
        entries = [
            {"video_path": f"{name} {p}-{i}.mp4", "video_results": float(results[p, i])}
            for p in range(SUITE_PROMPTS)
            for i in range(videos)
        ]
        found.dimensions[name] = parse_dimension(dimension, None, entries)
    return found
