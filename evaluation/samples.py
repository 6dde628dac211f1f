"""The list of samples of a study: which video belongs to which model and prompt.

Raters see opaque ids; this list, which they do not see, says what the ids stand for. It is also
what makes a missing video or a missing rating visible.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from longtake.evaluation.blind_files import opaque_name
from longtake.evaluation.csv_rows import read_csv_rows, write_csv_rows
from longtake.evaluation.findings import Finding, Findings
from longtake.evaluation.jsonl import read_jsonl
from longtake.runtime.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One video of a study."""

    sample: str
    """Id, unique in the list."""
    model: str
    """Generator of the video."""
    prompt: str
    """Id of the prompt."""
    cluster: str = ""
    """Unit that the bootstrap resamples; empty = the prompt. Image-to-video: the image."""
    caption: str = ""
    """Text of the prompt."""
    video: str = ""
    """Path of the file, relative to the list; empty when the list names none."""
    image: str = ""
    """Path of the reference image (image-to-video), relative to the list."""


@dataclass(frozen=True, kw_only=True)
class SampleList:
    """The samples of a study."""

    samples: tuple[Sample, ...]
    """In the order of the file."""
    folder: Path
    """Where relative paths start."""
    findings: tuple[Finding, ...] = ()
    """What was wrong with the list."""

    @property
    def by_id(self) -> dict[str, Sample]:
        """Id -> sample."""
        return {item.sample: item for item in self.samples}

    @property
    def real_names(self) -> dict[str, str]:
        """Opaque name, as pages for raters use it, -> id."""
        names = {opaque_name(item.sample): item.sample for item in self.samples}
        return names | {item.sample: item.sample for item in self.samples}

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models in the order of their first sample."""
        return tuple(dict.fromkeys(item.model for item in self.samples))

    def video_path(self, sample: Sample) -> Path | None:
        """Where the video should be; None when the list names none."""
        return self.folder / sample.video if sample.video else None

    def missing_videos(self) -> list[str]:
        """Samples whose video is named and not there, in words."""
        wanted = ((item, self.video_path(item)) for item in self.samples)
        return [
            f"{item.sample} ({item.model}): {path}"
            for item, path in wanted
            if path is not None and not path.is_file()
        ]


def read_samples(path: Path) -> SampleList:
    """Read a list of samples, ``.csv`` or ``.jsonl``, with the fields of :class:`Sample`.

    Other columns are ignored. Rows without id, model or prompt, and repeated ids with other
    contents, are reported and left out.

    Raises:
        UserError: unreadable, without the needed columns, or without a usable sample.
    """
    findings = Findings()
    names = [item.name for item in fields(Sample)]
    rows: list[tuple[int, Mapping[str, object]]]
    if path.suffix.lower() == ".csv":
        _, numbered, long = read_csv_rows(path, ("sample", "model", "prompt"))
        findings.add("row with too many cells", "not used", long)
        rows = list(numbered)
    elif path.suffix.lower() == ".jsonl":
        records, broken = read_jsonl(path)
        findings = Findings(broken)
        rows = list(records)
    else:
        raise UserError(
            "the list of samples has an unknown format",
            received=str(path),
            expected="a .csv or .jsonl file with the fields sample, model, prompt",
        )
    found: dict[str, Sample] = {}
    incomplete, repeated = [], []
    for line, row in rows:
        cells = {name: row.get(name) for name in names}
        item = Sample(**{n: "" if v is None else str(v).strip() for n, v in cells.items()})
        if not (item.sample and item.model and item.prompt):
            incomplete.append(f"{path.name}:{line}")
        elif item.sample in found and found[item.sample] != item:
            repeated.append(f"{path.name}:{line}: {item.sample}")
        else:
            found[item.sample] = item
    findings.add("sample without id, model or prompt", "not used", incomplete)
    findings.add("sample listed twice with different contents", "first one used", repeated)
    if not found:
        raise UserError(
            "the list holds no sample",
            received=str(path),
            expected="rows with sample, model and prompt",
        )
    return SampleList(samples=tuple(found.values()), folder=path.parent, findings=findings.all())


def write_samples(path: Path, samples: Sequence[Sample]) -> Path:
    """Write a list as CSV, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    columns = [item.name for item in fields(Sample)]
    return write_csv_rows(path, columns, [asdict(item) for item in samples])
