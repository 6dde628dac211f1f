"""What raters judge: the dimensions of the report's internal benchmark and their five tiers.

Report section 5.1: text-to-video is rated on text alignment, visual quality (plausibility and
realism), motion quality and overall quality; image-to-video adds image alignment. The judge model
scores three of them. The report says that every tier had a written descriptor and prints none; the
descriptors here are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from longtake.runtime.errors import UserError

Task = Literal["t2v", "i2v"]

SCALE = (1, 5)
"""Lowest and highest score of a person; scores are whole numbers."""

TIER_WORDS = ("Bad", "Poor", "Fair", "Good", "Excellent")
"""Names of the scores 1 to 5, those of the absolute category rating of ITU-T P.910."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dimension:
    """One question to a rater."""

    name: str
    """As it is recorded."""
    title: str
    """As it is shown."""
    question: str
    """What the rater answers."""
    aspects: tuple[str, ...] = ()
    """What the rater should look at."""
    tiers: tuple[str, str, str, str, str]
    """What a 1, 2, 3, 4 and 5 means."""
    judged: bool
    """Whether the report's automatic judge scores it too (section 5.1, quality control)."""


_TEXT_ALIGNMENT = Dimension(
    name="text_alignment",
    title="Text-Alignment",
    question="Does the video show what the text asks for?",
    aspects=("objects and people", "their attributes and number", "actions", "scene", "style"),
    tiers=(
        "Hardly anything of the text can be seen.",
        "The subject is there, but most of what is said about it is missing or wrong.",
        "The main points are met; a clear one is missing or wrong.",
        "Everything important is met; a small detail is off.",
        "Every point of the text is met.",
    ),
    judged=True,
)
_VISUAL_QUALITY = Dimension(
    name="visual_quality",
    title="Visual Quality",
    question="Do the pictures look right and real, whatever the text says?",
    aspects=("plausibility: shapes, anatomy, physics", "realism: light, texture, depth"),
    tiers=(
        "Broken pictures: the scene cannot be made out or is badly deformed.",
        "Strong errors of shape or texture in most of the video.",
        "Recognisable and mostly intact; errors catch the eye.",
        "Clean and believable; errors show only to a searching look.",
        "Could be taken for a real recording or finished artwork.",
    ),
    judged=True,
)
_MOTION_QUALITY = Dimension(
    name="motion_quality",
    title="Motion Quality",
    question="Do things, people and the camera move as they would?",
    aspects=("smoothness", "physical paths and contacts", "no freezing, jumping or jitter"),
    tiers=(
        "Frozen although something should move, or motion without any sense.",
        "Jumps, jitter or impossible motion for most of the time.",
        "Motion can be followed; there are clear faults.",
        "Natural motion with a small slip.",
        "Smooth and natural from start to end.",
    ),
    judged=True,
)
_OVERALL = Dimension(
    name="overall",
    title="Overall Quality",
    question="All in all, how good is this video?",
    aspects=("the other questions together",),
    tiers=(
        "Of no use.",
        "Poor: would be thrown away.",
        "Fair: of use after a new attempt or much editing.",
        "Good: of use as it is, with small reservations.",
        "Excellent.",
    ),
    judged=False,
)
_IMAGE_ALIGNMENT = Dimension(
    name="image_alignment",
    title="Image-Alignment",
    question="Does the video keep what the reference image shows?",
    aspects=("subject and identity", "background and layout", "colours", "style"),
    tiers=(
        "Another picture: neither subject nor scene is kept.",
        "The subject can be guessed; much of it has changed.",
        "Subject and scene are kept; clear changes in identity, layout or style.",
        "Kept throughout; a detail drifts.",
        "As if the image itself had come alive.",
    ),
    judged=False,
)

DIMENSIONS: dict[str, Dimension] = {
    item.name: item
    for item in (_IMAGE_ALIGNMENT, _TEXT_ALIGNMENT, _VISUAL_QUALITY, _MOTION_QUALITY, _OVERALL)
}
"""By name, in the order of report Figure 16."""

TASKS: dict[str, tuple[str, ...]] = {
    "t2v": tuple(name for name in DIMENSIONS if name != "image_alignment"),
    "i2v": tuple(DIMENSIONS),
}
"""Dimensions of each task: report Figures 14 (text-to-video) and 16 (image-to-video)."""


def dimension_names(task: str, chosen: Sequence[str] = ()) -> tuple[str, ...]:
    """The dimensions of a study: those of the task, or the chosen names, which may be your own.

    Raises:
        UserError: the task is unknown.
    """
    if chosen:
        return tuple(dict.fromkeys(chosen))
    if task not in TASKS:
        raise UserError("unknown task", received=task, expected=f"one of: {', '.join(TASKS)}")
    return TASKS[task]


def title_of(name: str) -> str:
    """The title of a dimension; for one of your own, its name."""
    return DIMENSIONS[name].title if name in DIMENSIONS else name.replace("_", " ")
