"""A judge directory: weights, what they score, what they were trained on, and the calibration.

    judge.json        backbone, dimensions, digests of the other files, provenance
    model/            the weights, in the form of the backbone
    training.json     prompts and models of the training, for the leakage check
    calibration.json  curves to the raters' scale; missing until the judge is calibrated

The directory is written beside its place and renamed. The calibration may be replaced later; it
names the digest of the weights it was fitted for, and is refused with others.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.core.weights import read_json
from longtake.evaluation.judge.calibration import (
    Calibration,
    read_calibration,
    write_calibration,
)
from longtake.evaluation.judge.leakage import TrainingRecord
from longtake.rewards.template import text_digest
from longtake.runtime.errors import CheckpointError
from longtake.runtime.files import to_plain

if TYPE_CHECKING:
    import torch

    from longtake.evaluation.judge.contract import JudgeModel

JUDGE_FILE, MODEL_FOLDER = "judge.json", "model"
TRAINING_FILE, CALIBRATION_FILE = "training.json", "calibration.json"
FORMAT = 1
"""Version of ``judge.json``."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A form of weights."""

    digest: Callable[[Path], str]
    """Folder of the weights -> digest of what fixes the scores."""
    load: "Callable[[Path, Sequence[str], torch.device], JudgeModel]"
    """Folder, dimensions and device -> the model."""


def _qwen2vl() -> Backbone:
    from longtake.evaluation.judge.qwen2vl_judge import load_qwen2vl, qwen2vl_digest

    return Backbone(digest=qwen2vl_digest, load=load_qwen2vl)


def _generative() -> Backbone:
    from longtake.evaluation.judge.generative_judge import generative_digest, load_generative

    return Backbone(digest=generative_digest, load=load_generative)


BACKBONES: dict[str, Callable[[], Backbone]] = {"qwen2vl": _qwen2vl, "generative": _generative}
"""Name in ``judge.json`` -> how its weights are read; imported when used."""


@dataclass(frozen=True, kw_only=True)
class JudgeDirectory:
    """A directory that was read and checked; the weights are loaded on demand."""

    path: Path
    """The directory."""
    backbone: str
    """Name in :data:`BACKBONES`."""
    dimensions: tuple[str, ...]
    """What it scores."""
    digest: str
    """Of weights and settings."""
    training: TrainingRecord
    """What it has seen."""
    calibration: Calibration | None
    """To the raters' scale; None when it has none."""
    provenance: Mapping[str, Any]
    """Where it came from."""

    @property
    def name(self) -> str:
        """Name of the judge without calibration, for records."""
        return f"judge@{self.digest[:12]}"

    def load_model(self, device: "torch.device") -> "JudgeModel":
        """The model on a device."""
        return BACKBONES[self.backbone]().load(self.path / MODEL_FOLDER, self.dimensions, device)


def write_judge(
    path: Path,
    write_model: Callable[[Path], object],
    *,
    backbone: str,
    dimensions: Sequence[str],
    training: TrainingRecord,
    provenance: Mapping[str, Any],
) -> JudgeDirectory:
    """Write a judge without calibration.

    Args:
        path: a new directory.
        write_model: writes the weights into the folder that it is given, which does not exist.
        backbone: name in :data:`BACKBONES`.
        dimensions: what it scores.
        training: what it has seen.
        provenance: recorded as it is; JSON types.

    Raises:
        CheckpointError: the place is taken or cannot be written. Nothing is left behind.
    """
    if path.exists():
        raise CheckpointError(
            "the place of the judge is taken",
            received=str(path),
            remedy="remove it, or choose another path",
        )
    temporary = path.absolute().with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        write_model(temporary / MODEL_FOLDER)
        seen = _text({"prompts": training.prompts, "models": training.models})
        (temporary / TRAINING_FILE).write_text(seen, encoding="utf-8")
        record = {
            "format": FORMAT,
            "backbone": backbone,
            "dimensions": list(dimensions),
            "model_digest": BACKBONES[backbone]().digest(temporary / MODEL_FOLDER),
            "training_sha256": text_digest(seen),
            "provenance": dict(provenance),
        }
        (temporary / JUDGE_FILE).write_text(_text(record), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(
            f"the judge cannot be written: {error}",
            received=str(path),
            remedy="check the free space and the permissions; nothing was left behind",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return read_judge(path)


def _text(record: Mapping[str, object]) -> str:
    return json.dumps(to_plain(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_judge(path: Path) -> JudgeDirectory:
    """Read and check a judge directory; the weights stay on the disk.

    Raises:
        CheckpointError: missing, changed or unknown parts, or a calibration for other weights.
    """
    record = read_json(path / JUDGE_FILE)
    backbone, dimensions = record.get("backbone"), record.get("dimensions")
    known = record.get("format") == FORMAT and backbone in BACKBONES
    if not (known and isinstance(dimensions, list) and dimensions):
        raise CheckpointError(
            "judge.json cannot be used",
            received=f"format {record.get('format')!r}, backbone {backbone!r}, "
            f"dimensions {dimensions!r} in {path}",
            expected=f"format {FORMAT}, backbone {', '.join(BACKBONES)}, a list of dimensions",
        )
    seen = read_json(path / TRAINING_FILE)
    if text_digest(_text(seen)) != record.get("training_sha256"):
        raise _changed(path, TRAINING_FILE)
    found = BACKBONES[str(backbone)]().digest(path / MODEL_FOLDER)
    if found != record.get("model_digest"):
        raise _changed(path, MODEL_FOLDER)
    digest = text_digest(json.dumps([backbone, dimensions, found]))
    calibration = None
    if (path / CALIBRATION_FILE).exists():
        calibration = read_calibration(path / CALIBRATION_FILE)
        if calibration.judge != digest or not set(dimensions) <= set(calibration.curves):
            raise CheckpointError(
                "the calibration does not belong to this judge",
                received=f"fitted for {calibration.judge[:12]}, {', '.join(calibration.curves)}",
                expected=f"{digest[:12]}, {', '.join(dimensions)}",
                remedy=f"remove {path / CALIBRATION_FILE} and calibrate again",
            )
    provenance = record.get("provenance")
    return JudgeDirectory(
        path=path,
        backbone=str(backbone),
        dimensions=tuple(str(name) for name in dimensions),
        digest=digest,
        training=TrainingRecord(prompts=_texts(seen, "prompts"), models=_texts(seen, "models")),
        calibration=calibration,
        provenance=provenance if isinstance(provenance, Mapping) else {},
    )


def set_calibration(judge: JudgeDirectory, calibration: Calibration) -> JudgeDirectory:
    """Write or replace the calibration and read the judge again.

    Raises:
        CheckpointError: the calibration is for another judge.
        UserError: the file cannot be written.
    """
    if calibration.judge != judge.digest:
        raise CheckpointError(
            "the calibration does not belong to this judge",
            received=calibration.judge[:12],
            expected=judge.digest[:12],
        )
    write_calibration(judge.path / CALIBRATION_FILE, calibration)
    return read_judge(judge.path)


def _texts(record: Mapping[str, object], name: str) -> tuple[str, ...]:
    found = record.get(name)
    return tuple(str(item) for item in found) if isinstance(found, list) else ()


def _changed(path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        "the judge directory was changed",
        received=f"{name} in {path} has another digest than judge.json records",
        remedy="copy the directory again from its source",
    )
