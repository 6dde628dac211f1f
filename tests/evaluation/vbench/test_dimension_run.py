"""One dimension through crashes, kills, hangs and nonsense of (a stand-in for) the public code."""

import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longtake.evaluation.vbench.aggregate import aggregate
from longtake.evaluation.vbench.plan import Plan, make_plan
from longtake.evaluation.vbench.result_files import read_results
from longtake.evaluation.vbench.results import DimensionResults
from longtake.evaluation.vbench.run import RunReport, RunSettings, run_dimensions
from longtake.evaluation.vbench.suite_data import SuiteData
from longtake.evaluation.vbench.suites import VBENCH2
from longtake.evaluation.vbench.upstream import Upstream
from longtake.runtime.errors import RunDirectoryError

SETTINGS = RunSettings(ignore_doctor=True, timeout_s=60.0)


def names(plan: Plan) -> list[str]:
    return [video.name for video in plan.videos]


def run(plan: Plan, videos: Path, upstream: Upstream, out: Path, **changes: Any) -> RunReport:
    return run_dimensions(plan, videos, upstream, out, settings=replace(SETTINGS, **changes))


def clothes(report: RunReport) -> DimensionResults:
    return report.results["Human_Clothes"]


def logs(out: Path) -> list[Path]:
    return sorted((out / "work" / "Human_Clothes").glob("attempt-*.log"))


def test_a_crash_keeps_what_was_finished_and_goes_on(
    clothes_plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    stand_in.behave(Human_Clothes={names(clothes_plan)[3]: "crash once"})
    report = run(clothes_plan, videos, upstream, tmp_path / "out")
    assert report.is_complete and clothes(report).score == 1.0
    assert len(logs(tmp_path / "out")) == 2
    second = (tmp_path / "out" / "work" / "Human_Clothes" / "full_info.json").read_text()
    assert [len(row["video_list"]) for row in json.loads(second)] == [3]  # only the rest


def test_a_video_that_always_crashes_is_given_up(
    clothes_plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    bad = names(clothes_plan)[2]
    stand_in.behave(Human_Clothes={bad: "crash"})
    report = run(clothes_plan, videos, upstream, tmp_path / "out")
    found = clothes(report)
    assert found.unscored == {bad: "IndexError: list index out of range (tries: 2)"}
    assert len(found.videos) == 5 and not report.is_complete
    line = aggregate(read_results(VBENCH2, tmp_path / "out"), clothes_plan).dimensions[
        "Human_Clothes"
    ]
    assert line.unscored == found.unscored
    # Mended and started again, only this video is scored.
    stand_in.behave()
    assert run(clothes_plan, videos, upstream, tmp_path / "out").is_complete


def test_a_killed_process_loses_no_finished_video(
    clothes_plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    stand_in.behave(Human_Clothes={names(clothes_plan)[4]: "kill once"})
    report = run(clothes_plan, videos, upstream, tmp_path / "out")
    assert report.is_complete
    second = json.loads(
        (tmp_path / "out" / "work" / "Human_Clothes" / "full_info.json").read_text()
    )
    assert [len(row["video_list"]) for row in second] == [2]


def test_a_hanging_video_is_stopped_and_given_up(
    clothes_plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    stuck = names(clothes_plan)[1]
    stand_in.behave(Human_Clothes={stuck: "hang"})
    started = time.monotonic()
    report = run(clothes_plan, videos, upstream, tmp_path / "out", timeout_s=2.0, attempts=1)
    assert time.monotonic() - started < 60
    assert clothes(report).unscored == {stuck: "no video finished for 2 s (tries: 1)"}
    assert len(clothes(report).videos) == 5


def test_an_exit_code_of_0_is_not_believed(
    clothes_plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    stand_in.behave(Human_Clothes={names(clothes_plan)[5]: "exit 0"})
    found = clothes(run(clothes_plan, videos, upstream, tmp_path / "out"))
    assert list(found.unscored) == [names(clothes_plan)[5]] and "SystemExit" in str(found.unscored)


def test_all_not_applicable_is_recorded_although_upstream_divides_by_zero(
    clothes_plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    stand_in.behave(Human_Clothes={"*": -1})
    report = run(clothes_plan, videos, upstream, tmp_path / "out")
    found = clothes(report)
    assert report.is_complete and found.score is None
    assert {video.value for video in found.videos.values()} == {-1.0}
    assert "all are -1" in found.notes()[0]


def test_unusable_results_are_unscored(
    clothes_plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    nan, large, forgotten = names(clothes_plan)[:3]
    stand_in.behave(Human_Clothes={nan: "nan", large: 7, forgotten: "forget"})
    found = clothes(run(clothes_plan, videos, upstream, tmp_path / "out", attempts=1))
    assert set(found.unscored) == {nan, large, forgotten}
    assert "non-finite" in found.unscored[nan] and "out of range" in found.unscored[large]
    assert "returned no result" in found.unscored[forgotten]
    assert found.score == 1.0 and len(found.videos) == 3
    stand_in.behave()
    assert run(clothes_plan, videos, upstream, tmp_path / "out").is_complete  # they are tried again


def test_a_dimension_that_cannot_load_is_given_up_soon(
    clothes_plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    stand_in.behave(Human_Clothes={"load": "fail"})
    found = clothes(run(clothes_plan, videos, upstream, tmp_path / "out", attempts=1))
    assert len(logs(tmp_path / "out")) == 2
    assert "CUDA out of memory" in found.problems[0] and not found.videos
    assert found.score is None


@pytest.mark.parametrize(
    ("file", "content", "stage"),
    [
        ("human_clothes.py", "import a_package_that_is_not_there", "import"),
        ("human_clothes.py", "def other(): pass", "import"),
        ("utils.py", "def init_submodules(*_, **__): raise OSError('no weights')", "weights"),
    ],
)
def test_failures_before_the_first_video_name_their_stage(
    clothes_plan: Plan,
    videos: Path,
    upstream: Upstream,
    stand_in: Any,
    tmp_path: Path,
    file: str,
    content: str,
    stage: str,
) -> None:
    (stand_in.root / "vbench2" / file).write_text(content)
    report = run(clothes_plan, videos, upstream, tmp_path / "out")
    assert clothes(report).problems[0].startswith(f"ended early: {stage}: ")
    assert len(logs(tmp_path / "out")) == 1
    scores = aggregate(read_results(VBENCH2, tmp_path / "out"), clothes_plan)
    line = scores.dimensions["Human_Clothes"]
    assert line.score is None and stage in line.notes[0]


def test_failed_clips_of_instance_preservation_do_not_count_as_perfect(
    data: SuiteData, videos: Path, clip: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    plan = make_plan(data, dimensions=["Instance_Preservation"])
    for video in plan.videos:
        shutil.copy(clip, videos / video.name)
    inflated, honest = names(plan)[:2]
    stand_in.behave(Instance_Preservation={inflated: "bad clip", honest: 0.0})
    found = run(plan, videos, upstream, tmp_path / "out").results["Instance_Preservation"]
    assert "judging a clip failed" in found.unscored[inflated]
    assert found.score == pytest.approx(4 / 5)


def test_clips_of_an_earlier_model_are_not_judged_again(
    data: SuiteData, videos: Path, clip: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    plan = make_plan(data, dimensions=["Instance_Preservation"])
    for video in plan.videos:
        shutil.copy(clip, videos / video.name)
    folder = stand_in.root / "model_clip" / "mine"
    folder.mkdir(parents=True)
    stale = folder / f"{Path(names(plan)[0]).stem}_clip_0000.mp4"
    other = folder / "of another prompt-0_clip_0000.mp4"
    for path in (stale, other):
        path.write_text("old")
    run(plan, videos, upstream, tmp_path / "out", model="mine")
    assert not stale.exists() and other.exists()
    assert (tmp_path / "out" / "views" / "mine" / "Instance_Preservation").is_dir()


def test_videos_too_short_to_be_judged_are_not_perfect_either(
    data: SuiteData, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    import torch

    from longtake.core.video import write_mp4

    plan = make_plan(data, dimensions=["Instance_Preservation"])
    folder = tmp_path / "short"
    for video in plan.videos:
        frames = 7 if video.index else 8  # at 4 fps: 1.75 s or 2 s
        write_mp4(torch.zeros(frames, 3, 16, 16), folder / video.name, 4.0)
    report = run(plan, folder, upstream, tmp_path / "out")
    found = report.results["Instance_Preservation"]
    assert len(found.videos) == 2 and len(found.unscored) == 4
    assert "shorter than 2 s" in next(iter(found.unscored.values()))
    assert len(report.odd_videos) == 2  # the two of another length


def test_a_prompt_of_diversity_needs_all_its_videos(
    data: SuiteData, videos: Path, upstream: Upstream, tmp_path: Path
) -> None:
    plan = make_plan(data, dimensions=["Diversity"])
    (videos / names(plan)[7]).unlink()
    report = run(plan, videos, upstream, tmp_path / "out", allow_missing=True)
    found = report.results["Diversity"]
    assert len(found.videos) == 1
    assert list(found.unscored) == [names(plan)[0]]
    assert names(plan)[7] in found.unscored[names(plan)[0]]


def test_a_torn_record_is_scored_again(
    clothes_plan: Plan, videos: Path, upstream: Upstream, tmp_path: Path
) -> None:
    run(clothes_plan, videos, upstream, tmp_path / "out")
    records = tmp_path / "out" / "work" / "Human_Clothes" / "records.jsonl"
    records.write_bytes(records.read_bytes()[:-20])
    report = run(clothes_plan, videos, upstream, tmp_path / "out")
    assert report.is_complete and len(clothes(report).videos) == 6
    assert len(records.read_text().splitlines()) == 6


def test_a_second_process_is_kept_out(
    clothes_plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    stand_in.behave(Human_Clothes={names(clothes_plan)[0]: "hang"})
    errors: list[BaseException] = []

    def first() -> None:
        try:
            run(clothes_plan, videos, upstream, tmp_path / "out", timeout_s=2.0, attempts=1)
        except BaseException as error:  # noqa: BLE001  # asserted below
            errors.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    records = tmp_path / "out" / "work" / "Human_Clothes" / "attempt-1.log"
    while not records.exists():
        time.sleep(0.05)
    with pytest.raises(RunDirectoryError, match="another process"):
        run(clothes_plan, videos, upstream, tmp_path / "out")
    thread.join()
    assert not errors


def test_no_process_is_left_behind(
    clothes_plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    """A child of the public code that hangs is stopped with it."""
    module = stand_in.root / "vbench2" / "human_clothes.py"
    module.write_text(
        "import subprocess, time\n"
        "def compute_human_clothes(*_, **__):\n"
        "    child = subprocess.Popen(['sleep', '600'])\n"
        "    open('child.pid', 'w').write(str(child.pid))\n"
        "    time.sleep(600)\n"
    )
    run(clothes_plan, videos, upstream, tmp_path / "out", timeout_s=2.0, attempts=1)
    pid = int((stand_in.root / "child.pid").read_text())
    status = Path(f"/proc/{pid}/status")
    assert not status.exists() or "zombie" in status.read_text()
