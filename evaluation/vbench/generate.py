"""Generate the videos of a plan with a checkpoint: name-exact, resumable, shared among processes.

Process ``rank`` of ``world`` makes every ``world``-th video. A file appears only when it is
complete, and a video depends on its own seed only, so any number of processes makes the same files.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from longtake.core.generation import GenerationConfig, load_model, sample_to_file
from longtake.evaluation.vbench.plan import Plan, PlannedVideo
from longtake.evaluation.vbench.videos import probe
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
    assert 0 <= rank < world
    config = merge_config(GenerationConfig(), overrides=overrides)
    own = plan.videos[rank::world]
    done = {video.name for video in own if not probe(folder / video.name).problem}
    if device == "auto" and "LOCAL_RANK" in os.environ and (gpus := torch.cuda.device_count()):
        # One model for each GPU of a node, without a launcher of our own.
        device = f"cuda:{int(os.environ['LOCAL_RANK']) % gpus}"
    model = load_model(config, checkpoint, loras, device)
    settings = {
        "checkpoint": model.digest(),
        # Digests, not paths: a moved checkpoint is the same model, a retrained one is not.
        "loras": [digest(path) for path in loras],
        "config": config.model_dump(),
        "suite_sha256": plan.digest,
        "seed": plan.seed,
        "texts": [list(pair) for pair in sorted(plan.texts.items())],
    }
    path = folder / SETTINGS_FILE
    # Whoever made videos without this file, they would be scored as this model's.
    earlier = {} if done else settings
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
    if different := [key for key in settings if earlier.get(key) != settings[key]]:
        raise UserError(
            "the folder holds videos that were made in another way",
            received=f"{folder}: other {', '.join(different)}",
            expected=f"a new folder, or the settings in its {SETTINGS_FILE}",
            remedy="choose another folder: a score over two models means nothing",
        )
    write_json(path, settings)
    pending = [video for video in own if video.name not in done]
    with progress_bar("generating", len(own), completed=len(done)) as bar:
        for number, video in enumerate(pending, start=len(done) + 1):
            sample_to_file(model, video.text, folder / video.name, config, seed=video.seed)
            bar.update(number)
    return pending, len(done)
