"""All dimensions of a run, against a stand-in for the public code.

The stand-in has the public file layout, function names, result format and habits (local list of
results, bare means, -1, cwd), but no models: the real code needs weights that are not here. What
these tests run for real is everything around it: processes, environments, files, checks.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longtake.evaluation.vbench.aggregate import aggregate
from longtake.evaluation.vbench.plan import Plan, make_plan
from longtake.evaluation.vbench.plan_file import write_plan
from longtake.evaluation.vbench.records import read_records
from longtake.evaluation.vbench.result_files import read_results
from longtake.evaluation.vbench.results import DimensionResults
from longtake.evaluation.vbench.run import RunReport, RunSettings, run_dimensions, run_steps
from longtake.evaluation.vbench.suite_data import PromptRow, SuiteData
from longtake.evaluation.vbench.suites import VBENCH1, VBENCH2
from longtake.evaluation.vbench.upstream import Upstream
from longtake.runtime.errors import UserError

SETTINGS = RunSettings(ignore_doctor=True, timeout_s=60.0)


def names(plan: Plan) -> list[str]:
    return [video.name for video in plan.videos]


def run(plan: Plan, videos: Path, upstream: Upstream, out: Path, **changes: Any) -> RunReport:
    return run_dimensions(plan, videos, upstream, out, settings=replace(SETTINGS, **changes))


def clothes(report: RunReport) -> DimensionResults:
    return report.results["Human_Clothes"]


def logs(out: Path) -> list[Path]:
    return sorted((out / "work" / "Human_Clothes").glob("attempt-*.log"))


def test_a_run_from_end_to_end(
    plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    stand_in.behave(
        Human_Clothes={names(plan)[-1]: -1, names(plan)[-2]: 0.0, "*": 1.0},
        Diversity={"*": 0.25},
    )
    out = tmp_path / "out"
    report = run(plan, videos, upstream, out)
    assert report.is_complete and not report.odd_videos
    found = clothes(report)
    assert found.score == pytest.approx(4 / 5) and found.stated == found.score
    assert report.results["Diversity"].score == 0.25
    assert len(report.results["Diversity"].videos) == 2  # one result per prompt
    assert found.origin == "upstream runner"
    # The files say the same, at once and in the public format.
    scores = aggregate(read_results(VBENCH2, out), plan)
    assert scores.dimensions["Human_Clothes"].score == pytest.approx(4 / 5)
    assert scores.dimensions["Human_Clothes"].not_applicable == 1
    public = json.loads(
        (out / "results" / "Human_Clothes" / "Human_Clothes_eval_results.json").read_text()
    )
    score, entries = public["Human_Clothes"]
    assert score == pytest.approx(4 / 5) and len(entries) == 6
    assert {entry["why"] for entry in entries} == {1.0, 0.0, -1}  # fields of the judge are kept
    assert len(logs(out)) == 1
    record = read_results(VBENCH2, out).dimensions["Human_Clothes"].provenance
    assert record["upstream_commit"] == stand_in.commit


def test_a_finished_run_starts_nothing(
    clothes_plan: Plan, videos: Path, upstream: Upstream, tmp_path: Path
) -> None:
    first = run(clothes_plan, videos, upstream, tmp_path / "out")
    second = run(clothes_plan, videos, upstream, tmp_path / "out")
    assert len(logs(tmp_path / "out")) == 1
    assert clothes(second).videos == clothes(first).videos


def test_missing_and_unreadable_videos(
    clothes_plan: Plan, videos: Path, upstream: Upstream, tmp_path: Path
) -> None:
    lost, torn = names(clothes_plan)[:2]
    (videos / lost).unlink()
    (videos / torn).write_bytes((videos / torn).read_bytes()[:300])
    with pytest.raises(UserError, match="1 planned videos are missing") as error:
        run(clothes_plan, videos, upstream, tmp_path / "out")
    assert lost in str(error.value)
    assert not (tmp_path / "out").exists()
    report = run(clothes_plan, videos, upstream, tmp_path / "out", allow_missing=True)
    found = clothes(report)
    assert found.unscored[lost] == "the video is missing"
    assert found.unscored[torn].startswith("unreadable")
    assert len(found.videos) == 4
    assert str(videos / torn) in report.odd_videos


def test_dimensions_that_are_not_ready_are_not_started(
    plan: Plan, videos: Path, upstream: Upstream, tmp_path: Path
) -> None:
    report = run(plan, videos, upstream, tmp_path / "out", ignore_doctor=False)
    assert not report.results and set(report.not_run) == set(plan.dimensions)
    steps = run_steps(plan, videos, upstream, tmp_path / "out")
    assert {step.diagnosis.dimension: step.videos for step in steps} == {
        "Diversity": 40,
        "Human_Anatomy": 6,
        "Human_Clothes": 6,
    }


def test_two_dimensions_share_two_gpus(
    plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    note = (
        "\nfrom vbench2 import standin as _s\n_evaluate = _s.evaluate\n"
        "def _noted(dimension, rows):\n"
        "    import os\n"
        "    print('GPU', os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "    return _evaluate(dimension, rows)\n"
        "_s.evaluate = _noted\n"
    )
    for name in ("human_clothes", "human_anatomy", "diversity"):
        path = stand_in.root / "vbench2" / f"{name}.py"
        path.write_text(path.read_text() + note)
    report = run(plan, videos, upstream, tmp_path / "out", gpus=("2", "5"))
    assert report.is_complete and len(report.results) == 3
    seen = {
        log.read_text().split("GPU ")[1][0] for log in (tmp_path / "out").rglob("attempt-1.log")
    }
    assert seen <= {"2", "5"} and seen


def test_another_plan_or_version_is_not_mixed_in(
    clothes_plan: Plan,
    data: SuiteData,
    videos: Path,
    upstream: Upstream,
    stand_in: Any,
    tmp_path: Path,
) -> None:
    run(clothes_plan, videos, upstream, tmp_path / "out")
    other = make_plan(data, dimensions=["Human_Clothes"], seed=5)
    with pytest.raises(UserError, match="another plan"):
        run(other, videos, upstream, tmp_path / "out")
    (tmp_path / "out" / "work" / "Human_Clothes" / "commit.txt").write_text("0ld\n")
    with pytest.raises(UserError, match="another version of the public code"):
        run(clothes_plan, videos, upstream, tmp_path / "out")


def test_wrong_settings_are_refused(clothes_plan: Plan, videos: Path, upstream: Upstream) -> None:
    for wrong in ({"timeout_s": 0}, {"attempts": 0}, {"model": "a/b"}):
        with pytest.raises(UserError, match="setting"):
            RunSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no videos for these dimensions"):
        run_dimensions(clothes_plan, videos, upstream, Path("never"), ["Material"])


def test_vbench_1_starts_in_the_root_of_the_checkout(clip: Path, tmp_path: Path) -> None:
    """Colour leaves out videos in which it finds no object; they are no failure."""
    package = tmp_path / "VBench" / "vbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "utils.py").write_text(
        "def init_submodules(names, local=False, read_frame=False):\n"
        "    assert local\n"
        "    return {name: {} for name in names}\n"
    )
    (package / "color.py").write_text(
        "import json, os\n"
        "def compute_color(json_dir, device, submodules_dict, **kwargs):\n"
        "    assert os.path.isdir('vbench') and 'VBENCH_CACHE_DIR' in os.environ\n"
        "    rows = json.load(open(json_dir))\n"
        "    assert all(r['auxiliary_info']['color']['color'] == 'red' for r in rows)\n"
        "    paths = [path for row in rows for path in row['video_list']]\n"
        "    kept = [{'video_path': p, 'video_results': 0.5} for p in paths[::2]]\n"
        "    return 0.5, kept\n"
    )
    row = PromptRow(
        prompt="a red cup", dimensions=("color",), auxiliary={"color": {"color": "red"}}
    )
    plan = make_plan(SuiteData(suite=VBENCH1, rows=(row,), source="", digest=""))
    (tmp_path / "videos").mkdir()
    for video in plan.videos:
        shutil.copy(clip, tmp_path / "videos" / video.name)
    installed = Upstream(
        suite=VBENCH1,
        checkout=tmp_path / "VBench",
        pythons={"": Path(sys.executable)},
        device="cpu",
    )
    report = run(plan, tmp_path / "videos", installed, tmp_path / "out")
    found = report.results["color"]
    assert report.is_complete and found.score == 0.5 and len(found.videos) == 3
    assert "left out 2 videos" in report.scores.dimensions["color"].notes[0]
    assert len(list((tmp_path / "out").rglob("attempt-*.log"))) == 1


def test_ctrl_c_stops_the_children_and_a_later_run_goes_on(
    clothes_plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    stand_in.behave(Human_Clothes={names(clothes_plan)[4]: "hang"})
    plan_file, out = write_plan(clothes_plan, tmp_path / "plan.json"), tmp_path / "out"
    code = (
        "import sys\nfrom longtake.commands.evaluate_vbench import vbench\nvbench(sys.argv[1:])\n"
    )
    words = ["run", "--plan", plan_file, "--videos", videos, "--output-dir", out]
    words += ["--checkout", upstream.checkout, "--python", sys.executable, "--device", "cpu"]
    words += ["--weights", upstream.weights, "--ignore-doctor", "--timeout", "600"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        # A runner started in the background hands down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    records = out / "work" / "Human_Clothes" / "records.jsonl"
    try:
        deadline = time.monotonic() + 120
        while len(read_records(records)) < 4 and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
    finally:
        process.kill()
    assert len(read_records(records)) == 4
    stand_in.behave()
    report = run(clothes_plan, videos, upstream, out)
    assert report.is_complete
    second = json.loads((records.parent / "full_info.json").read_text())
    assert sum(len(row["video_list"]) for row in second) == 2
