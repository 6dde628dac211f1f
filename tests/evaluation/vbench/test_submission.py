"""The leaderboard's zip: complete or refused, and read by the public rule it gives the same total.

The public rule: the files of the zip's top folders only; a dimension that is not found counts 0.
"""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longtake.evaluation.vbench.plan import Plan, make_plan
from longtake.evaluation.vbench.result_files import parse_dimension
from longtake.evaluation.vbench.submission import submit
from longtake.evaluation.vbench.suite_data import SuiteData
from longtake.evaluation.vbench.suites import VBENCH2
from longtake.evaluation.vbench.totals import all_scores
from longtake.runtime.errors import RunDirectoryError, UserError

Entries = Callable[..., list[dict[str, Any]]]


def public_total(path: Path) -> float:
    """What the public aggregator makes of a zip."""
    found = dict.fromkeys(VBENCH2.dimensions, 0.0)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".json") and name.count("/") <= 1:
                content = json.loads(archive.read(name))
                if isinstance(content, dict):
                    found |= {key: value[0] for key, value in content.items()}
    return all_scores(VBENCH2, found)["Total"]


@pytest.fixture
def whole(data: SuiteData) -> Plan:
    return make_plan(data)


@pytest.fixture
def official(whole: Plan, entries: Entries, tmp_path: Path) -> Path:
    """Results as the public evaluate.sh writes them: two folders deep, the -1 in no mean."""
    for name, dimension in VBENCH2.dimensions.items():
        values = (1, 0, -1) if dimension.may_not_apply else (1, 0, 1)
        items = entries(whole, name, *values)
        score = parse_dimension(dimension, None, items).score
        path = tmp_path / "evaluation_results" / name / "model" / "r_eval_results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({name: [score, items]}))
        path.with_name("r_full_info.json").write_text("[]")
    return tmp_path / "evaluation_results"


def test_the_official_layout_scores_0_there_and_right_here(
    whole: Plan, official: Path, tmp_path: Path
) -> None:
    readme = tmp_path / "readme.zip"
    with zipfile.ZipFile(readme, "w") as archive:
        for file in official.rglob("*.json"):
            archive.write(file, file.relative_to(official))
    assert public_total(readme) == 0.0
    scores = submit(VBENCH2, official, tmp_path / "ours.zip", whole)
    total = scores.categories["Total"].score
    assert total is not None and total > 0.4
    assert public_total(tmp_path / "ours.zip") == pytest.approx(total, abs=1e-12)


def test_the_same_results_give_the_same_bytes(whole: Plan, official: Path, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        submit(VBENCH2, official, tmp_path / name, whole)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_zip_can_be_packed_again(whole: Plan, official: Path, tmp_path: Path) -> None:
    first = submit(VBENCH2, official, tmp_path / "a.zip", whole)
    second = submit(VBENCH2, tmp_path / "a.zip", tmp_path / "b.zip", whole)
    assert second.as_record()["categories"] == first.as_record()["categories"]


@pytest.mark.parametrize("damage", ["dimension", "video", "torn", "nan", "naive"])
def test_incomplete_results_are_refused_and_nothing_is_written(
    whole: Plan, official: Path, tmp_path: Path, damage: str
) -> None:
    path = official / "Material" / "model" / "r_eval_results.json"
    content = json.loads(path.read_text())
    if damage == "dimension":
        path.unlink()
    elif damage == "video":
        content["Material"][1].pop()
    elif damage == "nan":
        content["Material"][1][0]["video_results"] = float("nan")
    if damage in ("video", "nan"):
        path.write_text(json.dumps(content))
    if damage == "torn":
        path.write_text(path.read_text()[:-20])
    if damage == "naive":  # a wrong score over right videos is put right instead
        content["Material"][0] = 0.0
        path.write_text(json.dumps(content))
        scores = submit(VBENCH2, official, tmp_path / "ours.zip", whole)
        assert scores.dimensions["Material"].score == 0.5
        assert scores.categories["Total"].score == pytest.approx(
            public_total(tmp_path / "ours.zip")
        )
        return
    with pytest.raises(UserError, match=r"(?s)not complete.*Material"):
        submit(VBENCH2, official, tmp_path / "ours.zip", whole)
    assert not (tmp_path / "ours.zip").exists()


def test_a_place_that_cannot_be_written_is_explained(
    whole: Plan, official: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot write the zip"):
        submit(VBENCH2, official, tmp_path / "file" / "x.zip", whole)
