"""The model folder of a judge that answers in text: a checkpoint and how it is asked.

    generative.json   prompt, choice of frames, size of frames, digests of all other files
    everything else   the checkpoint in the layout of transformers, processor included

The prompt is stored, so that a later wording of ours does not change an older judge.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longtake.core.weights import read_json
from longtake.evaluation.judge.answer import CAPTION
from longtake.rewards.frames import FrameSampler
from longtake.rewards.template import text_digest
from longtake.runtime.errors import CheckpointError, UserError
from longtake.runtime.files import digest

SPEC_FILE = "generative.json"
FORMAT = 1
"""Version of ``generative.json``."""


@dataclass(frozen=True, kw_only=True)
class GenerativeSpec:
    """What the model is shown and asked."""

    prompt: str
    """The question, with the place of the caption once."""
    sampler: FrameSampler = field(default_factory=FrameSampler)
    """Which frames of a clip are shown."""
    max_frame_pixels: int = 256 * 28 * 28
    """Larger frames are scaled down to at most this area, pixels; the limits of the checkpoint's
    own processor hold after that."""

    def __post_init__(self) -> None:
        """Reject values out of range."""
        if self.prompt.count(CAPTION) != 1 or self.max_frame_pixels < 28 * 28:
            raise UserError(
                "the settings of the judge cannot be used",
                received=f"{self.prompt.count(CAPTION)} places for the caption, frames of "
                f"{self.max_frame_pixels} pixels",
                expected=f"{CAPTION} once, at least {28 * 28} pixels",
            )


def write_generative(
    folder: Path, spec: GenerativeSpec, write_checkpoint: Callable[[Path], object]
) -> None:
    """Write the model folder.

    Args:
        folder: does not exist.
        spec: how the model is asked.
        write_checkpoint: writes model and processor into the folder.
    """
    folder.mkdir()
    write_checkpoint(folder)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest(folder / name)}
        for name in names
    }
    record = {"format": FORMAT, **asdict(spec), "files": files}
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / SPEC_FILE).write_text(text, encoding="utf-8")


def read_generative(folder: Path, *, verify_weights: bool = False) -> tuple[GenerativeSpec, str]:
    """Read and check the model folder; the weights stay on the disk.

    Args:
        folder: the model folder.
        verify_weights: compare the digests of the weights too, at the speed of the disk; without,
            only their sizes.

    Returns:
        The settings, and the digest of everything that fixes the scores.

    Raises:
        CheckpointError: missing, changed or unknown parts.
    """
    record: dict[str, Any] = dict(read_json(folder / SPEC_FILE))
    try:
        if record.pop("format") != FORMAT:
            raise ValueError(f"expected format {FORMAT}")
        files = record.pop("files")
        problems = _problems(folder, files, verify_weights)
        spec = GenerativeSpec(**{**record, "sampler": FrameSampler(**record["sampler"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{SPEC_FILE} cannot be used: {error}",
            received=str(folder),
            expected="the folder as `eval judge train` wrote it",
            remedy="copy the judge again from its source",
        ) from error
    if problems:
        raise CheckpointError(
            "the model of the judge is damaged",
            received=f"{folder}: {'; '.join(problems)}",
            remedy="copy the judge again from its source",
        )
    fixed = {name: entry["sha256"] for name, entry in files.items()}
    return spec, text_digest(json.dumps([asdict(spec), fixed], sort_keys=True))


def _problems(folder: Path, files: object, verify_weights: bool) -> list[str]:
    if not (isinstance(files, Mapping) and files):
        raise ValueError("no list of files")
    found = []
    for name, entry in files.items():
        path = folder / name
        if path.resolve().is_relative_to(folder.resolve()) and path.is_file():
            same = path.stat().st_size == entry["bytes"]
            if same and (verify_weights or path.suffix != ".safetensors"):
                same = digest(path) == entry["sha256"]
            if not same:
                found.append(f"{name} was changed")
        else:
            found.append(f"{name} is missing")
    return found
