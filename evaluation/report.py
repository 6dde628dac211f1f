"""What an evaluation produced on one page: opinion scores, blind pairs, VBench, with their figures.

Folders are told by the files that our own commands write there: ``ratings.jsonl`` with
``samples.csv`` (a study), ``key.jsonl`` with ``answers.jsonl`` (blind pairs), results of VBench.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from longtake import __version__
from longtake.evaluation.comparison import ComparisonSettings
from longtake.evaluation.dimensions import DIMENSIONS
from longtake.evaluation.figures import write_gsb_figure, write_mos_figure
from longtake.evaluation.gsb import GsbSettings, gsb_from_files, gsb_tables, read_answer
from longtake.evaluation.mos import MosSettings, mos_from_files, mos_tables
from longtake.evaluation.ratings import Finding, read_ratings
from longtake.evaluation.tables import Table, interval_text
from longtake.evaluation.vbench.plan import read_plan
from longtake.evaluation.vbench.results import read_any_suite
from longtake.evaluation.vbench.scores import aggregate
from longtake.runtime.errors import UserError
from longtake.runtime.files import digest, write_text
from longtake.runtime.html import data_uri, render_page
from longtake.runtime.progress import cell_text

_FIRST = ("overview", "comparisons", "tests", "ranking", "merged_overview", "vbench")
"""Tables that the page shows unfolded."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One study, plan or result."""

    title: str
    note: str
    tables: Sequence[Table]
    sources: Sequence[Path]
    """Files that the numbers come from."""
    figure: str = ""
    """Data URI; empty: none."""
    findings: Sequence[Finding] = ()


def write_report(
    inputs: Sequence[Path], page: Path, *, settings: ComparisonSettings, title: str
) -> list[Section]:
    """Write one HTML file about studies, plans of pairs and VBench results.

    ``inputs`` are folders; files given by name are one study: logs of ratings, a list of samples.
    """
    files = [path for path in inputs if path.is_file()]
    sections = [_section(path, settings) for path in inputs if not path.is_file()]
    if files:
        lists = [path for path in files if path.stem.startswith("samples")]
        ratings = [path for path in files if path not in lists]
        sections.insert(0, _study(ratings, lists[0] if lists else None, settings))
    # So that a reader can tell whether a file has changed since.
    sources = {path: digest(path) for section in sections for path in section.sources}
    html = render_page(
        "evaluation/report.html.j2",
        title=title,
        version=__version__,
        sections=sections,
        sources=sources,
        first=_FIRST,
        cells=_cells,
    )
    write_text(page, html)
    return sections


def _section(folder: Path, settings: ComparisonSettings) -> Section:
    ratings, samples = folder / "ratings.jsonl", folder / "samples.csv"
    if ratings.is_file():
        return _study([ratings], samples if samples.is_file() else None, settings)
    if (folder / "key.jsonl").is_file():
        return _pairs(folder, settings)
    if folder.is_dir():
        return _vbench(folder)
    raise UserError(
        "no such input",
        received=str(folder),
        expected="a folder with ratings.jsonl, with key.jsonl, or with VBench results",
    )


def _study(ratings: Sequence[Path], samples: Path | None, settings: ComparisonSettings) -> Section:
    rated = {rating.dimension for rating in read_ratings(ratings)[0]}
    # The order of report Figure 16, then one's own dimensions.
    order = [name for name in DIMENSIONS if name in rated]
    dimensions = (*order, *sorted(rated - set(order)))
    mos = MosSettings(dimensions=dimensions, comparison=settings)
    result = mos_from_files(ratings, mos, samples=samples)
    return Section(
        title="Mean opinion scores",
        note=f"{result.n_ratings} ratings used, {result.set_aside} set aside.",
        tables=_shown(mos_tables(result)),
        sources=[*ratings, *([samples] if samples else [])],
        figure=_drawn(lambda path: write_mos_figure(result, path)),
        findings=result.findings,
    )


def _pairs(folder: Path, settings: ComparisonSettings) -> Section:
    log = folder / "answers.jsonl"
    given = read_ratings([log], (), read_answer)[0]
    dimensions = tuple(dict.fromkeys(answer.dimension for answer in given))
    result = gsb_from_files(folder, [log], dimensions, GsbSettings(**settings.model_dump()))
    return Section(
        title=f"Good - same - bad: {folder.name}",
        note=f"{result.n_answers} answers used, {result.set_aside} set aside.",
        tables=_shown(gsb_tables(result)),
        sources=[folder / "key.jsonl", log],
        figure=_drawn(lambda path: write_gsb_figure(result, path)),
        findings=result.findings,
    )


def _vbench(folder: Path) -> Section:
    planned = folder / "plan.json"
    results = read_any_suite(folder)
    scores = aggregate(results, read_plan(planned) if planned.is_file() else None)
    rows = []
    for line in (*scores.dimensions.values(), *scores.categories.values()):
        text = "-"
        if line.score is not None:
            ends = line.interval or (math.nan, math.nan)
            text = interval_text(100 * line.score, 100 * ends[0], 100 * ends[1])
        rows.append((line.name, text, line.videos, len(line.unscored), "; ".join(line.notes)))
    columns = ["dimension", "score", "videos", "unscored", "notes"]
    table = Table(
        name="vbench",
        title=f"{results.suite.title}, percent",
        frame=pd.DataFrame(rows, columns=columns),
        note="95 % intervals over prompts. A missing dimension is not 0.",
    )
    title = f"{results.suite.title}: {folder.name}"
    return Section(title=title, note="", tables=[table], sources=[folder])


def _shown(tables: Sequence[Table]) -> list[Table]:
    """Tables with rows, the first ones first; the findings have a place of their own."""
    kept = [t for t in tables if not t.frame.empty and t.name != "findings"]
    return sorted(kept, key=lambda table: table.name not in _FIRST)


def _drawn(draw: Callable[[Path], object]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        draw(path)
        return data_uri(path.read_bytes(), ".png")


def _cells(table: Table) -> list[list[str]]:
    return [[cell_text(cell) for cell in row] for row in table.frame.itertuples(index=False)]
