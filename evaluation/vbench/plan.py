"""The sampling plan: from the user's copy of a suite to exact file names, prompts and seeds.

Nothing of the public code is imported or executed: a wheel is read as a zip.
"""

import hashlib
import json
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from longtake.evaluation.vbench.suites import Suite, find_suite
from longtake.runtime.errors import UserError
from longtake.runtime.files import write_json
from longtake.runtime.rng import derive_key

SANDBOX_PROMPTS = (
    Path(__file__).resolve().parents[2] / "benchmarks_data" / "sandbox_prompts" / "held_out.txt"
)
_SEED_BITS = 31  # fits the seed options of every generator
_LONGEST_NAME = 255  # bytes, on common file systems
_FORMAT = "longtake vbench plan 1"


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """A prompt and dimensions that it tests."""

    prompt: str
    """English prompt; it also names the videos."""
    dimensions: tuple[str, ...]
    auxiliary: Any = None
    """What the public code needs to score the row: questions, labels; None: nothing."""

    def as_upstream(self, dimension: str, videos: Sequence[str]) -> dict[str, Any]:
        """The row as the public code reads it, with the videos to score for one dimension."""
        record = {"prompt_en": self.prompt, "dimension": [dimension], "video_list": list(videos)}
        return record if self.auxiliary is None else {**record, "auxiliary_info": self.auxiliary}


@dataclass(frozen=True, kw_only=True)
class SuiteData:
    """The prompts of one version of a suite."""

    suite: Suite
    rows: tuple[PromptRow, ...]
    source: str
    """File that was read."""
    digest: str
    """SHA-256 of its bytes."""
    remarks: tuple[str, ...] = ()
    """What a reader should know, such as repeated rows."""


class _Record(BaseModel):
    """A row of the public prompt file."""

    # The prompt becomes a file name, here and in the public code.
    prompt_en: str = Field(pattern=r"^[^/\x00]+$")
    dimension: list[str] = Field(min_length=1)
    auxiliary_info: Any = None


def read_suite(suite: Suite, source: Path) -> SuiteData:
    """The prompts of a suite from its JSON file, a checkout (or a folder in it), or the wheel."""
    # The digest goes into every later file: scores of two prompt files are two metrics.
    file, content = _prompt_file(suite, source)
    digest = hashlib.sha256(content).hexdigest()
    try:
        records = TypeAdapter(list[_Record]).validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ", ".join(map(str, first["loc"]))
        raise _unusable_suite(suite, file, f"row {place}: {first['msg']}") from error
    if strange := {name for record in records for name in record.dimension} - {*suite.dimensions}:
        raise _unusable_suite(suite, file, f"unknown dimensions: {', '.join(sorted(strange))}")
    rows = [
        PromptRow(prompt=r.prompt_en, dimensions=tuple(r.dimension), auxiliary=r.auxiliary_info)
        for r in records
    ]
    unique = {(row.prompt, row.dimensions): row for row in reversed(rows)}  # the first one counts
    repeats = [row.prompt for row in rows if unique[row.prompt, row.dimensions] is not row]
    return SuiteData(
        suite=suite,
        rows=tuple(row for row in rows if unique[row.prompt, row.dimensions] is row),
        source=file,
        digest=digest,
        remarks=(f"repeated rows are used once: {'; '.join(repeats)}",) if repeats else (),
    )


def sandbox_data(suite: Suite, dimensions: Sequence[str]) -> SuiteData:
    """The sandbox's held-out prompts in place of a suite's, for a round trip without downloads.

    checkpoints/tiny understands them, so the scores say that the chain works and nothing of VBench.
    """
    content = SANDBOX_PROMPTS.read_bytes()
    lines = content.decode("utf-8").splitlines()
    return SuiteData(
        suite=suite,
        rows=tuple(PromptRow(prompt=line, dimensions=tuple(dimensions)) for line in lines),
        source=str(SANDBOX_PROMPTS),
        digest=hashlib.sha256(content).hexdigest(),
        remarks=(f"prompts of the sandbox, not of {suite.title}",),
    )


def _prompt_file(suite: Suite, source: Path) -> tuple[str, bytes]:
    inner = f"{suite.package}/{suite.prompt_file}"
    try:
        if source.is_dir():
            # A clone, the package folder in it and a folder with the file alone are all in use.
            for name in (suite.prompt_file, inner, f"{suite.folder}/{inner}"):
                if (source / name).is_file():
                    return str(source / name), (source / name).read_bytes()
        elif zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                return f"{source}:{inner}", archive.read(inner)
        elif source.is_file():
            return str(source), source.read_bytes()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise _unusable_suite(suite, str(source), f"it cannot be read ({error})") from error
    raise _unusable_suite(suite, str(source), "there is none")


def _unusable_suite(suite: Suite, file: str, problem: str) -> UserError:
    return UserError(
        f"the prompts of {suite.title} cannot be taken from here: {problem}",
        received=file,
        expected=f"{suite.prompt_file}, a checkout of the public VBench repository, or the wheel",
        remedy=f"for example: pip download --no-deps {suite.package}",
    )


def read_texts(texts: Path | None, prompts: Path | None) -> dict[str, str]:
    """Augmented or translated prompts by English prompt, from two files with parallel lines."""
    if texts is None and prompts is None:
        return {}
    try:
        if texts is None or prompts is None:
            raise ValueError("one of the two files is missing")
        keys, values = (p.read_text(encoding="utf-8").splitlines() for p in (prompts, texts))
        if len(keys) != len(values) or not all(value.strip() for value in values):
            raise ValueError("the lines do not run in parallel")
    except (OSError, ValueError) as error:
        raise UserError(
            f"the texts cannot be used: {error}",
            received=f"--texts {texts}, --texts-of {prompts}",
            expected="two files with as many lines: a text, and the prompt it stands for",
        ) from error
    return dict(zip(keys, values, strict=True))


@dataclass(frozen=True, kw_only=True)
class PlannedVideo:
    """One video to generate."""

    name: str
    """File name, made of the English prompt whatever the model is given."""
    prompt: str
    text: str
    """What the model is given: the prompt, or its augmented form."""
    index: int
    """Number of the sample, from 0."""
    seed: int
    """Of the noise, in [0, 2**31)."""
    dimensions: tuple[str, ...]
    """Those that score it."""


@dataclass(frozen=True, kw_only=True)
class Plan(SuiteData):
    """Videos of a suite, or of a part of it; the remarks say what was left out."""

    seed: int
    """Base of the videos' seeds, >= 0."""
    texts: Mapping[str, str]
    """Prompt -> what the model is given, where that differs."""
    samples: int | None = None
    """At most so many videos per prompt; None: as the suite says."""

    def samples_of(self, dimension: str) -> int:
        """Videos to generate for a prompt of a dimension."""
        number = self.suite.dimensions[dimension].samples
        return number if self.samples is None else min(number, self.samples)

    def scored_samples_of(self, dimension: str) -> int:
        """Videos of a prompt that the dimension scores."""
        return min(self.samples_of(dimension), self.suite.dimensions[dimension].scored_samples)

    def results_of(self, dimension: str) -> tuple[str, ...]:
        """File names under which a complete evaluation has a result.

        All videos that are scored; the first of each prompt where one result is over all of them.
        """
        per_prompt = self.suite.dimensions[dimension].per_prompt
        count = 1 if per_prompt else self.scored_samples_of(dimension)
        return tuple(v.name for v in self.of_dimension(dimension) if v.index < count)

    @cached_property
    def videos(self) -> tuple[PlannedVideo, ...]:
        """Every video once, in the order of the rows."""
        videos: dict[str, PlannedVideo] = {}
        members = [(row.prompt, name) for row in self.rows for name in row.dimensions]
        for prompt, dimension in members:
            for index in range(self.samples_of(dimension)):
                name = self.suite.video_name(prompt, index)
                video = videos.get(name) or PlannedVideo(
                    name=name,
                    prompt=prompt,
                    text=self.texts.get(prompt, prompt),
                    index=index,
                    seed=derive_key(self.seed, "vbench", prompt, index) >> (63 - _SEED_BITS),
                    dimensions=(),
                )
                # Names are cut at 180 characters, so two long prompts can meet in one file.
                if video.prompt != prompt or len(name.encode()) > _LONGEST_NAME:
                    raise UserError(
                        "two prompts of the suite share a file name, or it is too long for a file",
                        received=f"{video.prompt!r} and {prompt!r}",
                        expected=f"prompts that differ in their first {self.suite.name_length} "
                        f"characters, names of at most {_LONGEST_NAME} bytes",
                    )
                if dimension not in video.dimensions:
                    video = replace(video, dimensions=(*video.dimensions, dimension))
                videos[name] = video
        return tuple(videos.values())

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
        """Files of the layout with a folder for each dimension."""
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
    """Plan the videos of a suite, or of a part of it for trying things out.

    The seed of a video depends on ``seed``, the prompt and the index only, so parts of a suite and
    all of it get the same videos. ``texts``: augmented or translated prompts by English prompt.
    """
    suite = data.suite
    members = {suite.dimension(name).name for name in dimensions} or set(suite.dimensions)
    rows: list[PromptRow] = []
    # Counted by dimension, because one row may serve several and only some be full.
    used = dict.fromkeys(suite.dimensions, 0)
    for row in data.rows:
        kept = tuple(
            name
            for name in row.dimensions
            if name in members and used[name] != prompts_per_dimension
        )
        for name in kept:
            used[name] += 1
        if kept:
            rows.append(replace(row, dimensions=kept))
    remarks = list(data.remarks)
    if len(members) < len(suite.dimensions):
        remarks.append(f"only the dimensions {', '.join(n for n in used if n in members)}")
    if prompts_per_dimension is not None:
        remarks.append(f"only {prompts_per_dimension} prompts per dimension: not comparable")
    if samples is not None:
        remarks.append(f"at most {samples} videos per prompt: not comparable")
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
        texts=texts or {},
        samples=samples,
    )


def write_plan(plan: Plan, path: Path) -> Path:
    """Write the plan as one JSON file that people can read; every later step starts from it."""
    content = {
        "format": _FORMAT,
        "suite": plan.suite.name,
        "seed": plan.seed,
        "samples": plan.samples,
        "source": plan.source,
        "sha256": plan.digest,
        "remarks": plan.remarks,
        "counts": {"videos": len(plan.videos), "copies": plan.copies},
        "rows": [[row.prompt, row.dimensions, row.auxiliary] for row in plan.rows],
        "videos": [asdict(video) for video in plan.videos],
    }
    return write_json(path, content)


def read_plan(path: Path) -> Plan:
    """Read a plan and check that its list of videos follows from its prompts."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        plan = Plan(
            suite=find_suite(content["suite"]),
            rows=tuple(
                PromptRow(prompt=prompt, dimensions=tuple(dimensions), auxiliary=auxiliary)
                for prompt, dimensions, auxiliary in content["rows"]
            ),
            seed=int(content["seed"]),
            source=str(content["source"]),
            digest=str(content["sha256"]),
            remarks=tuple(content["remarks"]),
            samples=content["samples"],
            # Only differences are kept: most plans have none, and the file stays readable.
            texts={v["prompt"]: v["text"] for v in content["videos"] if v["text"] != v["prompt"]},
        )
        # The list is there for people and other tools; an edited one would have videos scored that
        # no prompt asks for.
        listed = [v | {"dimensions": tuple(v["dimensions"])} for v in content["videos"]]
        if listed != [asdict(video) for video in plan.videos]:
            raise ValueError("its list of videos does not follow from its prompts")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the plan cannot be used: {type(error).__name__}: {error}",
            received=str(path),
            expected="a file that `eval vbench plan` wrote",
            remedy="make the plan again; the same seed gives the same videos",
        ) from error
    return plan
