"""The score table: what is missing is never 0, and everything that is missing is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longtake.evaluation.vbench.aggregate import aggregate
from longtake.evaluation.vbench.plan import Plan, make_plan
from longtake.evaluation.vbench.result_files import ResultSet, parse_dimension
from longtake.evaluation.vbench.results import DimensionResults
from longtake.evaluation.vbench.suite_data import PromptRow, SuiteData
from longtake.evaluation.vbench.suites import VBENCH1, VBENCH2

Entries = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def whole(data: SuiteData) -> Plan:
    return make_plan(data)


def result_set(plan: Plan, entries: Entries, *values: object) -> ResultSet:
    found = ResultSet(suite=plan.suite, source=Path("test"))
    for name in plan.dimensions:
        dimension = plan.suite.dimensions[name]
        found.dimensions[name] = parse_dimension(dimension, None, entries(plan, name, *values))
    return found


def test_a_complete_set_has_every_line(whole: Plan, entries: Entries) -> None:
    scores = aggregate(result_set(whole, entries, 1, 0, 1), whole)
    assert scores.is_complete
    assert {line.name for line in scores.dimensions.values()} == set(VBENCH2.dimensions)
    total = scores.categories["Total"]
    categories = [scores.categories[c.name].score or 0 for c in VBENCH2.categories]
    assert total.score == pytest.approx(sum(categories) / 5)
    assert total.interval is not None
    assert total.interval.low <= total.score <= total.interval.high
    assert scores.dimensions["Material"].videos == 6 and scores.dimensions["Material"].prompts == 2
    assert scores.dimensions["Diversity"].videos == 2


def test_a_missing_dimension_is_not_zero(whole: Plan, entries: Entries) -> None:
    found = result_set(whole, entries, 1)
    del found.dimensions["Material"]
    for allow in (False, True):
        scores = aggregate(found, whole, allow_incomplete=allow)
        assert not scores.is_complete
        assert scores.dimensions["Material"].score is None
        for name in ("Physics", "Total"):
            line = scores.categories[name]
            assert line.score is None and line.interval is None
            assert line.notes == ("no score without Material",)
        assert scores.categories["Creativity"].score == 1.0


def test_a_missing_video_stops_the_total_until_allowed(whole: Plan, entries: Entries) -> None:
    found = result_set(whole, entries, 1, 0)
    lost = next(iter(found.dimensions["Mechanics"].videos))
    del found.dimensions["Mechanics"].videos[lost]
    strict = aggregate(found, whole)
    assert strict.dimensions["Mechanics"].unscored == {lost: "missing: no result"}
    assert strict.dimensions["Mechanics"].score == pytest.approx(2 / 5)
    assert strict.categories["Physics"].score is None
    assert strict.categories["Total"].notes == ("no score while videos are missing: Mechanics",)
    allowed = aggregate(found, whole, allow_incomplete=True)
    assert allowed.categories["Total"].score is not None
    assert allowed.categories["Total"].notes == ("incomplete: Mechanics",)


def test_results_are_not_changed_by_scoring(whole: Plan, entries: Entries) -> None:
    found = result_set(whole, entries, 1)
    found.dimensions["Mechanics"].videos.popitem()
    first, second = aggregate(found, whole), aggregate(found, whole)
    assert first.as_record() == second.as_record()
    assert not found.dimensions["Mechanics"].unscored


def test_without_a_plan_the_official_numbers_count(whole: Plan, entries: Entries) -> None:
    scores = aggregate(result_set(whole, entries, 1))
    assert scores.dimensions["Material"].unscored == {"144 more": "missing: no result"}
    assert scores.categories["Total"].score is None


def test_unplanned_results_do_not_count(whole: Plan, entries: Entries) -> None:
    found = result_set(whole, entries, 1)
    extra = {"video_path": "/x/stranger-0.mp4", "video_results": 0.0}
    material = [*entries(whole, "Material", 1), extra]
    found.dimensions["Material"] = parse_dimension(VBENCH2.dimensions["Material"], None, material)
    line = aggregate(found, whole).dimensions["Material"]
    assert line.score == 1.0 and "stranger-0.mp4" in line.notes[0]


def test_not_applicable_is_counted_apart(whole: Plan, entries: Entries) -> None:
    scores = aggregate(result_set(whole, entries, 1), whole)
    assert scores.dimensions["Material"].not_applicable == 0
    found = result_set(whole, entries, 1)
    half = entries(whole, "Material", 1, -1)
    found.dimensions["Material"] = parse_dimension(VBENCH2.dimensions["Material"], None, half)
    line = aggregate(found, whole).dimensions["Material"]
    assert (line.score, line.videos, line.not_applicable) == (1.0, 3, 3) and line.is_complete


def test_colour_may_leave_videos_out(entries: Entries) -> None:
    rows = tuple(PromptRow(prompt=f"a {c} cup", dimensions=("color",)) for c in ("red", "blue"))
    plan = make_plan(SuiteData(suite=VBENCH1, rows=rows, source="", digest=""))
    found = ResultSet(suite=VBENCH1, source=Path("test"))
    kept = entries(plan, "color", 0.5)[3:]
    found.dimensions["color"] = parse_dimension(VBENCH1.dimensions["color"], None, kept)
    line = aggregate(found, plan).dimensions["color"]
    assert line.score == 0.5 and not line.unscored and "left out 3 videos" in line.notes[0]


def test_published_dimensions_need_no_videos() -> None:
    found = ResultSet(suite=VBENCH2, source=Path("test"))
    for dimension in VBENCH2.dimensions.values():
        found.dimensions[dimension.name] = DimensionResults(
            dimension=dimension, stated=0.5, videos={}
        )
    scores = aggregate(found)
    assert scores.categories["Total"].score == 0.5
    assert scores.categories["Total"].interval is None and scores.is_complete


def test_the_record_is_json_without_nan(whole: Plan, entries: Entries) -> None:
    found = result_set(whole, entries, 1, 0)
    del found.dimensions["Material"]
    found.problems.append("torn.json: no JSON")
    record = aggregate(found, whole).as_record()
    text = json.dumps(record, allow_nan=False)
    again = json.loads(text)
    assert again["categories"]["Total"]["score"] is None
    assert again["dimensions"]["Mechanics"]["ci95"][0] <= again["dimensions"]["Mechanics"]["score"]
    assert again["problems"] == ["torn.json: no JSON"]
