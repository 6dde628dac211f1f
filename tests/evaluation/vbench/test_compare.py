"""Comparisons: a better model is called better, an equal one is not, published ones are rough."""

from pathlib import Path

import numpy as np
import pytest

from longtake.evaluation.vbench.compare import PAIRED, ROUGH, compare, read_side
from longtake.evaluation.vbench.published import find_published
from longtake.evaluation.vbench.result_files import ResultSet, parse_dimension, write_results
from longtake.evaluation.vbench.suites import VBENCH2
from longtake.runtime.errors import UserError

PROMPTS = 12


def model(quality: float, seed: int, difficulty: np.ndarray | None = None) -> ResultSet:
    """Yes-or-no results; prompts have their own difficulty, the same for every model."""
    rng = np.random.default_rng(seed)
    if difficulty is None:
        difficulty = np.random.default_rng(99).normal(0, 0.15, PROMPTS)
    found = ResultSet(suite=VBENCH2, source=Path(f"model{seed}"))
    for name, dimension in VBENCH2.dimensions.items():
        results = 1 if dimension.per_prompt else 3
        chance = np.clip(quality + difficulty, 0, 1)
        entries = [
            {"video_path": f"/x/{name} {p}-{i}.mp4", "video_results": int(rng.random() < chance[p])}
            for p in range(PROMPTS)
            for i in range(results)
        ]
        found.dimensions[name] = parse_dimension(dimension, None, entries)
    return found


def lines(first: object, second: object, **options: object) -> dict[str, object]:
    comparison = compare(VBENCH2, first, second, **options)  # type: ignore[arg-type]
    return {line.name: line for line in comparison.lines}


def test_a_better_model_is_called_better() -> None:
    comparison = compare(VBENCH2, model(0.8, 1), model(0.5, 2), resamples=4000)
    by_name = {line.name: line for line in comparison.lines}
    assert list(by_name)[-1] == "Total" and comparison.family == 23
    total = by_name["Total"]
    assert total.verdict == "first is better" and total.basis == PAIRED
    assert total.difference == pytest.approx((total.first or 0) - (total.second or 0))
    back = compare(VBENCH2, model(0.5, 2), model(0.8, 1), resamples=4000).lines[-1]
    assert back.verdict == "second is better"
    assert back.low == pytest.approx(-(total.high or 0))


def test_a_model_is_not_better_than_itself() -> None:
    for line in compare(VBENCH2, model(0.6, 1), model(0.6, 1), resamples=500).lines:
        assert (line.difference, line.low, line.high) == (0, 0, 0)
        assert line.verdict == "not separable"


def test_equal_models_are_seldom_called_different() -> None:
    """Total: at most the promised 5 %, with the noise of 60 studies; all other lines together."""
    totals = others = 0
    for study in range(60):
        comparison = compare(
            VBENCH2, model(0.6, 2 * study), model(0.6, 2 * study + 1), resamples=400, seed=study
        )
        different = {line.name for line in comparison.lines if "better" in line.verdict}
        totals += "Total" in different
        others += bool(different - {"Total"})
    assert totals <= 8  # P(more than 8 of 60 | 5 %) < 0.5 %
    assert others <= 8


def test_published_models_get_a_rough_interval() -> None:
    sides = [find_published(VBENCH2, name) for name in ("LongCat-Video", "Vidu Q1")]
    comparison = compare(VBENCH2, *sides)
    total = comparison.lines[-1]
    assert (total.verdict, total.basis) == ("not separable", ROUGH)
    assert total.difference == pytest.approx(-0.0059, abs=1e-9)
    assert (total.high or 0) - (total.low or 0) == pytest.approx(2 * 1.96 * 0.0302, abs=0.002)
    assert any("rough bound" in remark for remark in comparison.remarks)
    worst = compare(VBENCH2, sides[0], find_published(VBENCH2, "HunyuanVideo")).lines[-1]
    assert worst.verdict == "first is better"


def test_results_against_a_published_model() -> None:
    comparison = compare(VBENCH2, model(0.9, 1), find_published(VBENCH2, "LongCat-Video"))
    by_name = {line.name: line for line in comparison.lines}
    assert by_name["Total"].basis == ROUGH and by_name["Total"].verdict == "first is better"
    assert by_name["Material"].basis == "one side has no score"
    assert by_name["Material"].verdict == "no score"
    assert comparison.family == 5


def test_a_missing_dimension_takes_the_total_with_it() -> None:
    lacking = model(0.8, 1)
    del lacking.dimensions["Material"]
    comparison = compare(VBENCH2, lacking, model(0.5, 2), resamples=500)
    by_name = {line.name: line for line in comparison.lines}
    assert by_name["Total"].verdict == "no score" and by_name["Total"].first is None
    assert by_name["Creativity"].basis == PAIRED
    assert any("lacks" in remark for remark in comparison.remarks) is True


def test_mixed_versions_are_told(tmp_path: Path) -> None:
    for number, commit in enumerate(("45e79ec", "0ld")):
        for results in model(0.6, number).dimensions.values():
            write_results(tmp_path / str(number), results, {"upstream_commit": commit})
    sides = [read_side(VBENCH2, str(tmp_path / str(number))) for number in (0, 1)]
    remarks = compare(VBENCH2, *sides, resamples=200).remarks
    assert "not the same upstream_commit: 0ld, 45e79ec" in remarks


def test_sides_are_read_from_folders_or_names(tmp_path: Path) -> None:
    assert read_side(VBENCH2, "Veo3").name == "Veo3"  # type: ignore[union-attr]
    with pytest.raises(UserError, match="no folder of results"):
        read_side(VBENCH2, str(tmp_path / "absent"))
