"""The public suites themselves: counts, and names byte by byte, by digest. See conftest.py."""

import hashlib
import os
from pathlib import Path

import pytest

from longtake.evaluation.vbench.plan import Plan, make_plan
from longtake.evaluation.vbench.suite_data import read_suite
from longtake.evaluation.vbench.suites import VBENCH1, VBENCH2

pytestmark = pytest.mark.suites
FOLDER = Path(os.environ.get("LONGTAKE_VBENCH_SUITES", "."))


def digest(plan: Plan) -> str:
    """Of the sorted file names, one a line."""
    names = sorted(video.name for video in plan.videos)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def test_vbench2_wheel() -> None:
    plan = make_plan(read_suite(VBENCH2, FOLDER / "vbench2-0.1.1-py3-none-any.whl"))
    # One prompt stands twice in the wheel; commit 45e79ec has 1,230 rows and 3,209 / 3,860 videos.
    assert (len(plan.rows), len(plan.videos), plan.copies) == (1229, 3206, 3857)
    assert digest(plan) == "bd9a45abb99f12a6bb11f93250dc8acc532fe9bf25b803b8cc8f18079c93b792"
    assert max(len(video.name.encode()) for video in plan.videos) == 189
    assert sum(video.index == 0 and video.name[-7] == " " for video in plan.videos) == 20


def test_vbench2_checkout() -> None:
    """A checkout at 45e79ec, where DIR/VBench is one."""
    if not (FOLDER / "VBench").is_dir():
        pytest.fail("put a checkout of the public repository at DIR/VBench")
    plan = make_plan(read_suite(VBENCH2, FOLDER / "VBench"))
    assert (len(plan.rows), len(plan.videos), plan.copies) == (1230, 3209, 3860)
    assert digest(plan) == "76dff9f3e4583341c4d41927d244f5a2ebd418dd5a31e1b0bb4dc310d11d4345"
    for name, dimension in VBENCH2.dimensions.items():
        assert len(plan.of_dimension(name)) == dimension.prompts * dimension.samples


def test_vbench1_wheel() -> None:
    plan = make_plan(read_suite(VBENCH1, FOLDER / "vbench-0.1.5-py3-none-any.whl"))
    assert (len(plan.rows), len(plan.videos), plan.copies) == (946, 6220, 8310)
    assert digest(plan) == "52b3694f5848d3666193dc66c5fd16d9c08ba3503627f0a6a1568aff24a997ff"
    for name, dimension in VBENCH1.dimensions.items():
        assert len(plan.of_dimension(name)) == dimension.prompts * dimension.samples
