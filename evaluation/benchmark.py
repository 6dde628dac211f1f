"""The open replica of the report's internal benchmark: prompts, reference images, taxonomy.

``benchmarks_data/internal`` holds 500 + 728 text-to-video prompts and 100 images with four prompts
each; the tests hold them to the counts of report section 5.1. One line is one record and its keys
are the fields of the dataclass, no more and no fewer. Importing this file needs no torch.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from longtake.runtime.errors import UserError
from longtake.runtime.files import explained, read_jsonl, replacing, write_jsonl
from longtake.runtime.progress import progress_bar

if TYPE_CHECKING:
    from PIL import Image

TextSet = Literal["t2v_human", "t2v_auto"]
Resolution = Literal["720p", "1080p", "2K"]
# Section 5.1 lists these styles and contents "e.g."; "abstract" is ours, for sandbox renders.
Style = Literal[
    "photorealism", "ink_wash", "2d_animation", "3d_animation", "oil_painting", "sketch"
]
Content = Literal["human", "animal", "plant", "food", "vehicle", "indoor", "outdoor", "abstract"]

INTERNAL_SUITE = Path(__file__).resolve().parents[1] / "benchmarks_data" / "internal"
"""Folder of the shipped files."""
I2V_FILE, IMAGES_FILE, TAXONOMY_FILE = "i2v.jsonl", "i2v_images.jsonl", "taxonomy.json"

_SHORT_SIDE_PX = {"720p": 720, "1080p": 1080, "2K": 1440}
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_RECORD = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, kw_only=True, slots=True, config=_RECORD)
class Category:
    """One of the 48 categories of the text-to-video prompts."""

    name: str
    definition: str
    """One sentence: when a prompt carries this category."""
    source: Literal["report", "ours"]
    """Whether section 5.1 names it."""


@dataclass(frozen=True, kw_only=True, slots=True, config=_RECORD)
class TextPrompt:
    """One text-to-video sample."""

    id: str
    """Unique in the suite: ``t2v-h-001`` (human set), ``t2v-a-001`` (automatic set)."""
    prompt: str
    categories: tuple[str, ...]
    """What the prompt tests, names of the taxonomy; the first weighs most."""
    words: int
    """By whitespace split; the report does not say how it counts."""
    language: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True, config=_RECORD)
class ImagePrompt:
    """One image-to-video sample: a reference image with one of its four prompts."""

    id: str
    image: str
    prompt_type: Literal["detailed", "concise", "contradictory", "empty"]
    prompt: str
    """The empty string exactly for type ``empty``."""
    words: int
    language: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True, config=_RECORD)
class ReferenceImage:
    """One first frame, as the manifest describes it."""

    id: str
    file: str
    """Path relative to the folder of the images."""
    sha256: str
    """:func:`pixel_digest`; empty while there is no image."""
    caption: str
    style: Style
    content: tuple[Content, ...]
    quality: Literal["high", "standard"]
    aspect: Literal["1:1", "16:9", "9:16"]
    resolution: Resolution
    """By the short side: 720, 1080 or 1440 px."""
    origin: str
    """``sandbox:SEED:INDEX`` names a scene that ``eval bench render-images`` can draw; anything
    else is a file of the user."""

    def size(self) -> tuple[int, int]:
        """(width, height) in px."""
        short = _SHORT_SIDE_PX[self.resolution]
        long = short * 16 // 9
        return {"1:1": (short, short), "16:9": (long, short), "9:16": (short, long)}[self.aspect]


Record = TypeVar("Record", TextPrompt, ImagePrompt, ReferenceImage, Category)


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """One record per line of a JSON-lines file."""
    return _parsed(read_jsonl(path), kind, path)


def read_taxonomy(path: Path = INTERNAL_SUITE / TAXONOMY_FILE) -> list[Category]:
    """Read ``{"categories": [{name, definition, source}, ...]}``."""
    return _parsed(json.loads(path.read_text(encoding="utf-8"))["categories"], Category, path)


def _parsed(records: Sequence[Any], kind: type[Record], path: Path) -> list[Record]:
    try:
        # From JSON, not from Python: strict validation takes a list for a tuple only there.
        return TypeAdapter(list[kind]).validate_json(json.dumps(records))  # type: ignore[valid-type]
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path} holds what is no {kind.__name__}",
            received=f"record {int(first['loc'][0]) + 1}: {first['loc'][1:]}: {first['msg']}",
            expected=f"the fields of {kind.__name__} in evaluation/benchmark.py, no others",
        ) from error


def read_text_set(name: str, folder: Path = INTERNAL_SUITE) -> list[TextPrompt]:
    """Prompts of ``t2v_human`` or ``t2v_auto``."""
    return read_records(folder / f"{name}.jsonl", TextPrompt)


def of_category(prompts: Sequence[TextPrompt], category: str) -> list[TextPrompt]:
    """The prompts that carry a category."""
    if own := [prompt for prompt in prompts if category in prompt.categories]:
        return own
    names = sorted({name for prompt in prompts for name in prompt.categories})
    raise UserError("no prompt of this category", received=category, expected=", ".join(names))


def sample_prompts(prompts: Sequence[TextPrompt], count: int, seed: int) -> list[TextPrompt]:
    """A random subset without repetition, in the order of the set; the seed names it."""
    if not 1 <= count <= len(prompts):
        raise UserError(
            "that many prompts cannot be drawn", received=count, expected=f"1 to {len(prompts)}"
        )
    # Positions, not prompts: the subset keeps its order and its name when a text is corrected.
    drawn = random.Random(seed).sample(range(len(prompts)), count)
    return [prompts[index] for index in sorted(drawn)]


def pixel_digest(picture: "Image.Image") -> str:
    """SHA-256 of ``WIDTHxHEIGHT``, a newline, and the 8-bit RGB pixels row by row.

    Of pixels, not file bytes: PNG compression differs between zlib versions. Reference images of
    your own are best kept as PNG too; decoders of JPEG differ in the last bit.
    """
    rgb = picture.convert("RGB")
    return hashlib.sha256(f"{rgb.width}x{rgb.height}\n".encode() + rgb.tobytes()).hexdigest()


def scene_name(image: ReferenceImage) -> tuple[int, int]:
    """(seed, index) of the sandbox scene that an image shows."""
    scene = re.fullmatch(r"sandbox:(\d+):(\d+)", image.origin)
    if scene is None:
        raise UserError(
            f"image {image.id} cannot be drawn",
            received=f"origin {image.origin}",
            expected="sandbox:SEED:INDEX",
        )
    return int(scene[1]), int(scene[2])


def write_images(
    images: Sequence[ReferenceImage],
    draw: "Callable[[ReferenceImage], Image.Image]",
    folder: Path,
    resolution: Resolution | None = None,
) -> list[ReferenceImage]:
    """Draw every image into ``folder`` and write the manifest of what was drawn, last.

    ``draw`` makes the picture of one entry at its size; ``resolution`` None keeps the entry's own.
    Returns the manifest: the entries with digest and resolution of the pictures written.
    """
    written = []
    with progress_bar("images", len(images)) as bar:
        for entry in images:
            image = replace(entry, resolution=resolution or entry.resolution)
            picture, path = draw(image), folder / image.file
            with explained("write an image", path), replacing(path) as temporary:
                picture.save(temporary, format="png")
            written.append(replace(image, sha256=pixel_digest(picture)))
            bar.update(len(written))
    write_jsonl(folder / IMAGES_FILE, map(asdict, written))
    return written


def trigrams(text: str) -> frozenset[tuple[str, ...]]:
    """Word 3-grams without case and punctuation; a shorter text is one gram of all its words."""
    words = _WORD.findall(text.lower())
    if len(words) < 3:
        return frozenset({tuple(words)})
    return frozenset(zip(words, words[1:], words[2:], strict=False))
