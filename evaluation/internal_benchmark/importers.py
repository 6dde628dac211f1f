"""Public prompt suites that the user has, as records of this benchmark.

The report's automatic set takes prompts from T2V-CompBench and MovieGen Bench (section 5.1). They
are not shipped here: the first has no licence file, the second is CC-BY-NC. Give the path of your
copy.

A suite's own labels become categories of the taxonomy where one means the other. A label without
such a category is counted in the result, and a prompt that is left without any is marked
``unsorted``, which the validator refuses: nothing is guessed.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from longtake.evaluation.internal_benchmark.schema import TextPrompt, count_words
from longtake.runtime.errors import UserError

UNSORTED = "unsorted"
"""Category of an imported prompt whose labels mean none of the 48."""

Row = tuple[str, tuple[str, ...]]  # prompt, labels of the suite
Categories = Mapping[str, tuple[str, ...]]

# Files of the suite's folder `prompts/`, without their number.
_T2V_COMPBENCH: Categories = {
    "consistent_attr": ("attribute_binding",),
    "dynamic_attr": ("state_change",),
    "spatial_relationship": ("spatial_relationship",),
    "motion_binding": ("spatial_relationship",),
    "action_binding": ("action", "attribute_binding"),
    "interaction": ("interaction",),
    "numeracy": ("counting",),
}
# Column `concept`; "scene" is nature or town, so it means no single category.
_MOVIEGEN: Categories = {
    "human - activity": ("human_subject", "action"),
    "human - emotion": ("human_subject", "emotion"),
    "human - hand": ("human_subject", "fine_hand_action"),
    "human - mouth": ("human_subject",),
    "animal": ("animal",),
    "physics - fluid dynamics": ("physical_simulation", "fluid_dynamics"),
    "physics - collision": ("physical_simulation", "fracture_and_collision"),
    "physics - acceleration": ("physical_simulation",),
    "physics - gravity": ("physical_simulation",),
    "unusual subject": ("imagination",),
    "unusual activity": ("imagination",),
    "camera motion": ("camera_movement",),
    "sequential motion": ("event_sequence",),
}
# Dimensions of VBench 1.0 and 2.0 that name a content; the others are qualities of any video.
_VBENCH: Categories = {
    "object_class": ("entity_generation",),
    "multiple_objects": ("entity_generation",),
    "human_action": ("human_subject", "action"),
    "color": ("attribute_binding",),
    "spatial_relationship": ("spatial_relationship",),
    "appearance_style": ("art_style",),
    "Camera_Motion": ("camera_movement",),
    "Complex_Landscape": ("natural_landscape",),
    "Complex_Plot": ("event_sequence",),
    "Composition": ("imagination",),
    "Dynamic_Attribute": ("state_change",),
    "Dynamic_Spatial_Relationship": ("spatial_relationship",),
    "Human_Anatomy": ("human_subject",),
    "Human_Clothes": ("human_subject", "clothing"),
    "Human_Identity": ("human_subject",),
    "Human_Interaction": ("human_subject", "interaction"),
    "Mechanics": ("physical_simulation",),
    "Motion_Order_Understanding": ("event_sequence",),
    "Thermotics": ("state_change",),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """Result of :func:`import_suite`.

    Args:
        prompts: one record per distinct prompt, in the order of the suite.
        rows: rows read; the difference to the prompts are repetitions, whose labels were joined.
        unmapped: labels without a category, with the number of their rows.
        unsorted: prompts that are left without a category.
    """

    prompts: tuple[TextPrompt, ...]
    rows: int
    unmapped: Mapping[str, int]
    unsorted: int


def import_suite(name: str, path: Path) -> Imported:
    """Read a public suite.

    Args:
        name: one of ``SUITES``.
        path: ``t2v_compbench``: the checkout, its folder ``prompts`` or one of its text files.
            ``moviegen``: ``MovieGenVideoBenchWithTag.csv``, or the text file without labels.
            ``vbench``: ``VBench_full_info.json`` or ``VBench2_full_info.json``.

    Raises:
        UserError: unknown suite, or a path that does not hold its files.
    """
    if name not in SUITES:
        raise UserError("unknown suite", received=name, expected=", ".join(SUITES))
    read, table = SUITES[name]
    try:
        rows = list(read(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"the suite {name} cannot be read", received=f"{path} ({error})", expected="its files"
        ) from error
    if not rows:
        raise UserError(f"the suite {name} holds no prompts", received=str(path))
    labels: dict[str, dict[str, None]] = {}  # prompt -> its labels, in order and once each
    for prompt, found in rows:
        labels.setdefault(prompt, {}).update(dict.fromkeys(found))
    prompts = []
    for number, (prompt, own) in enumerate(labels.items(), start=1):
        mapped = dict.fromkeys(category for label in own for category in table.get(label, ()))
        prompts.append(
            TextPrompt(
                id=f"{name}-{number:04d}",
                prompt=prompt,
                categories=tuple(mapped) or (UNSORTED,),
                words=count_words(prompt),
                language="en",
                source=name,
            )
        )
    return Imported(
        prompts=tuple(prompts),
        rows=len(rows),
        unmapped=Counter(label for _, found in rows for label in found if label not in table),
        unsorted=sum(prompt.categories == (UNSORTED,) for prompt in prompts),
    )


def _lines(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8-sig").split("\n"):
        if text := " ".join(line.split()):
            yield text


def _t2v_compbench(path: Path) -> Iterator[Row]:
    """One prompt a line; the file name is the label."""
    folder = path / "prompts" if (path / "prompts").is_dir() else path
    for file in [path] if path.is_file() else sorted(folder.glob("*.txt")):
        label = re.sub(r"^\d+_", "", file.stem)
        for prompt in _lines(file):
            yield prompt, (label,)


def _moviegen(path: Path) -> Iterator[Row]:
    """Columns prompt, concept (one or more, joined by commas) and motion_level; or plain lines."""
    if path.suffix != ".csv":
        for prompt in _lines(path):
            yield prompt, ()
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not {"prompt", "concept"} <= set(reader.fieldnames or ()):
            raise UserError(
                "columns of MovieGen Bench are missing",
                received=f"{path} with {', '.join(reader.fieldnames or ())}",
                expected="prompt and concept",
            )
        for row in reader:
            if not row["prompt"] or row["concept"] is None:
                raise UserError("a row of MovieGen Bench is incomplete", received=f"{row}")
            concepts = (concept.strip() for concept in row["concept"].split(","))
            yield " ".join(row["prompt"].split()), tuple(filter(None, concepts))


def _vbench(path: Path) -> Iterator[Row]:
    """A list of objects with ``prompt_en`` and the list ``dimension``."""
    expected = 'a JSON list of objects with "prompt_en" and "dimension"'
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError("not JSON", received=f"{path} ({error})", expected=expected) from error
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        match entry:
            case {"prompt_en": str(prompt), "dimension": [*dimensions]}:
                yield " ".join(prompt.split()), tuple(map(str, dimensions))
            case _:
                raise UserError(
                    "not a file of VBench", received=f"{path}, entry {number}", expected=expected
                )


SUITES: dict[str, tuple[Callable[[Path], Iterator[Row]], Categories]] = {
    "t2v_compbench": (_t2v_compbench, _T2V_COMPBENCH),
    "moviegen": (_moviegen, _MOVIEGEN),
    "vbench": (_vbench, _VBENCH),
}
"""Suite -> reader of its rows, and what its labels mean here."""
