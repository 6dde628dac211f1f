"""The suites as data: dimensions, categories, weights and samples per prompt.

Sources: `scripts/constant.py` of VBench 1.0 and 2.0 at the pinned commit for categories, weights
and normalisation; the suites' prompt files for the numbers of prompts. For VBench 1.0
image-to-video (VBench++): `DIM_WEIGHT_I2V`, `NORMALIZE_DIC_I2V` and `I2V_WEIGHT` of the same
`scripts/constant.py`, the formula of `scripts/cal_i2v_final_score.py`, and the numbers of prompts
in `vbench2_beta_i2v/README.md`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from longtake.runtime.errors import UserError

PINNED_COMMIT = "45e79ec"
"""Commit of the public VBench repository (2026-03-23) that this package was studied against."""
NOT_APPLICABLE = -1
"""Upstream's result of a video to which the dimension does not apply; it leaves the mean."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One scored property of videos."""

    name: str
    """Key in result files and in the prompt file."""
    prompts: int
    """Prompts of the official suite."""
    samples: int
    """Videos to generate per prompt."""
    evaluated: int = 0
    """Videos per prompt that are scored; 0: all. A static filter leaves 5 of 25 for flickering."""
    per_prompt: bool = False
    """One result per prompt over all of its videos, instead of one per video."""
    may_not_apply: bool = False
    """A video's result may be -1 (not applicable), which leaves the mean."""
    leaves_out: bool = False
    """Upstream drops videos from its results without a trace where it finds no object."""
    mostly_inapplicable_is_zero: bool = False
    """Upstream scores 0 when more than 90 % of the videos are -1."""
    low: float = 0.0
    """Score that is normalised to 0."""
    high: float = 1.0
    """Score that is normalised to 1."""
    weight: float = 1.0
    """Weight within the category."""
    unit: float = 1.0
    """Result of a video that means a score of 1 (imaging quality: 100)."""
    frames_key: str = ""
    """Field of a video's result with its number of frames, where the mean is over frames."""
    frames_hidden: bool = False
    """The mean is over frames whose numbers no result file holds: the stated score counts."""
    lowest: float = 0.0
    """Smallest possible result of a video, in units of ``unit``."""

    @property
    def scored_samples(self) -> int:
        """Videos per prompt that are scored."""
        return self.evaluated or self.samples

    @property
    def results_per_prompt(self) -> int:
        """Results that a complete evaluation has for one prompt."""
        return 1 if self.per_prompt else self.scored_samples


@dataclass(frozen=True, kw_only=True)
class Category:
    """A group of dimensions with a score of its own."""

    name: str
    dimensions: tuple[Dimension, ...]
    weight: float = 1.0
    """Weight within the total."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A benchmark: prompts, dimensions and how the total follows from them."""

    name: str
    """Key in :data:`SUITES`."""
    title: str
    categories: tuple[Category, ...]
    package: str
    """Python package of the public code; it holds ``prompt_file``."""
    prompt_file: str
    """Name of the JSON file with all prompts."""
    folder: str
    """Folder of the public repository from which the code must be started."""
    cache_variable: str
    """Environment variable with the folder of the weights."""
    name_length: int | None = None
    """File names take this many characters of the prompt; None: all."""
    outside_total: tuple[str, ...] = ()
    """Dimensions that the public code scores as well and that no total uses."""

    @cached_property
    def dimensions(self) -> dict[str, Dimension]:
        """Dimension by name, in the order of the categories."""
        return {d.name: d for category in self.categories for d in category.dimensions}

    def dimension(self, name: str) -> Dimension:
        """The dimension of a name as in result files or as printed (`Human Anatomy`).

        Raises:
            UserError: unknown name.
        """
        key = name.replace(" ", "_")
        if key not in self.dimensions:
            raise UserError(
                f"unknown dimension of {self.title}",
                received=name,
                expected=", ".join(self.dimensions),
            )
        return self.dimensions[key]

    def video_name(self, prompt: str, index: int) -> str:
        """File name of a sample. Never stripped: 20 official names end in a space before `-`."""
        return f"{prompt[: self.name_length]}-{index}.mp4"


_three = partial(Dimension, samples=3)
_drops = partial(Dimension, samples=3, may_not_apply=True)
_five = partial(Dimension, samples=5, lowest=-1.0)  # similarities may be negative

VBENCH2 = Suite(
    name="vbench2",
    title="VBench 2.0",
    package="vbench2",
    prompt_file="VBench2_full_info.json",
    folder="VBench-2.0",
    cache_variable="VBENCH2_CACHE_DIR",
    name_length=180,
    categories=(
        Category(
            name="Creativity",
            dimensions=(
                _three(name="Composition", prompts=53),
                Dimension(name="Diversity", prompts=10, samples=20, per_prompt=True),
            ),
        ),
        Category(
            name="Commonsense",
            dimensions=(
                _three(name="Instance_Preservation", prompts=57),
                _three(name="Motion_Rationality", prompts=58),
            ),
        ),
        Category(
            name="Controllability",
            dimensions=(
                _three(name="Camera_Motion", prompts=108),
                _three(name="Complex_Landscape", prompts=30),
                _three(name="Complex_Plot", prompts=60),
                _three(name="Dynamic_Attribute", prompts=91),
                _three(name="Dynamic_Spatial_Relationship", prompts=69),
                _three(name="Human_Interaction", prompts=100),
                _drops(
                    name="Motion_Order_Understanding", prompts=99, mostly_inapplicable_is_zero=True
                ),
            ),
        ),
        Category(
            name="Human Fidelity",
            dimensions=(
                _three(name="Human_Anatomy", prompts=120),
                _drops(name="Human_Clothes", prompts=75),
                _drops(name="Human_Identity", prompts=46),
            ),
        ),
        Category(
            name="Physics",
            dimensions=(
                _drops(name="Material", prompts=50),
                _drops(name="Mechanics", prompts=57),
                _drops(name="Multi-View_Consistency", prompts=97),
                _drops(name="Thermotics", prompts=50),
            ),
        ),
    ),
)

VBENCH1 = Suite(
    name="vbench1",
    title="VBench 1.0",
    package="vbench",
    prompt_file="VBench_full_info.json",
    folder=".",
    cache_variable="VBENCH_CACHE_DIR",
    categories=(
        Category(
            name="Quality",
            weight=4,
            dimensions=(
                _five(name="subject_consistency", prompts=72, low=0.1462, frames_hidden=True),
                _five(
                    name="background_consistency",
                    prompts=86,
                    low=0.2615,
                    frames_key="cnt_per_video",
                ),
                Dimension(
                    name="temporal_flickering", prompts=75, samples=25, evaluated=5, low=0.6293
                ),
                _five(name="motion_smoothness", prompts=72, low=0.706, high=0.9975),
                _five(name="dynamic_degree", prompts=72, weight=0.5),
                _five(name="aesthetic_quality", prompts=93),
                _five(name="imaging_quality", prompts=93, unit=100.0),
            ),
        ),
        Category(
            name="Semantic",
            dimensions=(
                _five(name="object_class", prompts=79, frames_key="frame_count"),
                _five(name="multiple_objects", prompts=82, frames_key="frame_count"),
                _five(name="human_action", prompts=100),
                _five(name="color", prompts=85, leaves_out=True),
                _five(name="spatial_relationship", prompts=84, frames_key="frame_results"),
                _five(name="scene", prompts=86, high=0.8222, frames_key="frame_count"),
                _five(
                    name="appearance_style",
                    prompts=90,
                    low=0.0009,
                    high=0.2855,
                    frames_key="frame_results",
                ),
                _five(name="temporal_style", prompts=100, high=0.364),
                _five(name="overall_consistency", prompts=93, high=0.364),
            ),
        ),
    ),
)

VBENCH1_I2V = Suite(
    name="vbench1_i2v",
    title="VBench 1.0 image-to-video",
    package="vbench2_beta_i2v",
    prompt_file="vbench2_i2v_full_info.json",
    folder=".",
    cache_variable="VBENCH_CACHE_DIR",
    outside_total=("temporal_flickering",),
    categories=(
        Category(
            name="Quality",
            dimensions=(
                _five(name="subject_consistency", prompts=246, low=0.1462, frames_hidden=True),
                _five(
                    name="background_consistency",
                    prompts=109,
                    low=0.2615,
                    frames_key="cnt_per_video",
                ),
                _five(name="motion_smoothness", prompts=246, low=0.706, high=0.9975),
                _five(name="dynamic_degree", prompts=246, weight=0.5),
                _five(name="aesthetic_quality", prompts=355),
                _five(name="imaging_quality", prompts=355, unit=100.0),
            ),
        ),
        Category(
            name="I2V",
            dimensions=(
                Dimension(name="i2v_subject", prompts=246, samples=5, low=0.1462),
                Dimension(name="i2v_background", prompts=109, samples=5, low=0.2615),
                # Seven camera instructions for each of the 109 images of backgrounds.
                Dimension(name="camera_motion", prompts=763, samples=5, weight=0.1),
            ),
        ),
    ),
)

SUITES: dict[str, Suite] = {suite.name: suite for suite in (VBENCH2, VBENCH1)}
"""Suites that are planned, generated and run here."""
SCORED_SUITES: dict[str, Suite] = {**SUITES, VBENCH1_I2V.name: VBENCH1_I2V}
"""Suites whose result files are scored: also those of which only the public code makes results."""


def find_suite(name: str, among: Mapping[str, Suite] = SUITES) -> Suite:
    """The suite of a name.

    Raises:
        UserError: unknown name.
    """
    if name not in among:
        raise UserError("unknown suite", received=name, expected=", ".join(among))
    return among[name]
