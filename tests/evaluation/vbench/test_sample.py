"""The round trip without downloads, on the sandbox's prompts and on a suite of the user."""

import json
from pathlib import Path

import pytest

from longtake.evaluation.vbench.plan_file import read_plan
from longtake.evaluation.vbench.sample import run_sample, sandbox_data
from longtake.runtime.errors import UserError

FAST = ("num_steps=1", "num_frames=5", "height=32", "width=32")


def test_the_sandbox_tests_only_what_needs_no_weights() -> None:
    data = sandbox_data()
    assert len(data.rows) == 256
    assert {row.dimensions for row in data.rows} == {("temporal_flickering",)}
    assert "not of VBench 1.0" in data.remarks[0]


def test_a_suite_of_the_user(tmp_path: Path) -> None:
    rows = [{"prompt_en": f"still cup {i}", "dimension": ["temporal_flickering"]} for i in range(9)]
    rows.append({"prompt_en": "a running dog", "dimension": ["dynamic_degree"]})
    (tmp_path / "suite.json").write_text(json.dumps(rows))
    done = run_sample(
        tmp_path / "out",
        prompts=2,
        samples=2,
        source=tmp_path / "suite.json",
        overrides=FAST,
        device="cpu",
    )
    line = done.scores.dimensions["temporal_flickering"]
    assert line.videos == 4 and line.prompts == 2 and line.interval is not None
    assert done.scores.categories["Total"].score is None
    assert read_plan(tmp_path / "out" / "plan.json").videos == done.plan.videos
    with pytest.raises(UserError, match="cannot be taken from here"):
        run_sample(tmp_path / "other", source=tmp_path / "absent")
    assert not (tmp_path / "other").exists()
