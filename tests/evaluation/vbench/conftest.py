"""Invented suites in the public format, videos for them, and a stand-in for the public code."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from longtake.core.video import write_mp4
from longtake.evaluation.vbench.plan import Plan, SuiteData, make_plan, read_suite
from longtake.evaluation.vbench.suites import VBENCH2, Suite
from longtake.evaluation.vbench.upstream import Upstream

LONG = "a lighthouse keeper counts every wave that breaks below the lamp " * 4


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests on the public suites need the user's copies, so they are collected on request only.

    LONGTAKE_VBENCH_SUITES=DIR python -m pytest -m suites tests/evaluation/vbench, where DIR holds
    what `pip download --no-deps vbench==0.1.5 vbench2==0.1.1` brings, and a checkout `VBench`.
    """
    if not os.environ.get("LONGTAKE_VBENCH_SUITES"):
        items[:] = [item for item in items if item.get_closest_marker("suites") is None]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "suites: needs the public suites; see vbench/conftest.py")


def rows(suite: Suite, per_dimension: int = 2) -> list[dict[str, Any]]:
    """Invented prompts: unique ones, one that two dimensions share, one that is too long."""
    made: list[dict[str, Any]] = []
    for name in suite.dimensions:
        for number in range(per_dimension):
            made.append({"prompt_en": f"{name} scene {number}.", "dimension": [name]})
    first, second = list(suite.dimensions)[:2]
    made[0]["prompt_en"] = "A shared kettle sings."
    made[per_dimension]["prompt_en"] = "A shared kettle sings."
    assert made[0]["dimension"] == [first] and made[per_dimension]["dimension"] == [second]
    made[-1]["prompt_en"] = LONG
    made[-1]["auxiliary_info"] = ["Is there a lighthouse? (yes or no)"]
    return made


@pytest.fixture
def suite_json(tmp_path: Path) -> Path:
    path = tmp_path / "suite" / VBENCH2.prompt_file
    path.parent.mkdir()
    path.write_text(json.dumps(rows(VBENCH2)), encoding="utf-8")
    return path


@pytest.fixture
def data(suite_json: Path) -> SuiteData:
    return read_suite(VBENCH2, suite_json)


@pytest.fixture
def plan(data: SuiteData) -> Plan:
    return make_plan(data, dimensions=["Human_Clothes", "Human_Anatomy", "Diversity"])


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of three seconds."""
    frames = torch.randint(0, 256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_mp4(frames.to(torch.uint8), path, 4.0)


@pytest.fixture
def videos(plan: Plan, clip: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for video in plan.videos:
        shutil.copy(clip, folder / video.name)
    return folder


STAND_IN = """
    import json, os, signal, sys, time

    def behaviour(dimension):
        path = "behaviour.json"
        return json.load(open(path)).get(dimension, {}) if os.path.exists(path) else {}

    def once(name):
        marker = "once-" + name.replace(" ", "_")
        if os.path.exists(marker):
            return False
        open(marker, "w").close()
        return True

    def evaluate(dimension, rows):
        final_score, valid_num, processed_json = 0, 0, []
        for row in rows:
            names = row["video_list"][:1] if dimension == "Diversity" else row["video_list"]
            for path in names:
                name = os.path.basename(path)
                assert os.path.isfile(path) and path.split("/")[-2] == dimension
                what = behaviour(dimension).get(name, behaviour(dimension).get("*", 1.0))
                if what == "crash":
                    raise IndexError("list index out of range")
                if what == "crash once" and once(name):
                    raise RuntimeError("an accident")
                if what == "hang":
                    time.sleep(600)
                if what == "kill once" and once(name):
                    os.kill(os.getpid(), signal.SIGKILL)
                if what == "exit 0":
                    sys.exit(0)
                if what == "bad clip":
                    clip = "./model_clip/m/" + name[:-4] + "_clip_0000.mp4"
                    print("Error processing video: " + clip)
                result = what if isinstance(what, (int, float)) else 1.0
                if what == "nan":
                    result = float("nan")
                if what == "forget":
                    continue
                processed_json.append({"video_path": path, "video_results": result, "why": what})
                if result != -1:
                    final_score += result
                    valid_num += 1
        return final_score / valid_num, processed_json

    def compute(dimension, json_dir, device, submodules):
        assert submodules["weights"] and str(device) == "cpu"
        with open(json_dir, encoding="utf-8") as file:
            rows = [r for r in json.load(file) if r["dimension"] == [dimension]]
        print("CALL", len(rows), sum(len(r["video_list"]) for r in rows))
        print("GPU", os.environ.get("CUDA_VISIBLE_DEVICES"))
        if behaviour(dimension).get("load") == "fail":
            raise MemoryError("CUDA out of memory")
        return evaluate(dimension, rows)
"""

LOADING = """
    import os

    def init_submodules(dimension_list, local=False, read_frame=False):
        cache = os.environ["VBENCH2_CACHE_DIR"]
        assert os.environ.get("HF_HUB_OFFLINE") == "1"
        return {name: {"weights": os.listdir(cache)} for name in dimension_list}
"""


class StandIn:
    """A checkout with the public layout, result format and habits, without its models."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "VBench"
        self.root = self.checkout / "VBench-2.0"
        self.weights = folder / "weights"
        self.python = Path(sys.executable)

    def make(self) -> None:
        package = self.root / "vbench2"
        package.mkdir(parents=True)
        self.weights.mkdir()
        (self.weights / "model.bin").write_text("weights")
        (package / "__init__.py").write_text("")
        (package / "utils.py").write_text(textwrap.dedent(LOADING))
        (package / "standin.py").write_text(textwrap.dedent(STAND_IN))
        for name in VBENCH2.dimensions:
            module = name.replace("-", "_").lower()
            (package / f"{module}.py").write_text(
                "from vbench2.standin import compute\n"
                f"def compute_{module}(json_dir, device, submodules_dict, **kwargs):\n"
                f"    return compute({name!r}, json_dir, device, submodules_dict)\n"
            )
        git = ["git", "-C", str(self.checkout), "-c", "user.name=t", "-c", "user.email=t@t"]
        for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "stand-in"]):
            subprocess.run([*git, *arguments], check=True, capture_output=True)

    @property
    def commit(self) -> str:
        command = ["git", "-C", str(self.checkout), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def behave(self, **dimensions: dict[str, object]) -> None:
        """What happens at which video (`*`: at every other one)."""
        (self.root / "behaviour.json").write_text(json.dumps(dimensions), encoding="utf-8")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stand_in")
    StandIn(folder).make()
    return folder


@pytest.fixture
def stand_in(made_once: Path, tmp_path: Path) -> StandIn:
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    return StandIn(tmp_path)


@pytest.fixture
def upstream(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Upstream:
    monkeypatch.setenv(VBENCH2.cache_variable, str(stand_in.weights))
    return Upstream(
        suite=VBENCH2,
        checkout=stand_in.checkout,
        commit=stand_in.commit,
        pythons={"": stand_in.python},
        device="cpu",
    )


@pytest.fixture
def clothes_plan(data: SuiteData) -> Plan:
    """Human Clothes: two prompts, six videos."""
    return make_plan(data, dimensions=["Human_Clothes"])


@pytest.fixture
def whole(data: SuiteData) -> Plan:
    return make_plan(data)


@pytest.fixture
def entries() -> Callable[..., list[dict[str, Any]]]:
    """Entries of a result file: one per result of a plan's dimension, values in turn."""

    def make(plan: Plan, dimension: str, *values: object) -> list[dict[str, Any]]:
        return [
            {"video_path": f"/x/m/{dimension}/{name}", "video_results": values[i % len(values)]}
            for i, name in enumerate(plan.results_of(dimension))
        ]

    return make
