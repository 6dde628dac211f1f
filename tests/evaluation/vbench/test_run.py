"""Runs against a stand-in for the public code, through crashes, kills, hangs and nonsense.

The stand-in has the public file layout, function names, result format and habits (results at the
end only, bare means, -1, cwd), but no models: the real code needs weights that are not here. What
these tests run for real is everything around it: processes, environments, files, checks.
"""

import ast
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from longtake.core.video import write_mp4
from longtake.evaluation.vbench import run as run_module
from longtake.evaluation.vbench.plan import Plan, PromptRow, SuiteData, make_plan, write_plan
from longtake.evaluation.vbench.results import DimensionResults, read_results
from longtake.evaluation.vbench.run import (
    RunReport,
    RunSettings,
    read_entries,
    run_dimensions,
    score_natively,
)
from longtake.evaluation.vbench.scores import aggregate
from longtake.evaluation.vbench.suites import SUITES, VBENCH1, VBENCH2
from longtake.evaluation.vbench.upstream import (
    NEEDS,
    RUNNER,
    TABLE,
    Upstream,
    unfit,
)
from longtake.evaluation.vbench.videos import VideoFacts, find_videos, temporal_flickering
from longtake.runtime.errors import RunDirectoryError, UserError

SETTINGS = RunSettings(ignore_doctor=True, timeout_s=60.0, prompts_per_call=1)


def names(plan: Plan) -> list[str]:
    return [video.name for video in plan.videos]


def run(plan: Plan, videos: Path, upstream: Upstream, out: Path, **changes: Any) -> RunReport:
    return run_dimensions(plan, videos, upstream, out, settings=replace(SETTINGS, **changes))


def clothes(report: RunReport) -> DimensionResults:
    return report.results["Human_Clothes"]


def calls(out: Path) -> list[str]:
    """Prompts and videos of each call of the public function, in order."""
    logs = (out / "work" / "Human_Clothes").rglob("call-*.log")
    texts = [log.read_text() for log in sorted(logs, key=lambda log: int(log.stem[5:]))]
    return [text.partition("CALL ")[2].partition("\n")[0] for text in texts]


def test_a_run_from_end_to_end(
    plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    stand_in.behave(
        Human_Clothes={names(plan)[-1]: -1, names(plan)[-2]: 0.0, "*": 1.0},
        Diversity={"*": 0.25},
    )
    out = tmp_path / "out"
    report = run(plan, videos, upstream, out)
    assert report.is_complete
    assert clothes(report).score == pytest.approx(4 / 5)
    assert clothes(report).origin == "upstream runner"
    assert report.results["Diversity"].score == 0.25
    assert len(report.results["Diversity"].videos) == 2  # one result per prompt
    # The files say the same, at once and in the public format.
    scores = aggregate(read_results(VBENCH2, out), plan)
    assert scores.dimensions["Human_Clothes"].score == pytest.approx(4 / 5)
    assert scores.dimensions["Human_Clothes"].not_applicable == 1
    file = out / "results" / "Human_Clothes" / "Human_Clothes_eval_results.json"
    score, entries = json.loads(file.read_text())["Human_Clothes"]
    assert score == pytest.approx(4 / 5) and len(entries) == 6
    assert {entry["why"] for entry in entries} == {1.0, 0.0, -1}  # fields of the judge are kept
    record = read_results(VBENCH2, out).dimensions["Human_Clothes"].provenance
    assert record["upstream_commit"] == stand_in.commit
    assert calls(out) == ["1 3", "1 3"]
    again = run(plan, videos, upstream, out)  # starts nothing
    assert calls(out) == ["1 3", "1 3"] and clothes(again).videos == clothes(report).videos


def test_prompts_share_calls_and_suspects_are_tried_alone(
    data: SuiteData, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    plan = make_plan(data, dimensions=["Human_Clothes"])
    assert run(plan, videos, upstream, tmp_path / "a", prompts_per_call=8).is_complete
    assert calls(tmp_path / "a") == ["2 6"]
    bad = names(plan)[4]
    stand_in.behave(Human_Clothes={bad: "crash"})
    report = run(plan, videos, upstream, tmp_path / "b", prompts_per_call=8)
    assert calls(tmp_path / "b") == ["2 6", "1 3", "1 3"]
    assert set(clothes(report).unscored) == set(names(plan)[3:])


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
    assert clothes(report).unscored[lost] == "the video is missing"
    assert clothes(report).unscored[torn].startswith("unreadable")
    assert len(clothes(report).videos) == 4
    assert unfit("Material", VideoFacts(frames=9)) == "the file states no frame rate"


def test_another_plan_or_version_is_not_mixed_in(
    clothes_plan: Plan, data: SuiteData, videos: Path, upstream: Upstream, tmp_path: Path
) -> None:
    run(clothes_plan, videos, upstream, tmp_path / "out", gpu="2")
    (log,) = (tmp_path / "out").rglob("call-1.log")
    assert log.parent.name == (upstream.head or "")[:7] and "GPU 2" in log.read_text()
    other = make_plan(data, dimensions=["Human_Clothes"], seed=5)
    with pytest.raises(UserError, match="another plan"):
        run(other, videos, upstream, tmp_path / "out")
    with pytest.raises(UserError, match="no videos for these dimensions"):
        run_dimensions(clothes_plan, videos, upstream, Path("never"), ["Material"])


@pytest.mark.parametrize("accident", ["crash once", "kill once"])
def test_an_accident_costs_its_call_only(
    clothes_plan: Plan,
    videos: Path,
    upstream: Upstream,
    stand_in: Any,
    tmp_path: Path,
    accident: str,
) -> None:
    stand_in.behave(Human_Clothes={names(clothes_plan)[4]: accident})
    report = run(clothes_plan, videos, upstream, tmp_path / "out")
    assert report.is_complete and clothes(report).score == 1.0
    assert calls(tmp_path / "out") == ["1 3", "1 3", "1 3"]


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("crash", "IndexError: list index out of range (tries: 2)"),
        ("exit 0", "SystemExit: 0 (tries: 2)"),  # the exit code is not believed
        ("hang", "not finished after 3 s (tries: 2)"),
    ],
)
def test_a_prompt_that_always_fails_is_given_up(
    clothes_plan: Plan,
    videos: Path,
    upstream: Upstream,
    stand_in: Any,
    tmp_path: Path,
    behaviour: str,
    reason: str,
) -> None:
    stand_in.behave(Human_Clothes={names(clothes_plan)[2]: behaviour})
    timeout = 3.0 if behaviour == "hang" else 60.0
    report = run(clothes_plan, videos, upstream, tmp_path / "out", timeout_s=timeout)
    assert clothes(report).unscored == dict.fromkeys(names(clothes_plan)[:3], reason)
    assert len(clothes(report).videos) == 3 and not report.is_complete
    scores = aggregate(read_results(VBENCH2, tmp_path / "out"), clothes_plan)
    assert scores.dimensions["Human_Clothes"].unscored == clothes(report).unscored
    stand_in.behave()  # mended and started again, only this prompt is scored
    assert run(clothes_plan, videos, upstream, tmp_path / "out").is_complete
    assert calls(tmp_path / "out")[-1] == "1 3"


def test_all_not_applicable_is_recorded_although_upstream_divides_by_zero(
    clothes_plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    stand_in.behave(Human_Clothes=dict.fromkeys(names(clothes_plan)[:3], -1))
    report = run(clothes_plan, videos, upstream, tmp_path / "out")
    assert report.is_complete and clothes(report).score == 1.0
    assert [video.value for video in clothes(report).videos.values()] == [-1.0] * 3 + [1.0] * 3


def test_unusable_results_are_unscored(
    clothes_plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    nan, large, forgotten = names(clothes_plan)[:3]
    stand_in.behave(Human_Clothes={nan: "nan", large: 7, forgotten: "forget"})
    unscored = clothes(run(clothes_plan, videos, upstream, tmp_path / "out")).unscored
    assert set(unscored) == {nan, large, forgotten}
    assert "non-finite" in unscored[nan] and "out of range" in unscored[large]
    assert "returned no result" in unscored[forgotten]
    stand_in.behave()
    assert run(clothes_plan, videos, upstream, tmp_path / "out").is_complete  # they are tried again


def test_a_dimension_that_cannot_load_is_given_up_soon(
    clothes_plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    stand_in.behave(Human_Clothes={"load": "fail"})
    results = clothes(run(clothes_plan, videos, upstream, tmp_path / "out"))
    assert calls(tmp_path / "out") == ["1 3"] * 4
    assert "CUDA out of memory" in results.problems[0] and not results.videos


@pytest.mark.parametrize(
    ("file", "content", "stage"),
    [
        ("human_clothes.py", "import a_package_that_is_not_there", "import"),
        ("utils.py", "def init_submodules(*_, **__): raise OSError('no weights')", "weights"),
    ],
)
def test_failures_before_the_first_call_name_their_stage(
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
    assert len(calls(tmp_path / "out")) == 1
    scores = aggregate(read_results(VBENCH2, tmp_path / "out"), clothes_plan)
    line = scores.dimensions["Human_Clothes"]
    assert line.score is None and stage in line.notes[0]


def test_what_instance_preservation_did_not_judge_is_not_perfect(
    data: SuiteData, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    """Failed clips, and videos too short for a clip."""
    plan = make_plan(data, dimensions=["Instance_Preservation"])
    folder = tmp_path / "short"
    for video in plan.videos:
        frames = 7 if video.index == 2 else 8  # at 4 fps: 1.75 s or 2 s
        write_mp4(torch.zeros(frames, 3, 16, 16), folder / video.name, 4.0)
    inflated, honest, short = names(plan)[:3]
    stand_in.behave(Instance_Preservation={inflated: "bad clip", honest: 0.0})
    results = run(plan, folder, upstream, tmp_path / "out").results["Instance_Preservation"]
    assert "judging a clip failed" in results.unscored[inflated]
    assert "shorter than 2 s" in results.unscored[short]
    assert len(results.videos) == 3 and results.score == pytest.approx(2 / 3)


def test_a_prompt_of_diversity_needs_all_its_videos(
    data: SuiteData, videos: Path, upstream: Upstream, tmp_path: Path
) -> None:
    plan = make_plan(data, dimensions=["Diversity"])
    (videos / names(plan)[7]).unlink()
    report = run(plan, videos, upstream, tmp_path / "out", allow_missing=True)
    results = report.results["Diversity"]
    assert len(results.videos) == 1
    assert list(results.unscored) == [names(plan)[0]]
    assert names(plan)[7] in results.unscored[names(plan)[0]]


def test_a_torn_record_is_scored_again(
    clothes_plan: Plan, videos: Path, upstream: Upstream, tmp_path: Path
) -> None:
    run(clothes_plan, videos, upstream, tmp_path / "out")
    (records,) = (tmp_path / "out").rglob("records.jsonl")
    records.write_bytes(records.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="torn last line"):
        report = run(clothes_plan, videos, upstream, tmp_path / "out")
    assert report.is_complete and len(clothes(report).videos) == 6
    assert len(records.read_text().splitlines()) == 6


def test_a_second_process_is_kept_out_and_no_child_is_left(
    clothes_plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    module = stand_in.root / "vbench2" / "human_clothes.py"
    module.write_text(
        "import subprocess, time\n"
        "def compute_human_clothes(*_, **__):\n"
        "    child = subprocess.Popen(['sleep', '600'])\n"
        "    open('child.pid', 'w').write(str(child.pid))\n"
        "    time.sleep(600)\n"
    )
    options: dict[str, Any] = {"timeout_s": 4.0}
    first = threading.Thread(
        target=run, args=(clothes_plan, videos, upstream, tmp_path / "out"), kwargs=options
    )
    first.start()
    while not (stand_in.root / "child.pid").exists():
        time.sleep(0.05)
    with pytest.raises(RunDirectoryError, match="another process"):
        run(clothes_plan, videos, upstream, tmp_path / "out")
    first.join()
    status = Path(f"/proc/{int((stand_in.root / 'child.pid').read_text())}/status")
    assert not status.exists() or "zombie" in status.read_text()


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
        "    return 0.5, [{'video_path': p, 'video_results': 0.5} for p in paths[::2]]\n"
    )
    row = PromptRow(
        prompt="a red cup", dimensions=("color",), auxiliary={"color": {"color": "red"}}
    )
    plan = make_plan(SuiteData(suite=VBENCH1, rows=(row,), source="", digest=""))
    (tmp_path / "videos").mkdir()
    for video in plan.videos:
        shutil.copy(clip, tmp_path / "videos" / video.name)
    pythons = {"": Path(sys.executable)}
    upstream = Upstream(
        suite=VBENCH1, checkout=tmp_path / "VBench", commit="", pythons=pythons, device="cpu"
    )
    report = run(plan, tmp_path / "videos", upstream, tmp_path / "out")
    results = report.results["color"]
    assert report.is_complete and results.score == 0.5 and len(results.videos) == 3
    assert "left out 2 videos" in report.scores.dimensions["color"].notes[0]
    assert len(list((tmp_path / "out").rglob("call-*.log"))) == 1


def test_ctrl_c_stops_the_children_and_a_later_run_goes_on(
    clothes_plan: Plan, videos: Path, upstream: Upstream, stand_in: Any, tmp_path: Path
) -> None:
    stand_in.behave(Human_Clothes={names(clothes_plan)[4]: "hang"})
    plan_file, out = write_plan(clothes_plan, tmp_path / "plan.json"), tmp_path / "out"
    code = "import sys\nfrom longtake.commands.evaluate_vbench import vbench\nvbench(sys.argv[1:])"
    words = ["run", "--plan", plan_file, "--videos", videos, "--output-dir", out]
    words += ["--checkout", upstream.checkout, "--python", sys.executable, "--device", "cpu"]
    words += ["--ignore-doctor", "--prompts-per-call", 1]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        # A runner started in the background hands down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    work = out / "work" / "Human_Clothes" / (upstream.head or "")[:7]
    try:
        deadline = time.monotonic() + 120
        while len(read_entries(work)) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
    finally:
        process.kill()
    assert len(read_entries(work)) == 3
    stand_in.behave()
    assert run(clothes_plan, videos, upstream, out).is_complete
    assert calls(out)[-1] == "1 3"


@pytest.fixture
def still_plan() -> Plan:
    name = "temporal_flickering"
    rows = tuple(PromptRow(prompt=f"a still {x}", dimensions=(name,)) for x in ("cup", "hat"))
    return make_plan(SuiteData(suite=VBENCH1, rows=rows, source="", digest=""), samples=2)


def test_flickering_is_scored_here(still_plan: Plan, clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for video in still_plan.videos:
        shutil.copy(clip, folder / video.name)
    lost, torn = names(still_plan)[:2]

    def score(folder: Path, out: Path) -> DimensionResults:
        files = find_videos(still_plan, folder)
        return score_natively(still_plan, files, "temporal_flickering", out)

    results = score(folder, tmp_path / "a")
    assert results.origin == "ours" and len(results.videos) == 4
    assert results.score == pytest.approx(temporal_flickering(clip))
    assert "without the static filter" in results.problems[0]
    (folder / lost).unlink()
    (folder / torn).write_text("no video")
    broken = score(folder, tmp_path / "b")
    assert broken.unscored[lost] == "the video is missing"
    assert "cannot decode" in broken.unscored[torn] and len(broken.videos) == 2
    (tmp_path / "filtered").mkdir()  # what the static filter keeps has a folder of its own
    folder.rename(tmp_path / "filtered" / "temporal_flickering")
    assert not score(tmp_path / "filtered", tmp_path / "c").problems


def test_the_runner_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    tree = ast.parse(RUNNER.read_text(encoding="utf-8"))
    modules = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {name.split(".")[0] for name in modules} <= sys.stdlib_module_names
    (tmp_path / "json.py").write_text("raise RuntimeError('a file of the checkout got in')")
    command = [sys.executable, "-I", "-u", RUNNER, "no-job.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "FileNotFoundError" in done.stderr and "no-job.json" in done.stderr


def test_the_doctor_names_each_missing_thing_and_how_to_get_it(
    upstream: Upstream, tmp_path: Path
) -> None:
    def lacking(**changes: Any) -> dict[str, str]:
        return replace(upstream, **changes).missing("Diversity")

    vgg = {"allow_downloads": True}  # the weights of Diversity are in nobody's way here
    assert lacking(**vgg) == {}
    assert set(lacking(checkout=None, **vgg)) == set(lacking(checkout=tmp_path, **vgg))
    assert "git clone" in lacking(checkout=None)["checkout"]
    assert "another version is another metric" in lacking(commit="1234567", **vgg)["the commit"]
    needs = upstream.missing("Human_Anatomy")
    assert set(needs) == {
        *("YOLO-World", "human anomaly detector", "face anomaly detector", "hand anomaly detector")
    }
    assert "1qo-K1kum7yiEwIlN1TWDvABXX6qriUen" in needs["YOLO-World"]
    path = upstream.place(TABLE["weights"]["yolo"])
    path.parent.mkdir(parents=True)
    for content in ("", "weights"):  # an empty file does not count
        path.write_text(content)
        assert ("YOLO-World" in upstream.missing("Human_Anatomy")) == (content == "")
    by_hand = replace(upstream, pythons={}).missing("Human_Anatomy")
    assert "mmcv" in by_hand["environment yolo_world"]


def test_uv_makes_the_environment_unless_an_interpreter_is_given(upstream: Upstream) -> None:
    job = Path("job.json")
    own = upstream.command("Diversity", job)
    assert own == [sys.executable, "-I", "-u", str(RUNNER), "job.json"]
    command = replace(upstream, pythons={}).command("Diversity", job)
    file = str(upstream.root / "requirement.txt")
    assert command[1:6] == ["run", "--no-project", "--python", "3.10", "--with-requirements"]
    assert command[6] == file and "torch==2.5.1" in command
    assert command[-5:] == ["python", *own[1:]]


def test_a_child_sees_nothing_of_this_python(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere")
    child = upstream.variables("3", Path("/envs/a/bin/python"))
    assert "PYTHONPATH" not in child and "VIRTUAL_ENV" not in child
    assert child["PATH"].startswith("/envs/a/bin:")
    assert child["CUDA_VISIBLE_DEVICES"] == "3" and child["HF_HUB_OFFLINE"] == "1"
    assert child["VBENCH2_CACHE_DIR"] == str(upstream.cache)
    assert "HF_HUB_OFFLINE" not in replace(upstream, allow_downloads=True).variables()


def test_every_dimension_has_needs_and_only_one_needs_no_weights() -> None:
    without = {
        dimension
        for name, suite in SUITES.items()
        for dimension, need in NEEDS[name].items()
        if not need.get("weights") and dimension in suite.dimensions
    }
    assert without == {"temporal_flickering"} == set(run_module._SCORERS)
    assert {name: set(needs) for name, needs in NEEDS.items()} == {
        name: set(suite.dimensions) for name, suite in SUITES.items()
    }
    assert all(need["memory_gib"] for need in NEEDS["vbench2"].values())
