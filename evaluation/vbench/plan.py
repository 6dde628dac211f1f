"""The sampling plan: which videos a suite needs, their exact file names and their seeds."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from longtake.evaluation.vbench.suite_data import PromptRow, SuiteData
from longtake.evaluation.vbench.suites import Suite
from longtake.runtime.errors import UserError
from longtake.runtime.rng import derive_key

_SEED_BITS = 31  # fits the seed options of every generator
_LONGEST_NAME = 255  # bytes, on common file systems


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedVideo:
    """One video to generate."""

    name: str
    """File name, made of the English prompt whatever the model is given."""
    prompt: str
    """The suite's English prompt."""
    text: str
    """What the model is given: the prompt, or its augmented form."""
    index: int
    """Number of the sample, from 0."""
    seed: int
    """Of the noise, in [0, 2**31)."""
    dimensions: tuple[str, ...]
    """Dimensions that score it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Videos of a suite, or of a part of it."""

    suite: Suite
    rows: tuple[PromptRow, ...]
    seed: int
    """Base of the videos' seeds, >= 0."""
    source: str
    """Where the prompts came from."""
    digest: str
    """SHA-256 of that file."""
    remarks: tuple[str, ...]
    """About the source, and what was left out of it."""
    texts: dict[str, str]
    """Prompt -> what the model is given, where that differs."""
    samples: int | None = None
    """At most so many videos per prompt; None: as the suite says."""

    def samples_of(self, dimension: str) -> int:
        """Videos to generate for a prompt of a dimension."""
        return _at_most(self.suite.dimensions[dimension].samples, self.samples)

    def scored_samples_of(self, dimension: str) -> int:
        """Videos of a prompt that the dimension scores."""
        return _at_most(self.suite.dimensions[dimension].scored_samples, self.samples)

    def results_of(self, dimension: str) -> tuple[str, ...]:
        """File names under which a complete evaluation has a result.

        All videos that are scored; the first of each prompt where one result is over all of them.
        """
        per_prompt = self.suite.dimensions[dimension].per_prompt
        count = 1 if per_prompt else self.scored_samples_of(dimension)
        return tuple(v.name for v in self.of_dimension(dimension) if v.index < count)

    @cached_property
    def videos(self) -> tuple[PlannedVideo, ...]:
        """Every video once, in the order of the rows.

        Raises:
            UserError: two prompts share a file name, or a name is too long.
        """
        found: dict[str, PlannedVideo] = {}
        for row in self.rows:
            for dimension in row.dimensions:
                for index in range(self.samples_of(dimension)):
                    name = self.suite.video_name(row.prompt, index)
                    found[name] = self._with_dimension(found.get(name), row, dimension, index, name)
        return tuple(found.values())

    def _with_dimension(
        self, known: PlannedVideo | None, row: PromptRow, dimension: str, index: int, name: str
    ) -> PlannedVideo:
        if known is not None and known.prompt != row.prompt:
            raise UserError(
                "two prompts of the suite share a file name",
                received=f"{known.prompt!r} and {row.prompt!r}",
                expected=f"prompts that differ in the first {self.suite.name_length} characters",
            )
        if known is None and len(name.encode()) > _LONGEST_NAME:
            raise UserError("a prompt is too long to name a file", received=row.prompt)
        before = () if known is None else known.dimensions
        return PlannedVideo(
            name=name,
            prompt=row.prompt,
            text=self.texts.get(row.prompt, row.prompt),
            index=index,
            seed=derive_key(self.seed, "vbench", row.prompt, index) >> (63 - _SEED_BITS),
            dimensions=before if dimension in before else (*before, dimension),
        )

    @cached_property
    def dimensions(self) -> tuple[str, ...]:
        """Dimensions with at least one video, in the suite's order."""
        used = {name for row in self.rows for name in row.dimensions}
        return tuple(name for name in self.suite.dimensions if name in used)

    def of_dimension(self, dimension: str) -> tuple[PlannedVideo, ...]:
        """The videos that a dimension scores."""
        return tuple(video for video in self.videos if dimension in video.dimensions)

    @property
    def copies(self) -> int:
        """Videos counted once per dimension: the files of the layout with a folder for each."""
        return sum(len(video.dimensions) for video in self.videos)


def make_plan(
    data: SuiteData,
    *,
    seed: int = 0,
    dimensions: Collection[str] = (),
    prompts_per_dimension: int | None = None,
    samples: int | None = None,
    texts: dict[str, str] | None = None,
) -> Plan:
    """Plan the videos of a suite.

    Args:
        data: the prompts.
        seed: base of the seeds; the seed of a video depends on it, the prompt and the index only,
            so parts of a suite and all of it get the same videos.
        dimensions: only these; empty takes all.
        prompts_per_dimension: only the first prompts of each dimension; None takes all. Such a
            plan is for trying things out, its scores are not comparable.
        samples: at most so many videos per prompt; None takes the suite's numbers.
        texts: augmented or translated prompts by English prompt.

    Raises:
        UserError: an unknown dimension, a negative seed, or a number below 1.
    """
    limits = [limit for limit in (samples, prompts_per_dimension) if limit is not None]
    if seed < 0 or min(limits, default=1) < 1:
        raise UserError(
            "the plan's numbers cannot be used",
            received=f"seed={seed}, prompts={prompts_per_dimension}, samples={samples}",
            expected="seed >= 0, the others >= 1",
        )
    suite = data.suite
    wanted = {suite.dimension(name).name for name in dimensions} or set(suite.dimensions)
    remarks = list(data.remarks)
    rows: list[PromptRow] = []
    used = dict.fromkeys(suite.dimensions, 0)
    for row in data.rows:
        kept = tuple(
            name
            for name in row.dimensions
            if name in wanted and used[name] != prompts_per_dimension
        )
        for name in kept:
            used[name] += 1
        if kept:
            rows.append(PromptRow(prompt=row.prompt, dimensions=kept, auxiliary=row.auxiliary))
    if len(wanted) < len(suite.dimensions):
        remarks.append(f"only the dimensions {', '.join(n for n in used if n in wanted)}")
    if prompts_per_dimension is not None:
        remarks.append(f"only {prompts_per_dimension} prompts per dimension: not comparable")
    if samples is not None:
        remarks.append(f"at most {samples} videos per prompt: not comparable")
    texts = texts or {}
    if texts:
        if absent := [row.prompt for row in rows if row.prompt not in texts]:
            raise UserError(
                f"{len(absent)} prompts of the plan have no text",
                received=absent[0],
                expected="a line for every prompt of the suite",
            )
        remarks.append("the model is given other texts than the suite's prompts")
    return Plan(
        suite=suite,
        rows=tuple(rows),
        seed=seed,
        source=data.source,
        digest=data.digest,
        remarks=tuple(remarks),
        texts=texts,
        samples=samples,
    )


def _at_most(number: int, limit: int | None) -> int:
    return number if limit is None else min(number, limit)
