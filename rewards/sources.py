"""Which reward a name means: a registered one, or one that is loaded from a source.

``NAME=SOURCE`` on the command line, ``rewards.sources`` in a run's settings. A source is a reward
directory (``rewards import``), an open_clip folder or the address of a server (``rewards serve``).
Names of one directory share its model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longtake.runtime.errors import UserError

if TYPE_CHECKING:
    from longtake.rewards.contract import Reward

_CLIP_FILE = "open_clip_config.json"


def split_sources(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separate ``NAME`` and ``NAME=SOURCE`` entries.

    Returns:
        The names in their order, and name -> source of those that have one.

    Raises:
        UserError: a name twice, or an empty name or source.
    """
    sources: dict[str, str] = {}
    plain: list[str] = []
    for entry in names:
        name, has_source, source = entry.partition("=")
        if not name or (has_source and not source):
            raise UserError(
                "reward cannot be read",
                received=entry,
                expected="NAME or NAME=SOURCE",
                remedy="for example hpsv3_general=models/hpsv3",
            )
        if name in plain:
            raise UserError("reward is named twice", received=entry, expected="each name once")
        plain.append(name)
        if has_source:
            sources[name] = source
    return plain, sources


def load_from_sources(sources: Mapping[str, str], device: str = "cpu") -> dict[str, "Reward"]:
    """Load rewards from directories and servers.

    Args:
        sources: reward name -> directory or ``http(s)`` address. The name says which reward of a
            directory is meant (``hpsv3_general``, ``hpsv3_percentile``, ``videoalign_vq``, ``_mq``
            or ``_ta``; any name for open_clip), or which reward of the server.
        device: where local models are loaded to. On a GPU the backbones of reward directories run
            in bfloat16, as those of the public scorers do, on a CPU in float32.

    Raises:
        UserError: a source of unknown form, or a name that it does not have.
        CheckpointError: a directory that is damaged.
    """
    loaded: dict[str, Reward] = {}
    directories: dict[Path, list[str]] = {}
    for name, source in sources.items():
        if source.startswith(("http://", "https://")):
            from longtake.rewards.remote_client import RemoteReward
            from longtake.rewards.remote_protocol import read_token

            loaded[name] = RemoteReward(source, name, token=read_token())
        elif (Path(source) / _CLIP_FILE).is_file():
            from longtake.rewards.clip_reward import load_clip_reward

            loaded[name] = load_clip_reward(source, name=name, device=device)
        else:
            directories.setdefault(Path(source).resolve(), []).append(name)
    for path, names in directories.items():
        loaded |= _load_directory(path, names, device)
    return {name: loaded[name] for name in sources}


def _load_directory(path: Path, names: Sequence[str], device: str) -> Mapping[str, "Reward"]:
    import torch

    from longtake.rewards.hpsv3 import COLUMNS, load_hpsv3
    from longtake.rewards.reward_directory import read_reward_directory
    from longtake.rewards.videoalign import COLUMN_NAMES, load_videoalign

    directory = read_reward_directory(path)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    is_hpsv3 = directory.spec.kind == "hpsv3"
    known: tuple[str, ...] = COLUMNS if is_hpsv3 else tuple(COLUMN_NAMES.values())
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            "the reward directory has no such reward",
            received=f"{', '.join(unknown)} from {path}",
            expected=f"{', '.join(known)} (it is of kind {directory.spec.kind})",
        )
    if is_hpsv3:
        columns = [column for column in COLUMNS if column in names]
        scorers = load_hpsv3(directory, columns=columns, device=device, dtype=dtype)
        return {reward.name: reward for reward in scorers.values()}
    dimensions = [dimension for dimension, name in COLUMN_NAMES.items() if name in names]
    # In the colours the weights were trained in; the report's motion reward was trained on gray.
    mode = directory.spec.color_mode
    return load_videoalign(path, dimensions, device=device, dtype=dtype, color_mode=mode)
