"""Which is better: a better model is, two equal ones are not, either order says the same."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from longtake.evaluation.dimensions import dimension_names
from longtake.evaluation.gsb_files import gsb_from_files
from longtake.evaluation.mos import MosSettings
from longtake.evaluation.mos_files import mos_from_files
from longtake.evaluation.report.build import ReportSettings
from longtake.evaluation.report.compare import build_comparison
from longtake.evaluation.report.compare_lines import Line, swapped
from longtake.evaluation.report.content import Report, TableBlock, Verdict
from longtake.evaluation.report.verdict import corrected, verdict
from longtake.evaluation.tables import Table
from longtake.runtime.errors import UserError


def answer(report: Report) -> Verdict:
    assert report.verdict is not None
    return report.verdict


def table(report: Report, section: str) -> Table:
    (found,) = (s for s in report.sections if s.title == section)
    block = found.blocks[0]
    assert isinstance(block, TableBlock)
    return block.table


def line(p: float, diff: float = 0.1, name: str = "overall") -> Line:
    return Line(
        basis="people", dimension=name, first="", second="", diff=diff, low=diff - 1,
        high=diff + 1, unit="points", n=10, p=p,
    )  # fmt: skip


def test_a_better_model_is_better_by_people_pairs_and_vbench(
    make_study: Callable[..., Path],
    make_pairs: Callable[..., Path],
    make_vbench: Callable[..., Path],
    settings: ReportSettings,
    tmp_path: Path,
) -> None:
    truth = {"bad": 2.4, "good": 4.4}
    # Pairs that are not all won: rankings of fully separated models take long to settle.
    inputs = [make_study(truth), make_pairs({"bad": 3.0, "good": 3.6})]
    make_vbench("good", 0.95, 1)
    inputs.append(make_vbench("bad", 0.2, 2).parent)
    report = build_comparison("good", "bad", tmp_path / "c.html", settings, inputs)
    assert answer(report).way == "first"
    assert answer(report).sentence.startswith("good is better than bad on overall (people)")
    titles = [section.title for section in report.sections]
    assert titles == ["All differences", "By people", "Blind pairs", "By VBench 2.0"]
    back = build_comparison("bad", "good", tmp_path / "c.html", settings, inputs[:1])
    assert answer(back).way == "second"
    assert answer(back).sentence.startswith("good is better than bad on overall (people)")


def test_two_equal_models_show_no_difference(
    make_study: Callable[..., Path], settings: ReportSettings, tmp_path: Path
) -> None:
    for seed in range(3):
        study = make_study({"A": 3.4, "B": 3.4}, seed=seed, name=f"study{seed}")
        report = build_comparison("A", "B", tmp_path / "c.html", settings, [study])
        assert answer(report).way == "none"
        assert answer(report).sentence.startswith("No difference shown between A and B")
        assert any("not the same as equal" in note for note in answer(report).notes)


def test_numbers_are_those_of_the_aggregations(
    make_study: Callable[..., Path],
    make_pairs: Callable[..., Path],
    settings: ReportSettings,
    tmp_path: Path,
) -> None:
    truth = {"A": 3.2, "B": 3.6}
    study, pairs = make_study(truth), make_pairs(truth)
    report = build_comparison("A", "B", tmp_path / "c.html", settings, [study, pairs])
    dimensions = dimension_names("t2v")
    mos = mos_from_files(
        [study / "ratings.jsonl"],
        MosSettings(dimensions=dimensions, comparison=settings.comparison),
        samples=study / "samples.csv",
    )
    people = table(report, "By people")
    by_name = {row[0]: row for row in people.rows}
    for found in mos.comparison.differences:
        sign = 1 if found.better == "A" else -1
        low, high = sorted((sign * found.ci_low, sign * found.ci_high))
        row = by_name[found.dimension]
        cell = mos.comparison.mean_of(found.dimension, "A")
        assert row[1][:-2] == (
            f"{cell.mean:.2f} [{cell.ci_low:.2f}, {cell.ci_high:.2f}] n={cell.n_samples}"
        )
        assert row[3] == f"{sign * found.diff:+.2f} [{low:+.2f}, {high:+.2f}]"
        assert row[4:6] == (found.n_prompts, found.p)
    gsb = gsb_from_files(pairs, [pairs / "answers.jsonl"], ("overall",), settings.comparison)
    rows = {row[0]: row for row in table(report, "Blind pairs").rows}
    for count in gsb.counts:
        assert str(rows[count.dimension][3]).startswith(f"{100 * count.net:+.2f} [")
        assert rows[count.dimension][5] == count.p
        assert swapped(swapped(count)).good == count.good
        assert swapped(count).net == -count.net
        assert swapped(count).win_share == pytest.approx(1 - count.win_share)


def test_correction_is_holm_over_the_page() -> None:
    lines = [line(0.001), line(0.02, -0.3), line(0.4), line(float("nan"))]
    alone = corrected(lines, 0.95, 1)
    assert [item.outcome for item in alone] == ["first", "second", "none", "unknown"]
    assert [item.p_corrected for item in alone[:3]] == pytest.approx([0.003, 0.04, 0.4])
    shared = corrected(lines, 0.95, 3)  # VBench takes two thirds of the error rate
    assert [item.outcome for item in shared] == ["first", "none", "none", "unknown"]
    assert [item.p_corrected for item in shared[:3]] == pytest.approx([0.009, 0.12, 1.0])


def test_equal_models_are_called_different_in_at_most_five_percent() -> None:
    """Independent lines are the worst case of the correction: 1 - (1 - .05 / 8)^8 = 4.9 %."""
    draws = np.random.default_rng(5).random((2000, 8))
    called = sum(
        any(item.outcome != "none" for item in corrected([line(p) for p in row], 0.95, 1))
        for row in draws.tolist()
    )
    assert 60 <= called <= 130  # 98 expected, standard deviation 10


def test_sentences() -> None:
    def says(*outcomes: str) -> Verdict:
        made = [
            Line(
                basis="people", dimension=f"d{i}", first="", second="", diff=1.0, low=0.5,
                high=1.5, unit="points", n=9, outcome=outcome,  # type: ignore[arg-type]
            )
            for i, outcome in enumerate(outcomes)
        ]  # fmt: skip
        return verdict(made, "A", "B", 0.95)

    mixed = says("first", "second", "none")
    assert mixed.way == "mixed"
    assert mixed.sentence == (
        "Neither model is better throughout: A is better on d0 (people), B on d1 (people)."
    )
    one = says("second", "none")
    assert one.sentence == (
        "B is better than A on d0 (people); no difference shown in the other 1 comparison."
    )
    assert says("unknown").sentence == "A and B could not be compared: nothing to judge by."
    assert any("lack of data: 1 comparison" in note for note in says("none", "unknown").notes)


def test_two_folders_of_one_model_each(
    make_study: Callable[..., Path], settings: ReportSettings, tmp_path: Path
) -> None:
    """Paired by prompt although the files are apart; that no rater rated both is said."""
    study = make_study({"A": 4.4, "B": 2.2})
    sides = []
    for model, keep in (("A", "x-"), ("B", "y-")):
        folder = tmp_path / model
        folder.mkdir()
        rows = (study / "samples.csv").read_text().splitlines()
        chosen = [row for row in rows if f",{model}," in row]
        (folder / "samples.csv").write_text("\n".join([rows[0], *chosen]) + "\n")
        ids = {row.split(",")[0] for row in chosen}
        log = (study / "ratings.jsonl").read_text().replace('"rater": "', f'"rater": "{keep}')
        kept = [text for text in log.splitlines() if text.split('"')[3] in ids]
        (folder / "ratings.jsonl").write_text("\n".join(kept) + "\n")
        sides.append(folder)
    report = build_comparison(str(sides[0]), str(sides[1]), tmp_path / "c.html", settings)
    assert answer(report).way == "first"
    assert table(report, "By people").rows[0][4] == 24  # shared prompts
    assert "no rater in common" in {finding.kind for finding in report.findings}


def test_unknown_models_are_named(
    make_study: Callable[..., Path], settings: ReportSettings, tmp_path: Path
) -> None:
    study = make_study({"A": 3.0, "B": 3.0, "C": 3.0})
    page = tmp_path / "c.html"
    with pytest.raises(UserError, match=r"no such model[\s\S]*A, B, C"):
        build_comparison("A", "D", page, settings, [study])
    with pytest.raises(UserError, match=r"several models[\s\S]*A, B, C"):
        build_comparison(str(study), "A", page, settings)
    report = build_comparison("A", "B", page, settings, [study])
    assert ("other model in the inputs", ("C",)) in [(f.kind, f.items) for f in report.findings]
    with pytest.raises(UserError, match=r"nothing is known of both[\s\S]*VBench 2.0: Vidu Q1"):
        build_comparison("A", "Vidu Q1", page, settings, [study])


def test_published_models_compare_by_a_rough_bound(
    settings: ReportSettings, tmp_path: Path
) -> None:
    report = build_comparison("LongCat-Video", "Vidu Q1", tmp_path / "c.html", settings)
    assert answer(report).sentence.startswith("No difference shown")
    (total,) = (row for row in table(report, "By VBench 2.0").rows if row[0] == "Total")
    assert any("are rough" in note for note in answer(report).notes)
    assert str(total[3]).startswith("-0.59 [") and "rough bound" in str(total[-1])
