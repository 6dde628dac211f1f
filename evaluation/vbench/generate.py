"""Generate the videos of a plan with a checkpoint: name-exact, resumable, shared among processes.

Process ``rank`` of ``world`` makes every ``world``-th video. A file appears only when it is
complete, and a video depends on its own seed only, so any number of processes makes the same files.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from longtake.core.checkpoint import Checkpoint
from longtake.core.generation import GenerationConfig, load_model, sample_to_file
from longtake.evaluation.vbench.plan import Plan
from longtake.evaluation.vbench.shards import Shard, find_shard
from longtake.runtime.config import merge_config
from longtake.runtime.errors import RunDirectoryError, UserError
from longtake.runtime.files import digest, replacing
from longtake.runtime.progress import progress_bar

SETTINGS_FILE = "generation.json"


def generate_videos(
    plan: Plan,
    folder: Path,
    *,
    checkpoint: Path | None = None,
    loras: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    device: str = "auto",
    rank: int = 0,
    world: int = 1,
) -> Shard:
    """Make the videos of one process that are not there yet.

    Args:
        plan: names, texts and seeds.
        folder: where the files go; it also gets ``generation.json`` with the settings.
        checkpoint: model directory; None takes checkpoints/tiny.
        loras: adapter files, applied together.
        overrides: ``key=value`` of :class:`longtake.core.generation.GenerationConfig`.
        device: see :func:`longtake.runtime.device.pick_device`; `auto` under a launcher is the
            GPU of its LOCAL_RANK.
        rank: number of this process, from 0.
        world: number of processes.

    Returns:
        The shard as it was found.

    Raises:
        UserError: wrong input, or the folder holds videos of another model or other settings.
    """
    config = merge_config(GenerationConfig(), overrides=overrides)
    shard = find_shard(plan, folder, rank, world)
    own = own_device(device, os.environ.get("LOCAL_RANK"), torch.cuda.device_count())
    model = load_model(config, checkpoint, loras, own)
    path = folder / SETTINGS_FILE
    if not path.exists() and len(shard.pending) < len(shard.videos):
        raise UserError(
            "the folder holds videos of unknown origin under planned names",
            received=str(folder),
            expected=f"a new folder, or one with {SETTINGS_FILE}",
            remedy="choose another folder: a score over two models means nothing",
        )
    _keep_settings(path, _settings(plan, model, loras, config))
    done = len(shard.videos) - len(shard.pending)
    with progress_bar("generating", len(shard.videos), completed=done) as bar:
        for video in shard.pending:
            sample_to_file(model, video.text, folder / video.name, config, seed=video.seed)
            done += 1
            bar.update(done)
    return shard


def own_device(device: str, local_rank: str | None, num_gpus: int) -> str:
    """The device of this process: under a launcher, `auto` is a GPU of its own."""
    if device != "auto" or local_rank is None or not num_gpus:
        return device
    return f"cuda:{int(local_rank) % num_gpus}"


def _settings(
    plan: Plan, model: Checkpoint, loras: Sequence[Path], config: GenerationConfig
) -> dict[str, Any]:
    return {
        "checkpoint": model.digest(),
        "loras": [digest(path) for path in loras],
        "config": config.model_dump(),
        "suite_sha256": plan.digest,
        "seed": plan.seed,
        "texts": sorted(plan.texts.items()),
    }


def _keep_settings(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to mix videos of two models or settings in one folder."""
    settings = json.loads(json.dumps(settings))
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else settings
    except (OSError, ValueError) as error:
        raise UserError(
            f"the settings of earlier videos cannot be read: {error}",
            received=str(path),
            remedy="choose another folder, or remove the file if you know what made the videos",
        ) from error
    if different := [key for key in settings if known.get(key) != settings[key]]:
        raise UserError(
            "the folder holds videos that were made in another way",
            received=f"{path.parent}: other {', '.join(different)}",
            expected=f"the settings in {path}",
            remedy="choose another folder",
        )
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write into the folder of videos: {error.strerror or error}",
            received=str(path.parent),
            remedy="choose another folder",
        ) from error
