"""Result files of the public code, at any depth: what counts, what does not, and why."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longtake.evaluation.vbench.plan import Plan
from longtake.evaluation.vbench.results import (
    parse_dimension,
    read_results,
    write_results,
)
from longtake.evaluation.vbench.suites import VBENCH1, VBENCH2

Entries = Callable[..., list[dict[str, Any]]]


def item(name: str, value: object, **more: object) -> dict[str, object]:
    return {"video_path": f"/videos/{name}", "video_results": value, **more}


def put(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_minus_one_leaves_the_mean() -> None:
    # A public tool's log has Human Clothes at .498 with the -1 in the mean and .832 without.
    values = [1.0] * 145 + [0.0] * 29 + [-1.0] * 51
    entries = [item(f"p-{i}.mp4", value) for i, value in enumerate(values)]
    naive = sum(values) / len(values)
    found = parse_dimension(VBENCH2.dimensions["Human_Clothes"], naive, entries)
    assert found.score == pytest.approx(145 / 174)
    assert len(found.applicable) == 174 and len(found.videos) == 225
    assert "the file states 0.417778; the mean of its videos is 0.833333" in found.notes()
    right = parse_dimension(VBENCH2.dimensions["Human_Clothes"], 145 / 174, entries)
    assert not right.notes()


def test_nothing_applicable_is_no_score() -> None:
    found = parse_dimension(VBENCH2.dimensions["Mechanics"], None, [item("a-0.mp4", -1)])
    assert found.score is None and "no video counts" in found.notes()[0]


@pytest.mark.parametrize(("dropped", "score"), [(90, 0.5), (91, 0.0)])
def test_motion_order_is_zero_above_ninety_percent_of_minus_one(dropped: int, score: float) -> None:
    kept = [item(f"k-{i}.mp4", 0.5) for i in range(100 - dropped)]
    entries = [*kept, *(item(f"d-{i}.mp4", -1) for i in range(dropped))]
    found = parse_dimension(VBENCH2.dimensions["Motion_Order_Understanding"], None, entries)
    assert found.score == score
    assert any("90 %" in note for note in found.notes()) == (score == 0)
    other = parse_dimension(VBENCH2.dimensions["Human_Clothes"], None, entries)
    assert other.score == 0.5  # the rule is of one dimension only


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "non-finite"),
        (float("inf"), "non-finite"),
        (None, "no number"),
        ("0.5", "no number"),
        ([0.5], "no number"),
        (1.5, "out of range"),
        (-0.5, "out of range"),
        (-1, "out of range"),  # not applicable is no result of Material's neighbour Composition
    ],
)
def test_unusable_values_are_unscored_with_a_reason(value: object, reason: str) -> None:
    entries = [item("a-0.mp4", 1.0), item("b-0.mp4", value), item("c-0.mp4", 0.0)]
    found = parse_dimension(VBENCH2.dimensions["Composition"], None, entries)
    assert found.score == 0.5
    assert list(found.unscored) == ["b-0.mp4"] and reason in found.unscored["b-0.mp4"]


def test_repeated_entries_count_once_and_contradictions_not_at_all() -> None:
    entries = [item("a-0.mp4", 1), item("a-0.mp4", 1), item("b-0.mp4", 1), item("b-0.mp4", 0)]
    found = parse_dimension(VBENCH2.dimensions["Composition"], None, [*entries, item("b-0.mp4", 1)])
    assert list(found.videos) == ["a-0.mp4"]
    assert found.unscored["b-0.mp4"].startswith("two results")


def test_units_and_frames_of_vbench_1() -> None:
    imaging = parse_dimension(
        VBENCH1.dimensions["imaging_quality"], 0.6, [item("a-0.mp4", 50.0), item("b-0.mp4", 70.0)]
    )
    assert imaging.score == pytest.approx(0.6) and not imaging.notes()
    scene = [
        item("a-0.mp4", 1.0, frame_count=16, success_frame_count=16),
        item("b-0.mp4", 0.0, frame_count=8, success_frame_count=0),
    ]
    assert parse_dimension(VBENCH1.dimensions["scene"], 2 / 3, scene).score == pytest.approx(2 / 3)
    style = [item("a-0.mp4", 0.2, frame_results=[0.2] * 3), item("b-0.mp4", 0.1, frame_results=[1])]
    found = parse_dimension(VBENCH1.dimensions["appearance_style"], None, style)
    assert found.score == pytest.approx(0.175)
    broken = [item("a-0.mp4", 1.0, frame_count="many"), item("b-0.mp4", 1.0, frame_count=0)]
    assert len(parse_dimension(VBENCH1.dimensions["scene"], None, broken).unscored) == 2
    action = parse_dimension(VBENCH1.dimensions["human_action"], None, [item("a-0.mp4", True)])
    assert action.score == 1.0


def test_only_the_file_knows_the_weights_of_subject_consistency() -> None:
    entries = [item("a-0.mp4", 0.9), item("b-0.mp4", 0.7)]
    found = parse_dimension(VBENCH1.dimensions["subject_consistency"], 0.82, entries)
    assert found.score == 0.82 and "mean of its videos is 0.8" in found.notes()[0]
    assert parse_dimension(VBENCH1.dimensions["subject_consistency"], None, entries).score == 0.8


def test_hazards_without_a_trace_are_stated() -> None:
    for name, word in (
        ("Human_Anatomy", "no person"),
        ("Instance_Preservation", "under 2 s"),
        ("Human_Interaction", "not repeatable"),
    ):
        found = parse_dimension(VBENCH2.dimensions[name], None, [item("a-0.mp4", 1.0)])
        assert any(word in note for note in found.notes()), name


def test_the_official_layout_is_read(plan: Plan, entries: Entries, tmp_path: Path) -> None:
    """evaluate.sh writes <Dimension>/<model>/x.json, where the public aggregator sees nothing."""
    out = tmp_path / "out"
    for name in plan.dimensions:
        folder = out / "evaluation_results" / name / "my_model"
        stem = "results_2026-03-23-10:00:00"
        put(folder / f"{stem}_eval_results.json", {name: [0.5, entries(plan, name, 1, 0)]})
        put(folder / f"{stem}_full_info.json", [{"prompt_en": "x", "dimension": [name]}])
    put(out / "evaluation_results" / ".hidden" / "x.json", {"Nothing": [1, []]})
    for source in (out, out / "evaluation_results", archive(out)):
        found = read_results(VBENCH2, source)
        assert set(found.dimensions) == set(plan.dimensions)
        assert [round(r.score or 0, 9) for r in found.dimensions.values()] == [0.5] * 3
        assert not found.problems


def archive(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as out:
        for file in sorted(folder.rglob("*.json")):
            out.write(file, file.relative_to(folder))
        out.writestr("__MACOSX/._x.json", "junk")
    return path


def test_torn_and_foreign_files_are_problems_and_the_rest_counts(
    plan: Plan, entries: Entries, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    good = {"Human_Anatomy": [1.0, entries(plan, "Human_Anatomy", 1)]}
    put(out / "good.json", good)
    (out / "torn.json").write_text(json.dumps({"Diversity": [1.0, []]})[:-4])
    (out / "latin.json").write_bytes(b'{"a": "\xff"}')
    put(out / "strange.json", {"Beauty": [0.5, []]})
    put(out / "config.json", {"lr": 1})
    found = read_results(VBENCH2, out)
    assert set(found.dimensions) == {"Human_Anatomy"}
    assert sorted(problem.split(":")[0] for problem in found.problems) == [
        "latin.json",
        "strange.json",
        "torn.json",
    ]


def test_two_files_of_a_dimension_count_neither(
    plan: Plan, entries: Entries, tmp_path: Path
) -> None:
    for number in range(3):
        value = {"Human_Anatomy": [1.0, entries(plan, "Human_Anatomy", 1)]}
        put(tmp_path / "out" / f"run{number}.json", value)
    found = read_results(VBENCH2, tmp_path / "out").dimensions["Human_Anatomy"]
    assert found.score is None and "run0.json" in found.problems[0]


def test_written_results_read_back(plan: Plan, entries: Entries, tmp_path: Path) -> None:
    dimension = VBENCH2.dimensions["Human_Clothes"]
    made = parse_dimension(dimension, None, entries(plan, "Human_Clothes", 1, 0, -1))
    made.origin, made.unscored = "ours", {"lost-0.mp4": "unreadable"}
    made.problems.append("a remark")
    write_results(tmp_path / "out", made, {"upstream_commit": "45e79ec"})
    again = read_results(VBENCH2, tmp_path / "out").dimensions["Human_Clothes"]
    assert again.videos == made.videos and again.score == made.score == again.stated
    assert again.unscored == made.unscored and again.origin == "ours"
    assert again.problems == ["a remark"]
    assert again.provenance["upstream_commit"] == "45e79ec"
