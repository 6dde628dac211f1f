"""Who rates what next: sheets for the raters of a MOS study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from longtake.evaluation.blind_files import opaque_name, place_file
from longtake.evaluation.csv_rows import write_csv_rows
from longtake.evaluation.findings import Finding, Findings
from longtake.evaluation.mos import MosSettings, ProtocolStatus, protocol_status, protocol_units
from longtake.evaluation.mos_protocol import Assignment, assess, assign
from longtake.evaluation.rating_checks import CheckSettings, check_ratings
from longtake.evaluation.samples import SampleList
from longtake.evaluation.study_files import read_all
from longtake.runtime.errors import UserError

VIDEO_FOLDER = "videos"


@dataclass(frozen=True, kw_only=True)
class AssignReport:
    """What :func:`write_assignments` did."""

    status: ProtocolStatus
    """Progress before the new sheets."""
    sheets: tuple[Path, ...]
    """One for each rater with something to do."""
    assignments: tuple[Assignment, ...]
    """What they ask, rater by rater."""
    files: Mapping[str, str]
    """Blind name of the video of each assigned sample, relative to the folder."""
    rows: int
    """Their rows."""
    findings: tuple[Finding, ...]
    """What is irregular, and where raters are lacking."""


def write_assignments(
    samples: SampleList,
    ratings: Sequence[Path],
    settings: MosSettings,
    raters: Sequence[str],
    folder: Path,
    *,
    seed: int = 0,
) -> AssignReport:
    """Write ``sheet-RATER.csv`` with everything that the protocol asks of each rater now.

    A row is a video with a column for each dimension; where the protocol decides by dimension, a
    row is a video and dimension.

    Bring filled sheets into the log first: what is still out counts as not done. Videos get opaque
    names in ``videos/``; samples whose video is missing are not assigned.

    Args:
        samples: the videos of the study.
        ratings: logs or sheets so far; may be empty.
        settings: dimensions and protocol.
        raters: who is available.
        folder: for the sheets and the videos.
        seed: of order and choice.

    Raises:
        UserError: a sheet exists already, or a file that cannot be read or written.
    """
    if not raters or len(set(raters)) < len(raters):
        raise UserError(
            "the raters cannot be used",
            received=", ".join(raters) or "nobody",
            expected="different names, at least one",
        )
    found, irregular = read_all(ratings, settings.dimensions)
    findings = Findings((*samples.findings, *irregular))
    if found:
        checked = check_ratings(
            found, CheckSettings(dimensions=settings.dimensions), samples, findings.all()
        )
        findings = Findings(
            finding for finding in checked.findings if finding.kind != "sample without a rating"
        )
        units = protocol_units(checked.table, settings, samples)
    else:
        findings.add("missing video", "not assigned", samples.missing_videos())
        listed = [item.sample for item in samples.samples]
        units = assess([], settings.dimensions, settings.protocol, listed)
    by_id = samples.by_id
    lost = {
        item.sample
        for item in samples.samples
        if (path := samples.video_path(item)) is not None and not path.is_file()
    }
    made, short = assign([unit for unit in units if unit.sample not in lost], raters, seed)
    findings.add("too few raters", "not assigned", short)
    files = {}
    for sample in dict.fromkeys(item.sample for item in made):
        source = samples.video_path(by_id[sample])
        if source is not None:
            name = f"{opaque_name(sample)}{source.suffix}"
            place_file(source, folder / VIDEO_FOLDER / name)
            files[sample] = f"{VIDEO_FOLDER}/{name}"
    sheets = [
        _write_sheet(folder, rater, [a for a in made if a.rater == rater], samples, files, settings)
        for rater in dict.fromkeys(item.rater for item in made)
    ]
    return AssignReport(
        status=protocol_status(units, settings.protocol),
        sheets=tuple(sheets),
        assignments=made,
        files=files,
        rows=len(made),
        findings=findings.all(),
    )


def _write_sheet(
    folder: Path,
    rater: str,
    assigned: Sequence[Assignment],
    samples: SampleList,
    files: dict[str, str],
    settings: MosSettings,
) -> Path:
    path = folder / f"sheet-{rater.replace('/', '_')}.csv"
    if path.exists():
        raise UserError(
            "the sheet exists already and may be filled in",
            received=str(path),
            remedy="bring it in with `eval mos score`, then assign into another --output-dir",
        )
    by_dimension = settings.protocol.scope == "dimension"
    by_id = samples.by_id
    rows = [
        {
            "sample": item.sample,
            "dimension": dimension,
            "rater": rater,
            "caption": by_id[item.sample].caption,
            "video": files.get(item.sample, ""),
        }
        for item in assigned
        for dimension in (item.dimensions if by_dimension else ("",))
    ]
    common = ("sample", "rater", "caption", "video")
    if by_dimension:
        columns = (*common, "dimension", "score")
        return write_csv_rows(path, columns, rows)
    wide = [{name: row[name] for name in common} for row in rows]
    return write_csv_rows(path, (*common, *settings.dimensions), wide)
