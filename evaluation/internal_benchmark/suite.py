"""The three sets of the suite as one folder: reading them, checking them, drawing samples."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from longtake.evaluation.internal_benchmark.images import check_files
from longtake.evaluation.internal_benchmark.schema import (
    I2V_FILE,
    IMAGES_FILE,
    INTERNAL_SUITE,
    T2V_AUTO_FILE,
    T2V_HUMAN_FILE,
    TAXONOMY_FILE,
    ImagePrompt,
    ReferenceImage,
    TextPrompt,
    read_jsonl,
    read_taxonomy,
)
from longtake.evaluation.internal_benchmark.validator import (
    T2V_AUTO,
    T2V_HUMAN,
    Check,
    check_disjoint,
    check_image_prompts,
    check_text_prompts,
)
from longtake.runtime.errors import UserError

SetName = Literal["t2v_human", "t2v_auto", "i2v"]
SETS: tuple[SetName, ...] = get_args(SetName)

_TEXT_FILES = {"t2v_human": T2V_HUMAN_FILE, "t2v_auto": T2V_AUTO_FILE}
_TARGETS = {"t2v_human": T2V_HUMAN, "t2v_auto": T2V_AUTO}


def read_text_set(name: str, folder: Path = INTERNAL_SUITE) -> list[TextPrompt]:
    """Prompts of ``t2v_human`` or ``t2v_auto``.

    Raises:
        UserError: another name, or a file that cannot be read.
    """
    if name not in _TEXT_FILES:
        raise UserError("no text-to-video set", received=name, expected=", ".join(_TEXT_FILES))
    return read_jsonl(folder / _TEXT_FILES[name], TextPrompt)


def read_image_set(folder: Path = INTERNAL_SUITE) -> list[ImagePrompt]:
    """Prompts of ``i2v``.

    Raises:
        UserError: the file cannot be read.
    """
    return read_jsonl(folder / I2V_FILE, ImagePrompt)


def read_images(folder: Path = INTERNAL_SUITE) -> list[ReferenceImage]:
    """The image manifest of a folder.

    Raises:
        UserError: the file cannot be read.
    """
    return read_jsonl(folder / IMAGES_FILE, ReferenceImage)


def check_suite(
    folder: Path = INTERNAL_SUITE,
    sets: Sequence[str] = SETS,
    image_folder: Path | None = None,
) -> dict[str, list[Check]]:
    """Check the sets of a folder.

    Args:
        folder: holds the files named in :mod:`~.schema`.
        sets: which of ``SETS``; the overlap of the two text sets is checked when both are here.
        image_folder: also check the image files in this folder, against the manifest beside them.

    Returns:
        The outcome of every rule, by set.

    Raises:
        UserError: an unknown set, or a file that is missing or broken.
    """
    if unknown := [name for name in sets if name not in SETS]:
        raise UserError("unknown set", received=", ".join(unknown), expected=", ".join(SETS))
    checks: dict[str, list[Check]] = {}
    texts: dict[str, list[TextPrompt]] = {}
    for name in sets:
        if name in _TEXT_FILES:
            texts[name] = read_text_set(name, folder)
            taxonomy = read_taxonomy(folder / TAXONOMY_FILE)
            checks[name] = check_text_prompts(texts[name], taxonomy, _TARGETS[name])
        else:
            checks[name] = check_image_prompts(read_image_set(folder), read_images(folder))
    if len(texts) == len(_TEXT_FILES):
        checks["t2v_human and t2v_auto"] = check_disjoint(texts["t2v_human"], texts["t2v_auto"])
    if image_folder is not None:
        checks["image files"] = check_files(read_images(image_folder), image_folder)
    return checks


def of_category(prompts: Sequence[TextPrompt], category: str) -> list[TextPrompt]:
    """The prompts that carry a category.

    Raises:
        UserError: none does.
    """
    if chosen := [prompt for prompt in prompts if category in prompt.categories]:
        return chosen
    known = sorted({name for prompt in prompts for name in prompt.categories})
    raise UserError("no prompt of this category", received=category, expected=", ".join(known))


def sample_prompts(prompts: Sequence[TextPrompt], count: int, seed: int) -> list[TextPrompt]:
    """A random subset without repetition, in the order of the set; the seed names it.

    Raises:
        UserError: more prompts asked than there are.
    """
    if not 1 <= count <= len(prompts):
        raise UserError(
            "that many prompts cannot be drawn", received=count, expected=f"1 to {len(prompts)}"
        )
    chosen = random.Random(seed).sample(range(len(prompts)), count)
    return [prompts[index] for index in sorted(chosen)]
