"""Records of the internal benchmark and their JSON lines: prompts, reference images, taxonomy.

One line is one record and its keys are the fields of the dataclass, no more and no fewer. Reading
checks the type of every value; what a *set* must look like (counts, lengths, coverage) is the
business of :mod:`longtake.evaluation.internal_benchmark.validator`. Importing this file needs no
torch.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from longtake.runtime.errors import RunDirectoryError, UserError
from longtake.runtime.files import replacing

PromptType = Literal["detailed", "concise", "contradictory", "empty"]
Quality = Literal["high", "standard"]
Aspect = Literal["1:1", "16:9", "9:16"]
Resolution = Literal["720p", "1080p", "2K"]

PROMPT_TYPES: tuple[str, ...] = get_args(PromptType)
QUALITIES: tuple[str, ...] = get_args(Quality)
ASPECTS: tuple[str, ...] = get_args(Aspect)
RESOLUTIONS: tuple[str, ...] = get_args(Resolution)

# Section 5.1 lists these styles and contents "e.g."; "abstract" is ours, for sandbox renders.
STYLES = ("photorealism", "ink_wash", "2d_animation", "3d_animation", "oil_painting", "sketch")
CONTENTS = ("human", "animal", "plant", "food", "vehicle", "indoor", "outdoor", "abstract")

SHORT_SIDE_PX: dict[str, int] = {"720p": 720, "1080p": 1080, "2K": 1440}

INTERNAL_SUITE = Path(__file__).resolve().parents[2] / "benchmarks_data" / "internal"
"""Folder of the shipped files."""
T2V_HUMAN_FILE = "t2v_human.jsonl"
T2V_AUTO_FILE = "t2v_auto.jsonl"
I2V_FILE = "i2v.jsonl"
IMAGES_FILE = "i2v_images.jsonl"
TAXONOMY_FILE = "taxonomy.json"

_MAX_LISTED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Category:
    """One of the 48 categories of the text-to-video prompts.

    Args:
        name: snake_case; what ``categories`` of a prompt holds.
        definition: one sentence: when a prompt carries this category.
        source: ``report`` if section 5.1 names the category, else ``ours``.
    """

    name: str
    definition: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPrompt:
    """One text-to-video sample.

    Args:
        id: unique in the suite: ``t2v-h-001`` (human set), ``t2v-a-001`` (automatic set).
        prompt: the text given to the model.
        categories: what the prompt tests, one or more names of the taxonomy; the first weighs most.
        words: number of words by whitespace split.
        language: ISO 639-1 code.
        source: ``longtake`` for prompts of this repository, else the suite it was imported from.
    """

    id: str
    prompt: str
    categories: tuple[str, ...]
    words: int
    language: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePrompt:
    """One image-to-video sample: a reference image with one of its four prompts.

    Args:
        id: the image's id and the prompt type: ``i2v-001-detailed``.
        image: id of the reference image.
        prompt_type: ``detailed``, ``concise``, ``contradictory`` or ``empty``.
        prompt: the text given to the model; the empty string exactly for type ``empty``.
        words: number of words by whitespace split.
        language: ISO 639-1 code.
        source: ``longtake`` for prompts of this repository.
    """

    id: str
    image: str
    prompt_type: str
    prompt: str
    words: int
    language: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceImage:
    """One first frame, as the manifest describes it.

    Args:
        id: ``i2v-001``.
        file: path relative to the folder of the images.
        sha256: digest of the decoded pixels (:mod:`~.images`), empty while there is no image.
        caption: what the image shows, in one sentence.
        style: one of ``STYLES``.
        content: one or more of ``CONTENTS``.
        quality: ``high`` or ``standard``.
        aspect: width to height, ``1:1``, ``16:9`` or ``9:16``.
        resolution: by the short side: ``720p`` 720, ``1080p`` 1080, ``2K`` 1440 px.
        origin: where the image comes from: ``sandbox:SEED:INDEX`` names a scene that
            ``eval bench render-images`` can draw; anything else is a file of the user.
    """

    id: str
    file: str
    sha256: str
    caption: str
    style: str
    content: tuple[str, ...]
    quality: str
    aspect: str
    resolution: str
    origin: str

    def size(self) -> tuple[int, int]:
        """(width, height) in px."""
        short = SHORT_SIDE_PX[self.resolution]
        long = short * 16 // 9
        return {"1:1": (short, short), "16:9": (long, short), "9:16": (short, long)}[self.aspect]


Record = TypeVar("Record", TextPrompt, ImagePrompt, ReferenceImage, Category)


def count_words(text: str) -> int:
    """Number of words by whitespace split; the report does not say how it counts."""
    return len(text.split())


def read_jsonl(path: Path, kind: type[Record]) -> list[Record]:
    """Read one record per line.

    Raises:
        UserError: the file is missing, empty or not UTF-8, or lines are no valid records; the
            message lists the first bad lines by number.
    """
    try:
        # Not splitlines: that also splits at U+2028, which a prompt may hold.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "the file cannot be read", received=f"{path} ({error})", expected="a JSON lines file"
        ) from error
    records, problems = [], []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(parse_record(json.loads(line), kind))
        except ValueError as error:  # json.JSONDecodeError and UserError are both
            what = error.what if isinstance(error, UserError) else f"not JSON: {error}"
            problems.append(f"line {number}: {what}")
    if problems or not records:
        shown = problems[:_MAX_LISTED] or ["no lines"]
        if len(problems) > _MAX_LISTED:
            shown.append(f"and {len(problems) - _MAX_LISTED} more lines")
        raise UserError(
            f"{path} holds lines that are no {kind.__name__}",
            received="; ".join(shown),
            expected="one JSON object per line with " + ", ".join(f.name for f in fields(kind)),
            remedy="correct these lines; nothing was skipped",
        )
    return records


def write_jsonl(records: Sequence[Record], path: Path) -> Path:
    """Write what :func:`read_jsonl` reads back to equal records; replaces the file when complete.

    Raises:
        RunDirectoryError: the file cannot be written.
    """
    lines = (json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)
    try:
        with replacing(path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write the records ({error.strerror})",
            received=str(path),
            expected="a writable folder with free space",
        ) from error
    return path


def read_taxonomy(path: Path = INTERNAL_SUITE / TAXONOMY_FILE) -> list[Category]:
    """Read ``{"categories": [{name, definition, source}, ...]}``.

    Raises:
        UserError: unreadable, not of this form, or a name occurs twice.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories = [parse_record(entry, Category) for entry in content["categories"]]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            "the taxonomy cannot be read",
            received=f"{path} ({error})",
            expected='{"categories": [{"name", "definition", "source"}, ...]}',
        ) from error
    names = [category.name for category in categories]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError("categories occur twice in the taxonomy", received=", ".join(twice))
    return categories


def parse_record(entry: object, kind: type[Record]) -> Record:
    """Build one record from decoded JSON.

    Raises:
        UserError: not an object, keys missing or unknown, or a value of the wrong type.
    """
    if not isinstance(entry, Mapping):
        raise UserError(f"{type(entry).__name__} instead of an object")
    wanted = {field.name: field.type for field in fields(kind)}
    if missing := wanted.keys() - entry.keys():
        raise UserError(f"missing {', '.join(sorted(missing))}")
    if unknown := entry.keys() - wanted.keys():
        raise UserError(f"unknown {', '.join(sorted(unknown))}")
    values = {name: _READERS[wanted[name]](name, entry[name]) for name in wanted}
    return kind(**values)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name} is {value!r}, not a text")
    return value


def _whole(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{name} is {value!r}, not a whole number")
    return value


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"{name} is {value!r}, not a list of one or more texts")
    texts = tuple(_text(name, item) for item in value)
    if len(set(texts)) < len(texts):
        raise UserError(f"{name} repeats an entry: {', '.join(texts)}")
    return texts


_READERS: dict[Any, Callable[[str, object], Any]] = {
    str: _text,
    int: _whole,
    tuple[str, ...]: _texts,
}
