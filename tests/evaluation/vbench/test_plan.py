"""The sampling plan: exact names, seeds that belong to (prompt, index), counts."""

import subprocess
import sys
from pathlib import Path

import pytest

from longtake.evaluation.vbench.plan import make_plan
from longtake.evaluation.vbench.suite_data import PromptRow, SuiteData
from longtake.evaluation.vbench.suites import SUITES, VBENCH1, VBENCH2, Suite
from longtake.runtime.errors import UserError


def of_rows(suite: Suite, *rows: tuple[str, tuple[str, ...]]) -> SuiteData:
    made = tuple(PromptRow(prompt=prompt, dimensions=dimensions) for prompt, dimensions in rows)
    return SuiteData(suite=suite, rows=made, source="test", digest="0")


def test_names_are_exact() -> None:
    cut = "x" * 179 + " " + "rest of a long prompt"  # the cut falls behind a space: it stays
    plan = make_plan(of_rows(VBENCH2, (cut, ("Material",)), ("é b.", ("Mechanics",))))
    names = [video.name for video in plan.videos]
    assert names[:3] == [f"{'x' * 179} -{i}.mp4" for i in range(3)]
    assert names[3:] == [f"é b.-{i}.mp4" for i in range(3)]
    long = "y" * 200
    (video, *_) = make_plan(of_rows(VBENCH1, (long, ("scene",)))).videos
    assert video.name == f"{long}-0.mp4"


def test_shared_prompts_are_one_video_and_diversity_has_twenty(data: SuiteData) -> None:
    plan = make_plan(data)
    assert len({video.name for video in plan.videos}) == len(plan.videos)
    # 18 dimensions x 2 prompts x 3 (Diversity: 20); the first three videos of one are shared.
    assert plan.copies == 17 * 2 * 3 + 2 * 20
    assert len(plan.videos) == plan.copies - 3
    shared = [video for video in plan.videos if video.prompt == "A shared kettle sings."]
    assert [video.dimensions for video in shared[:3]] == [("Composition", "Diversity")] * 3
    assert [video.dimensions for video in shared[3:]] == [("Diversity",)] * 17
    assert len(plan.of_dimension("Diversity")) == 40
    assert plan.results_of("Diversity") == tuple(
        v.name for v in plan.of_dimension("Diversity") if v.index == 0
    )


def test_flickering_samples_25_and_scores_5() -> None:
    plan = make_plan(of_rows(VBENCH1, ("a still cup", ("temporal_flickering",))))
    assert len(plan.videos) == 25
    assert len(plan.results_of("temporal_flickering")) == 5


def test_seeds_belong_to_prompt_and_index(data: SuiteData) -> None:
    whole, part = make_plan(data, seed=3), make_plan(data, seed=3, dimensions=["Thermotics"])
    seeds = {video.name: video.seed for video in whole.videos}
    assert all(seeds[video.name] == video.seed for video in part.videos)
    assert len(set(seeds.values())) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds.values())
    assert not set(seeds.values()) & {video.seed for video in make_plan(data, seed=4).videos}


def test_parts_say_that_they_are_not_comparable(data: SuiteData) -> None:
    plan = make_plan(data, dimensions=["Human Anatomy"], prompts_per_dimension=1, samples=2)
    assert [video.index for video in plan.videos] == [0, 1]
    assert plan.dimensions == ("Human_Anatomy",)
    assert sum("not comparable" in remark for remark in plan.remarks) == 2
    assert make_plan(data).remarks == data.remarks


@pytest.mark.parametrize(
    "rows",
    [
        (("z" * 180 + "one", ("Material",)), ("z" * 180 + "two", ("Material",))),
        (("ü" * 180, ("Material",)),),
    ],
)
def test_names_that_files_cannot_have_are_refused(rows: tuple[tuple[str, tuple[str]]]) -> None:
    with pytest.raises(UserError, match=r"share a file name|too long"):
        _ = make_plan(of_rows(VBENCH2, *rows)).videos


def test_wrong_numbers_and_names_are_refused(data: SuiteData) -> None:
    with pytest.raises(UserError, match="unknown dimension"):
        make_plan(data, dimensions=["Human_Hair"])
    for wrong in ({"seed": -1}, {"samples": 0}, {"prompts_per_dimension": 0}):
        with pytest.raises(UserError, match="numbers"):
            make_plan(data, **wrong)


def test_official_numbers() -> None:
    dimensions = VBENCH2.dimensions.values()
    assert sum(d.prompts for d in dimensions) == 1230
    assert sum(d.prompts * d.samples for d in dimensions) == 3860
    assert len(dimensions) == 18 and len(VBENCH1.dimensions) == 16


def test_planning_needs_no_torch(suite_json: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from longtake.evaluation.vbench.plan import make_plan\n"
        "from longtake.evaluation.vbench.plan_file import write_plan\n"
        "from longtake.evaluation.vbench.suite_data import read_suite\n"
        "from longtake.evaluation.vbench.suites import VBENCH2\n"
        f"data = read_suite(VBENCH2, Path({str(suite_json)!r}))\n"
        f"write_plan(make_plan(data), Path({str(suite_json)!r} + '.plan'))\n"
        "print(sorted({'torch', 'numpy', 'av', 'vbench2'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
    assert set(SUITES) == {"vbench1", "vbench2"}
