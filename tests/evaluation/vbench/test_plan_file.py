"""The plan on disk: round trip, and no plan is taken that does not follow from its prompts."""

import json
from pathlib import Path

import pytest

from longtake.evaluation.vbench.plan import make_plan
from longtake.evaluation.vbench.plan_file import read_plan, write_plan
from longtake.evaluation.vbench.suite_data import SuiteData
from longtake.runtime.errors import RunDirectoryError, UserError


def test_round_trip(data: SuiteData, tmp_path: Path) -> None:
    texts = {row.prompt: f"{row.prompt} slowly" for row in data.rows}
    for options in ({}, {"seed": 9, "samples": 2}, {"texts": texts, "dimensions": ["Diversity"]}):
        plan = make_plan(data, **options)  # type: ignore[arg-type]
        path = write_plan(plan, tmp_path / "plan.json")
        again = read_plan(path)
        assert (again.videos, again.rows, again.remarks) == (plan.videos, plan.rows, plan.remarks)
        assert json.loads(path.read_text())["counts"]["videos"] == len(plan.videos)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "something else"),
        ("suite", "vbench3"),
        ("seed", "x"),
        ("rows", [["p", ["Nothing"], None]]),
        ("rows", None),
        ("videos", []),
        ("seed", 1),
    ],
)
def test_edited_plans_are_refused(data: SuiteData, tmp_path: Path, key: str, value: object) -> None:
    path = write_plan(make_plan(data), tmp_path / "plan.json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, key: value}))
    with pytest.raises(UserError):
        read_plan(path)


def test_torn_and_missing_plans_are_refused(data: SuiteData, tmp_path: Path) -> None:
    path = write_plan(make_plan(data), tmp_path / "plan.json")
    path.write_text(path.read_text()[:-100])
    with pytest.raises(UserError, match="cannot be used"):
        read_plan(path)
    with pytest.raises(UserError, match="cannot be used"):
        read_plan(tmp_path / "absent.json")


def test_a_place_that_cannot_be_written_is_explained(data: SuiteData, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot write the plan"):
        write_plan(make_plan(data), tmp_path / "file" / "plan.json")
