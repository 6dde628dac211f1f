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
from longtake.evaluation.vbench.plan import Plan, PlannedVideo
from longtake.evaluation.vbench.videos import pending_videos
from longtake.runtime.config import merge_config
from longtake.runtime.errors import UserError
from longtake.runtime.files import digest, write_json
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
) -> tuple[list[PlannedVideo], int]:
    """Make the videos of process ``rank`` that are not there yet.

    ``folder`` also gets ``generation.json`` with the settings, so that two models are not mixed.
    Returns the videos that were made, and how many of this process were there before.
    """
    config = merge_config(GenerationConfig(), overrides=overrides)
    pending, done = pending_videos(plan, folder, rank, world)
    # One model for each GPU of a node, without a launcher of our own.
    own = own_device(device, os.environ.get("LOCAL_RANK"), torch.cuda.device_count())
    model = load_model(config, checkpoint, loras, own)
    path = folder / SETTINGS_FILE
    # Whoever made them, they carry planned names and would be scored as this model's.
    if done and not path.exists():
        raise UserError(
            "the folder holds videos of unknown origin under planned names",
            received=str(folder),
            expected=f"a new folder, or one with {SETTINGS_FILE}",
            remedy="choose another folder: a score over two models means nothing",
        )
    _keep_settings(path, _settings(plan, model, loras, config))
    with progress_bar("generating", done + len(pending), completed=done) as bar:
        for number, video in enumerate(pending, start=done + 1):
            sample_to_file(model, video.text, folder / video.name, config, seed=video.seed)
            bar.update(number)
    return pending, done


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
        # Digests, not paths: a moved checkpoint is the same model, a retrained one is not.
        "loras": [digest(path) for path in loras],
        "config": config.model_dump(),
        "suite_sha256": plan.digest,
        "seed": plan.seed,
        "texts": [list(pair) for pair in sorted(plan.texts.items())],
    }


def _keep_settings(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to mix videos of two models or settings in one folder."""
    if not path.exists():
        write_json(path, settings)
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"the settings of earlier videos cannot be read: {error}",
            received=str(path),
            remedy="choose another folder, or remove the file if you know what made the videos",
        ) from error
    if different := [key for key in settings if earlier.get(key) != settings[key]]:
        raise UserError(
            "the folder holds videos that were made in another way",
            received=f"{path.parent}: other {', '.join(different)}",
            expected=f"the settings in {path}",
            remedy="choose another folder",
        )
