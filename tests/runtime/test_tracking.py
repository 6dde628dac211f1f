import json
import math
import sys
from pathlib import Path
from types import ModuleType

import accelerate.tracking  # noqa: F401 - it looks for the packages once, before the fakes exist
import pytest

from longtake.runtime import tracking
from longtake.runtime.errors import UserError
from longtake.runtime.run_directory import RunDirectory
from longtake.runtime.tracking import Trackers


class Recorder:
    """A tracker that remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def start(self) -> None:
        self.calls.append(("start", None))

    def store_init_configuration(self, values: dict[str, object]) -> None:
        self.calls.append(("config", values))

    def log(self, values: dict[str, object], step: int | None = None) -> None:
        self.calls.append(("log", (step, values)))

    def finish(self) -> None:
        self.calls.append(("finish", None))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", "seed: 0\n", resume=False)


def test_jsonl_needs_no_tracker(run: RunDirectory) -> None:
    with Trackers(run) as trackers:
        trackers.log({"update": 0, "loss": 0.5}, step=0)
    assert run.read_metrics() == [{"update": 0, "loss": 0.5}]


def test_trackers_get_flat_finite_numbers(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(tracking.TRACKERS, "json", lambda path: recorder)  # a module that exists
    with Trackers(run, ["json"], {"seed": 1, "sde": {"tau": 0.45, "sizes": [1, 2]}}) as trackers:
        trackers.log(
            {
                "update": 3,
                "reason": "x",
                "ok": True,
                "bad": math.nan,
                "none": None,
                "r": {"m": 1.5},
            },
            step=3,
        )
    assert recorder.calls == [
        ("start", None),
        ("config", {"seed": 1, "sde.tau": 0.45, "sde.sizes": "[1, 2]"}),
        ("log", (3, {"update": 3, "r.m": 1.5})),
        ("finish", None),
    ]
    assert run.read_metrics()[0]["reason"] == "x"


def test_unknown_tracker_lists_the_valid_ones(run: RunDirectory) -> None:
    with pytest.raises(UserError, match="tensorboard, trackio, wandb"):
        Trackers(run, ["tensorbord"])


@pytest.mark.parametrize("name", sorted(tracking.TRACKERS))
def test_missing_package_names_the_extra(
    run: RunDirectory, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=r"longtake\[trackers\]"):
        Trackers(run, [name])


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_services_are_reached_through_accelerate(
    run: RunDirectory, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, object]] = []

    class Config(dict[str, object]):
        def update(self, values: dict[str, object], allow_val_change: bool) -> None:  # type: ignore[override]
            seen.append(("config", values))

    class Service:
        def log(self, values: dict[str, object], step: int) -> None:
            seen.append(("log", (step, values)))

        def finish(self) -> None:
            seen.append(("finish", None))

    fake = ModuleType(name)
    fake.config = Config()  # type: ignore[attr-defined]
    fake.init = lambda **kwargs: seen.append(("init", kwargs)) or Service()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr(tracking, "find_spec", lambda package: object())
    with Trackers(run, [name], {"seed": 1}) as trackers:
        trackers.log({"loss": 0.5}, step=2)
    kinds = [kind for kind, _ in seen]
    assert kinds == ["init", "config", "log", "finish"]
    arguments = seen[0][1]
    assert isinstance(arguments, dict)
    assert (arguments["project"], arguments["name"]) == ("longtake", "run")
    assert seen[2][1] == (2, {"loss": 0.5})


def test_tensorboard_is_reached_through_accelerate(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    scalars: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            self.folder = folder
            Path(folder).mkdir(parents=True)

        def add_hparams(self, values: dict[str, object], metric_dict: dict[str, float]) -> None:
            assert values == {"seed": 1}

        def add_scalar(self, name: str, value: float, global_step: int) -> None:
            scalars.append((name, value, global_step))

        def flush(self) -> None: ...

        def close(self) -> None:
            scalars.append(("closed", 0.0, 0))

    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    monkeypatch.setattr("torch.utils.tensorboard", fake, raising=False)
    monkeypatch.setattr(tracking, "find_spec", lambda package: object())
    with Trackers(run, ["tensorboard"], {"seed": 1}) as trackers:
        trackers.log({"loss": 0.5, "nan": math.nan}, step=7)
    assert scalars == [("loss", 0.5, 7), ("closed", 0.0, 0)]
    assert (run.path / "tensorboard").is_dir()
    assert json.loads((run.path / "metrics.jsonl").read_text()) == {"loss": 0.5, "nan": None}
