"""A report holds the numbers of the aggregations, all irregularities, and nothing unescaped."""

import hashlib
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from longtake.evaluation.dimensions import dimension_names
from longtake.evaluation.gsb_files import gsb_from_files
from longtake.evaluation.gsb_tables import gsb_tables
from longtake.evaluation.mos import MosSettings
from longtake.evaluation.mos_files import mos_from_files
from longtake.evaluation.mos_tables import mos_tables
from longtake.evaluation.records import Rating, append_ratings
from longtake.evaluation.report.build import ReportSettings, build_report
from longtake.evaluation.report.content import Report, TableBlock
from longtake.evaluation.report.files import check_page, write_report
from longtake.evaluation.report.page import html_page
from longtake.evaluation.result_files import present
from longtake.evaluation.tables import Table
from longtake.evaluation.vbench.aggregate import aggregate
from longtake.evaluation.vbench.result_files import read_results
from longtake.evaluation.vbench.suites import VBENCH2
from longtake.evaluation.vbench.tables import write_scores
from longtake.runtime.errors import UserError
from longtake.runtime.files import to_plain

MODELS = {"A <b>": 3.9, "B": 3.1}


def tables(report: Report) -> list[Table]:
    blocks = [block for section in report.sections for block in section.blocks]
    return [block.table for block in blocks if isinstance(block, TableBlock)]


def kinds(report: Report) -> set[str]:
    return {finding.kind for finding in report.findings}


class Tags(HTMLParser):
    """Names and attributes of every tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_tables_are_those_of_the_aggregations(
    make_study: Callable[..., Path],
    make_pairs: Callable[..., Path],
    settings: ReportSettings,
    tmp_path: Path,
) -> None:
    study, pairs = make_study(MODELS), make_pairs(MODELS)
    report = build_report([study, pairs], tmp_path / "r.html", settings)
    dimensions = dimension_names("t2v")
    mos = mos_from_files(
        [study / "ratings.jsonl"],
        MosSettings(dimensions=dimensions, comparison=settings.comparison),
        samples=study / "samples.csv",
    )
    gsb = gsb_from_files(pairs, [pairs / "answers.jsonl"], ("overall",), settings.comparison)
    wanted = [t for t in (*mos_tables(mos), *gsb_tables(gsb)) if t.rows and t.name != "findings"]
    assert [table.as_csv() for table in tables(report)] == [table.as_csv() for table in wanted]
    assert [figure.name for figure in report.figures] == ["mos-1.png", "gsb-1.png"]


def test_every_source_has_its_digest(
    make_study: Callable[..., Path], settings: ReportSettings, tmp_path: Path
) -> None:
    study = make_study(MODELS)
    report = build_report([study], tmp_path / "r.html", settings)
    found = {source.path: source for source in report.sources}
    assert set(found) == {str(study / "ratings.jsonl"), str(study / "samples.csv")}
    for path, source in found.items():
        content = Path(path).read_bytes()
        assert source.sha256 == hashlib.sha256(content).hexdigest()
        assert source.size == len(content)
    for section in report.sections:
        for block in section.blocks:
            assert not isinstance(block, TableBlock) or block.sources == (1, 2)


def test_json_holds_the_content(
    make_study: Callable[..., Path], settings: ReportSettings, tmp_path: Path
) -> None:
    study = make_study(MODELS, videos=True)
    report = build_report([study], tmp_path / "r.html", settings)
    page, text, record, *figures = write_report(report, tmp_path / "r.html")
    assert json.loads(record.read_text()) == json.loads(json.dumps(to_plain(report.as_record())))
    assert [path.read_bytes() for path in figures] == [figure.png for figure in report.figures]
    overview = tables(report)[0]
    for row in overview.rows:  # the same cells in all three files
        for cell in row[1:-1]:
            assert str(cell) in page.read_text() and str(cell) in record.read_text()
            assert str(cell).replace("[", "\\[").replace("]", "\\]") in text.read_text()


def test_page_is_one_file_without_foreign_code(
    make_study: Callable[..., Path], settings: ReportSettings, evil: str, tmp_path: Path
) -> None:
    report = build_report([make_study(MODELS, videos=True)], tmp_path / "r.html", settings, evil)
    page = html_page(report)
    tags = Tags(page).seen
    assert {name for name, _ in tags}.isdisjoint({"script", "link", "iframe", "object", "b>"})
    for _, attributes in tags:
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
    assert "<script" not in page and "A &lt;b&gt;" in page
    assert page.count("<video ") == 12  # 6 prompts, 2 models
    markdown = write_report(report, tmp_path / "r.html")[1].read_text()
    assert "<script" not in markdown and "<b>" not in markdown


def test_links_inside_the_page_have_targets(
    make_study: Callable[..., Path], settings: ReportSettings, tmp_path: Path
) -> None:
    tags = Tags(html_page(build_report([make_study(MODELS)], tmp_path / "r.html", settings))).seen
    targets = {attributes["id"] for _, attributes in tags if "id" in attributes}
    links = {attributes["href"] for name, attributes in tags if name == "a"}
    assert links and {str(link).removeprefix("#") for link in links} <= targets


def test_what_cannot_be_used_is_named(
    make_study: Callable[..., Path], settings: ReportSettings, tmp_path: Path
) -> None:
    study = make_study(MODELS, videos=True)
    (study / "videos" / "s00001.mp4").unlink()
    with (study / "ratings.jsonl").open("a") as log:
        log.write('{"sample": "nowhere", "dimension": "overall", "rater": "r", "score": 3}\n')
        log.write('{"sample": "s00')
    (study / "torn.json").write_text('{"suite": ')
    (study / "notes.txt").write_text("remember the milk")
    (study / "sheet-ann.csv").write_text("sample,rater,overall\ns00001,ann,3\n")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "key.jsonl").write_text('{"pair": 1}\n')
    report = build_report([study, broken], tmp_path / "r.html", settings)
    assert kinds(report) >= {
        "missing video",
        "torn last line",
        "sample that is not in the list",
        "file that cannot be read",
        "file of unknown kind",
        "sheet of a rater in a folder",
        "input that cannot be used",
    }
    page, text = html_page(report), write_report(report, tmp_path / "r.html")[1].read_text()
    for finding in report.findings:
        assert finding.kind in page and finding.kind in text


def test_nothing_to_report_is_refused(settings: ReportSettings, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"nothing in the inputs[\s\S]*file of unknown kind"):
        build_report([tmp_path / "a.txt"], tmp_path / "r.html", settings)
    with pytest.raises(UserError, match="no such input"):
        build_report([tmp_path / "b.jsonl"], tmp_path / "r.html", settings)
    with pytest.raises(UserError, match="ending"):
        check_page(tmp_path / "r.pdf")


def test_an_uncalibrated_judge_is_shown_and_not_merged(
    make_study: Callable[..., Path], settings: ReportSettings, tmp_path: Path
) -> None:
    study = make_study(MODELS)
    append_ratings(
        study / "judge.jsonl",
        (
            Rating(
                sample=f"s{i:05d}",
                dimension="text_alignment",
                rater="judge@1",
                score=7.5 + 0.01 * i,
                kind="automatic",
            )
            for i in range(1, 21)
        ),
    )
    report = build_report([study], tmp_path / "r.html", settings)
    assert "Automatic scores by judge@1" in [section.title for section in report.sections]
    assert any("not calibrated" in f.items[0] for f in report.findings)
    assert "merged" not in {table.name for table in tables(report)}


def test_vbench_results_and_their_score_table_agree(
    make_vbench: Callable[..., Path], settings: ReportSettings, tmp_path: Path
) -> None:
    folder = make_vbench("model", 0.6, 1)
    report = build_report([folder], tmp_path / "r.html", settings)
    (table,) = tables(report)
    scores = aggregate(read_results(VBENCH2, folder), resamples=400)
    line = scores.dimensions["Mechanics"]
    row = next(row for row in table.rows if row[0] == "Mechanics")
    assert line.score is not None and str(row[1]).startswith(f"{100 * line.score:.2f} [")
    assert row[2] == line.videos and row[5] == len(line.unscored or {})
    write_scores(scores, tmp_path / "scores.json")
    again = build_report([tmp_path / "scores.json"], tmp_path / "r.html", settings)
    assert tables(again)[0].rows == table.rows
    (tmp_path / "scores.json").write_text('{"suite": "vbench2", "dimensions": {"Mechanics": 1}}')
    with pytest.raises(UserError, match="damaged"):
        build_report([tmp_path / "scores.json"], tmp_path / "r.html", settings)


def test_a_stored_result_is_shown_and_a_changed_input_named(
    make_study: Callable[..., Path], settings: ReportSettings, tmp_path: Path
) -> None:
    study = make_study(MODELS)
    log = study / "ratings.jsonl"
    result = mos_from_files(
        [log],
        MosSettings(dimensions=dimension_names("t2v"), comparison=settings.comparison),
        samples=study / "samples.csv",
    )

    def draw(path: Path) -> Path:
        path.write_bytes(b"\x89PNG")
        return path

    present(
        "mos", result.as_record(), mos_tables(result), (), inputs=[log], folder=tmp_path / "out",
        draw=draw, as_json=False, shown=(),
    )  # fmt: skip
    report = build_report([tmp_path / "out"], tmp_path / "r.html", settings)
    shown = tables(report)
    assert shown[0].name == "overview"
    assert shown[0].as_csv() == mos_tables(result)[0].as_csv()
    assert "input of a stored result" not in kinds(report)
    with log.open("a") as file:
        file.write("\n")
    assert "input of a stored result" in kinds(
        build_report([tmp_path / "out"], tmp_path / "r.html", settings)
    )
