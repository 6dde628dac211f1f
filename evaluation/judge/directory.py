"""A judge directory: weights, what they score, what they were trained on, and the calibration.

    judge.json        backbone, dimensions, digests of the other files, provenance
    model/            the weights, in the form of the backbone
    training.json     prompts and models of the training, for the leakage check
    calibration.json  curves to the raters' scale; missing until the judge is calibrated

The calibration may be replaced later; it names the digest of the weights it was fitted for, and is
refused with others. Another backbone joins in :func:`_backbone`; training, calibration, controls
and the report card do not change.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from longtake.core.weights import read_json
from longtake.evaluation.judge.calibration import Calibration, read_calibration
from longtake.evaluation.judge.data import TrainingRecord
from longtake.runtime.errors import CheckpointError
from longtake.runtime.files import TEMPORARY, digest, explained, text_digest, write_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from longtake.rewards.contract import Score

JUDGE_FILE, MODEL_FOLDER = "judge.json", "model"
TRAINING_FILE, CALIBRATION_FILE = "training.json", "calibration.json"
BACKBONES = ("qwen2vl", "generative")
"""What ``judge.json`` may name: a regression on the rewards' backbone, or a model of answers."""
FORMAT = 1
"""Version of ``judge.json``."""


@dataclass(frozen=True, kw_only=True)
class JudgeClip:
    """One clip to judge: frames uint8 [T, 3, H, W], shown at ``fps`` a second."""

    frames: "Tensor"
    fps: float
    caption: str


class JudgeModel(Protocol):
    """A model that judges clips."""

    def judge(self, clips: Sequence[JudgeClip]) -> "list[dict[str, Score]]":
        """Dimension -> score of each clip, which do not depend on the others."""


def _backbone(name: str) -> Any:
    """The module of a form of weights.

    Its ``model_digest(folder)`` is that of everything that fixes the scores; its
    ``load_judge(folder, dimensions, device)`` gives a :class:`JudgeModel`, in bfloat16 on a GPU, as
    the public scorers run, in float32 on a CPU.
    """
    from longtake.evaluation.judge import regression, vlm  # both import this module

    return vlm if name == "generative" else regression


@dataclass(frozen=True, kw_only=True)
class JudgeDirectory:
    """A directory that was read and checked; the weights are loaded on demand."""

    path: Path
    backbone: str
    dimensions: tuple[str, ...]
    digest: str
    """Of weights, dimensions and settings."""
    training: TrainingRecord
    calibration: Calibration | None
    provenance: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the judge without calibration, for records."""
        return f"judge@{self.digest[:12]}"

    def load_model(self, device: "torch.device") -> JudgeModel:
        """The model on a device."""
        load: Callable[..., JudgeModel] = _backbone(self.backbone).load_judge
        return load(self.path / MODEL_FOLDER, self.dimensions, device)


def write_judge(
    path: Path,
    write_model: Callable[[Path], object],
    *,
    backbone: str,
    dimensions: Sequence[str],
    training: TrainingRecord,
    provenance: Mapping[str, Any],
) -> JudgeDirectory:
    """Write a judge without calibration to a new directory; a failure leaves nothing behind.

    ``write_model`` writes the weights into the folder that it is given, which does not exist.
    """
    if path.exists():
        raise CheckpointError(
            "the path of the judge is taken",
            received=str(path),
            remedy="remove it, or choose another path",
        )
    temporary = path.absolute().with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        # Beside its path and renamed at the end: a kill leaves no half judge that could be read.
        with explained("write the judge", path):
            temporary.mkdir(parents=True)
            write_model(temporary / MODEL_FOLDER)
            seen = {"prompts": training.prompts, "models": training.models}
            record = {
                "format": FORMAT,
                "backbone": backbone,
                "dimensions": dimensions,
                "model_digest": _backbone(backbone).model_digest(temporary / MODEL_FOLDER),
                "training_sha256": digest(write_json(temporary / TRAINING_FILE, seen)),
                "provenance": provenance,
            }
            write_json(temporary / JUDGE_FILE, record)
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return read_judge(path)


def read_judge(path: Path) -> JudgeDirectory:
    """Read and check a judge directory; the weights stay on the disk."""
    record: dict[str, Any] = dict(read_json(path / JUDGE_FILE))
    backbone, dimensions = record.get("backbone"), record.get("dimensions")
    usable = record.get("format") == FORMAT and backbone in BACKBONES
    if not (usable and isinstance(dimensions, list) and dimensions):
        raise CheckpointError(
            "judge.json cannot be used",
            received=f"format {record.get('format')!r}, backbone {backbone!r}, "
            f"dimensions {dimensions!r} in {path}",
            expected=f"format {FORMAT}, backbone {', '.join(BACKBONES)}, a list of dimensions",
        )
    seen: dict[str, Any] = dict(read_json(path / TRAINING_FILE))
    model = _backbone(str(backbone)).model_digest(path / MODEL_FOLDER)
    made = digest(path / TRAINING_FILE), model
    if made != (record.get("training_sha256"), record.get("model_digest")):
        raise CheckpointError(
            "the judge directory was changed",
            received=f"{path}: {TRAINING_FILE} or {MODEL_FOLDER} has another digest than recorded",
            remedy="copy the directory again from its source",
        )
    # With the dimensions: the same weights that score fewer of them are another judge.
    whole = text_digest(json.dumps([backbone, dimensions, model]))
    calibration = None
    if (path / CALIBRATION_FILE).exists():
        calibration = read_calibration(path / CALIBRATION_FILE)
        _check_calibration(calibration, whole, dimensions)
    return JudgeDirectory(
        path=path,
        backbone=str(backbone),
        dimensions=tuple(dimensions),
        digest=whole,
        training=TrainingRecord(prompts=tuple(seen["prompts"]), models=tuple(seen["models"])),
        calibration=calibration,
        provenance=record.get("provenance", {}),
    )


def set_calibration(judge: JudgeDirectory, calibration: Calibration) -> JudgeDirectory:
    """Write or replace the calibration and read the judge again."""
    _check_calibration(calibration, judge.digest, judge.dimensions)
    write_json(judge.path / CALIBRATION_FILE, calibration.model_dump())
    return read_judge(judge.path)


def _check_calibration(calibration: Calibration, judge: str, dimensions: Sequence[str]) -> None:
    if calibration.judge != judge or not set(dimensions) <= set(calibration.curves):
        raise CheckpointError(
            "the calibration does not belong to this judge",
            received=f"fitted for {calibration.judge[:12]}, {', '.join(calibration.curves)}",
            expected=f"{judge[:12]}, {', '.join(dimensions)}",
            remedy="calibrate the judge again",
        )
