"""Which reward a name means: its source, written beside the name or found in :data:`REWARDS`.

A source is a class of one's own (``my_file.py:Brightness``, or ``package.module:Class``), a reward
directory (``rewards import``), an open_clip folder, or the address of a server (``rewards serve``).
It is written ``NAME=SOURCE`` on the command line and ``rewards.sources.NAME`` in a run's settings.
"""

import ast
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from longtake.runtime.errors import UserError

if TYPE_CHECKING:
    from longtake.rewards.contract import Reward
    from longtake.rewards.suite import RewardSuite

REWARDS: dict[str, str] = {
    "general": "longtake.sandbox.analytic_rewards:General",
    "percentile": "longtake.sandbox.analytic_rewards:Percentile",
    "motion_quality": "longtake.sandbox.analytic_rewards:MotionQuality",
    "text_alignment": "longtake.sandbox.analytic_rewards:TextAlignment",
}
"""Name -> source of the rewards that need none beside their name. A new one is added here."""

_TINY = Path(__file__).parents[1] / "checkpoints" / "tiny" / "rewards"
# The learned rewards of the sandbox: name -> reward directory. They are not in :data:`REWARDS`,
# since the published models have these names too and must not be taken for these.
TINY_REWARDS: dict[str, str] = {
    "hpsv3_general": str(_TINY / "hpsv3"),
    "hpsv3_percentile": str(_TINY / "hpsv3"),
    "videoalign_mq": str(_TINY / "videoalign_mq"),
    "videoalign_ta": str(_TINY / "videoalign_ta"),
}

COLUMNS = {
    "hpsv3": ("hpsv3_general", "hpsv3_percentile"),
    "videoreward": ("videoalign_vq", "videoalign_mq", "videoalign_ta"),
}
"""Kind of a reward directory -> the rewards that it holds."""
_CLIP_FILE = "open_clip_config.json"
_REWARD_FILE = "reward.json"
_MEMBERS = ("needs_prompt", "needs_time", "score", "to", "fingerprint")


def split_sources(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separate ``NAME`` and ``NAME=SOURCE`` entries: all names, and name -> source."""
    sources: dict[str, str] = {}
    plain: list[str] = []
    for entry in names:
        name, has_source, source = entry.partition("=")
        if not name or (has_source and not source) or name in plain:
            raise UserError(
                "reward cannot be read, or is named twice",
                received=entry,
                expected="NAME or NAME=SOURCE, each name once",
                remedy="for example hpsv3_general=models/hpsv3",
            )
        plain.append(name)
        if has_source:
            sources[name] = source
    return plain, sources


def check_sources(names: Iterable[str], sources: Mapping[str, str]) -> None:
    """Refuse a name or source that is not there in milliseconds: no weights, no torch.

    Classes are looked up but not run, and servers are not asked: both take time.
    """
    names = list(names)
    if unused := sorted(set(sources) - set(names)):
        raise UserError(
            "source of a reward that is not used",
            received=", ".join(unused),
            expected=f"sources of {', '.join(names)}",
        )
    for name in names:
        _check_source(name, _source(name, sources))


def load_rewards(
    names: Sequence[str], sources: Mapping[str, str] | None = None, *, device: str = "cpu"
) -> dict[str, "Reward"]:
    """Rewards by name, in the order of ``names``; names of one directory share its model.

    On a GPU the backbones of reward directories run in bfloat16, as those of the public scorers do,
    on a CPU in float32.
    """
    sources = sources or {}
    check_sources(names, sources)
    loaded: dict[str, Reward] = {}
    # Names of one directory are loaded together: two columns of a 7B model are one model.
    directories: dict[Path, list[str]] = {}
    for name in names:
        source = _source(name, sources)
        if _is_address(source):
            from longtake.rewards.remote import RemoteReward

            loaded[name] = RemoteReward(source, name)
        elif _is_class(source):
            loaded[name] = _load_class(source).to(device)
        elif (Path(source) / _CLIP_FILE).is_file():
            from longtake.rewards.clip import load_clip

            loaded[name] = load_clip(source, device)
        else:
            directories.setdefault(Path(source).resolve(), []).append(name)
    for path, columns in directories.items():
        loaded |= _load_directory(path, columns, device)
    return {name: loaded[name] for name in names}


def load_suite(
    weights: Mapping[str, float], sources: Mapping[str, str] | None = None, *, device: str = "cpu"
) -> "RewardSuite":
    """A suite of :func:`load_rewards` from reward name -> weight of its advantage."""
    from longtake.rewards.suite import RewardSuite

    rewards = load_rewards(list(weights), sources, device=device)
    return RewardSuite({name: (rewards[name], weight) for name, weight in weights.items()})


def _source(name: str, sources: Mapping[str, str]) -> str:
    source = sources.get(name) or REWARDS.get(name)
    if source is None:
        models = [column for columns in COLUMNS.values() for column in columns]
        hint = _nearest(name, [*REWARDS, *models, *sources])
        raise UserError(
            "reward has no source",
            received=name,
            expected=f"{hint}one of {', '.join(REWARDS)}, or any name with a source",
            remedy=f"{name}=SOURCE, in a run's settings rewards.sources.{name}=SOURCE: a reward "
            "directory, FILE.py:CLASS or the address of a server",
        )
    return source


def _nearest(name: str, options: Iterable[str]) -> str:
    return "".join(f"{near}? " for near in get_close_matches(name, options, n=1))


def _is_address(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _is_class(source: str) -> bool:
    return ":" in source and not _is_address(source) and not Path(source).exists()


def _check_source(name: str, source: str) -> None:
    path = Path(source)
    if _is_class(source):
        _check_class(source)
    elif (path / _REWARD_FILE).is_file():
        try:
            kind = json.loads((path / _REWARD_FILE).read_text(encoding="utf-8"))["kind"]
        except (ValueError, LookupError, TypeError):
            return  # the directory's own reader says more
        columns = COLUMNS.get(kind, (name,))
        if name not in columns:
            raise UserError(
                "the reward directory has no such reward",
                received=f"{name} from {path}",
                expected=", ".join(columns),
            )
    elif not _is_address(source) and not (path / _CLIP_FILE).is_file():
        siblings = [str(other) for other in path.parent.glob("*") if other.is_dir()]
        raise UserError(
            f"the source of reward {name} is not there",
            received=source,
            expected=f"{_nearest(source, siblings)}a directory with {_REWARD_FILE} or "
            f"{_CLIP_FILE}, FILE.py:CLASS or an address",
        )


def _check_class(source: str) -> None:
    """Look the class up in its file without running it: that would import torch, and what else."""
    module, _, name = source.rpartition(":")
    path = Path(module)
    try:
        if path.suffix != ".py":  # a module; its packages are imported, it is not
            spec = importlib.util.find_spec(module)
            path = Path(spec.origin if spec and spec.origin else module)
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, ImportError, ValueError, SyntaxError) as error:
        siblings = [file.name for file in path.parent.glob("*.py")]
        raise UserError(
            f"the source of a reward is not there, or no Python source: {error}",
            received=source,
            expected=f"{_nearest(path.name, siblings)}FILE.py:CLASS or package.module:CLASS",
            remedy="check the path, or correct the file",
        ) from error
    classes = [node.name for node in body if isinstance(node, ast.ClassDef)]
    if name not in classes:
        raise UserError(
            "the file has no such class",
            received=source,
            expected=_nearest(name, classes) or ", ".join(classes) or "a class that is a reward",
        )


def _load_class(source: str) -> "Reward":
    file, _, name = source.rpartition(":")
    if file.endswith(".py"):
        path = str(Path(file).resolve())
        # Named by its path: a bare `my_file` could be an installed package, or another folder's.
        spec = importlib.util.spec_from_file_location(path, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path] = module  # where inspect finds the source for the fingerprint
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(file)
    reward: Reward = getattr(module, name)()
    # By attribute: a class derived from the protocol passes isinstance without its flags.
    if missing := [member for member in _MEMBERS if not hasattr(reward, member)]:
        raise UserError(
            "the class is no reward",
            received=f"{source} without {', '.join(missing)}",
            expected="a class derived from longtake.rewards.contract.Reward with "
            "needs_prompt, needs_time and score",
            remedy="see docs/how_to_reward.md",
        )
    return reward


def _load_directory(path: Path, names: Sequence[str], device: str) -> Mapping[str, "Reward"]:
    import torch

    from longtake.rewards.directory import read_reward_directory
    from longtake.rewards.hpsv3 import load_hpsv3
    from longtake.rewards.videoalign import load_videoalign

    directory = read_reward_directory(path)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    load = load_hpsv3 if directory.spec.kind == "hpsv3" else load_videoalign
    return load(directory, names, device=device, dtype=dtype)
