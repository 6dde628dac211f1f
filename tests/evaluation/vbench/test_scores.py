"""Tables of one model and of two: published rows, missing parts, intervals, the zip to submit."""

import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.evaluation.vbench.plan import Plan
from longtake.evaluation.vbench.results import (
    DimensionResults,
    ResultSet,
    VideoResult,
    parse_dimension,
    read_results,
    write_results,
)
from longtake.evaluation.vbench.scores import (
    PAIRED,
    ROUGH,
    PublishedModel,
    aggregate,
    compare,
    prompt_moves,
    prompt_of,
    published_models,
    read_side,
    rough_errors,
    standard_error,
    submit,
)
from longtake.evaluation.vbench.suites import SCORED_SUITES, VBENCH1, VBENCH2, Suite, find_suite
from longtake.runtime.errors import UserError

Entries = Callable[..., list[dict[str, Any]]]
VBENCH1_I2V = SCORED_SUITES["vbench1_i2v"]

# The public leaderboard's row of HunyuanVideo (2025-03-28), percent, in the suite's order.
HUNYUAN = (
    "43.96 39.73 92.40 34.48 33.95 18.89 9.78 22.71 21.26 66.67 26.94 "
    "88.58 82.97 75.67 64.37 76.09 43.80 56.52"
)
# A public evaluation of an 8-step LTX-2.3, fractions; its total is printed as .615066.
LTX = (
    ".533333 .513804 .918129 .488506 .503086 .177778 .133333 .454212 .410628 .74 .367003 "
    ".899147 .911458 .622477 .814815 .733813 .355678 .653333"
)
# arXiv 2603.00466, tables B.2 and B.3: VBench 1.0, percent; printed as 79.81 65.43 76.93.
VBENCH1_ROW = (
    "91.83 94.71 99.17 96.51 65.00 57.24 59.14 76.09 53.66 74.60 89.93 62.37 20.03 22.91 22.23 "
    "24.25"
)
# README of Step-Video-TI2V (arXiv 2503.11251), its VBench-I2V table in the suite's order, percent;
# printed Quality, I2V, Total. The table's fourth column does not follow from its own dimensions.
I2V_ROWS = {
    "95.62 96.92 99.08 48.78 61.74 70.17 97.44 98.45 48.15": (80.86, 95.11, 87.98),
    "96.02 97.06 99.24 36.58 62.29 70.43 97.85 98.63 49.22": (80.11, 95.50, 87.80),
    "94.52 96.47 98.09 53.41 61.04 71.12 97.73 98.83 29.58": (80.36, 94.63, 87.49),
}
# Means of the five printed categories, computed by hand from Table 8.
TABLE_8 = {
    "HunyuanVideo": 55.298,
    "Wan2.1": 60.198,
    "Sora-480p": 58.376,
    "Kling1.6": 58.998,
    "Vidu Q1": 62.704,
    "Seedance 1.0 Pro": 59.812,
    "Veo3": 66.720,
    "LongCat-Video": 62.116,
}


def totals(suite: Suite, row: str, unit: float = 100.0) -> list[float]:
    """Categories and the total of a published row, in percent."""
    scores = {d: float(x) / unit for d, x in zip(suite.dimensions, row.split(), strict=True)}
    return [100 * score for score in suite.totals(scores).values()]


def test_published_rows_give_their_totals() -> None:
    expected = [41.845, 63.44, 28.6, 82.407, 60.195, 55.297]  # Table 8, row 1
    assert totals(VBENCH2, HUNYUAN) == pytest.approx(expected, abs=5e-4)
    assert totals(VBENCH2, LTX, 1.0)[-1] == pytest.approx(61.5066, abs=5e-5)
    assert totals(VBENCH1, VBENCH1_ROW) == pytest.approx([79.814, 65.432, 76.938], abs=5e-4)
    for row, printed in I2V_ROWS.items():
        assert totals(VBENCH1_I2V, row) == pytest.approx(printed, abs=0.01)


def test_all_eight_totals_follow_from_their_categories() -> None:
    models = published_models(VBENCH2)
    assert set(models) == set(TABLE_8) and published_models(VBENCH1) == {}
    for name, model in models.items():
        total = 100 * float(np.mean([model.categories[c.name] for c in VBENCH2.categories]))
        assert total == pytest.approx(TABLE_8[name], abs=1e-9)
        assert total == pytest.approx(100 * model.categories["Total"], abs=0.01)
    ranked = sorted(models, key=lambda name: -models[name].categories["Total"])
    assert ranked[:3] == ["Veo3", "Vidu Q1", "LongCat-Video"]  # as the report's text says
    assert max(models, key=lambda n: models[n].categories["Commonsense"]) == "LongCat-Video"
    hunyuan = models["HunyuanVideo"]
    assert VBENCH2.totals(hunyuan.dimensions) == pytest.approx(hunyuan.categories, abs=1e-4)


@pytest.mark.parametrize("suite", SCORED_SUITES.values(), ids=lambda suite: suite.name)
def test_the_formulas_of_every_suite(suite: Suite) -> None:
    lows = {d.name: d.low for d in suite.dimensions.values()}
    highs = {d.name: d.high for d in suite.dimensions.values()}
    assert all(abs(score) < 1e-12 for score in suite.totals(lows).values())
    assert all(abs(score - 1) < 1e-12 for score in suite.totals(highs).values())
    base = dict.fromkeys(suite.dimensions, 0.4)
    before = suite.totals(base)
    for moved, dimension in suite.dimensions.items():
        (own,) = (c.name for c in suite.categories if dimension in c.dimensions)
        others = {name: score for name, score in base.items() if name != moved}
        assert set(suite.totals(others)) == set(before) - {own, "Total"}  # never 0 instead
        after = suite.totals({**base, moved: 0.5})
        for line in before:
            slope = (after[line] - before[line]) / 0.1
            assert suite.shares(line).get(moved, 0.0) == pytest.approx(slope, abs=1e-9)


def test_image_to_video_by_hand() -> None:
    """The public formula, written out: weighted means of two groups, then their plain mean."""
    values = np.random.default_rng(3).random(9)
    sc, bc, ms, dd, aq, iq, subject, background, camera = values
    quality = (sc - 0.1462) / 0.8538 + (bc - 0.2615) / 0.7385 + (ms - 0.706) / 0.2915
    quality = (quality + 0.5 * dd + aq + iq) / 5.5
    condition = ((subject - 0.1462) / 0.8538 + (background - 0.2615) / 0.7385 + 0.1 * camera) / 2.1
    assert VBENCH1_I2V.totals(dict(zip(VBENCH1_I2V.dimensions, values, strict=True))) == (
        pytest.approx({"Quality": quality, "I2V": condition, "Total": (quality + condition) / 2})
    )
    with pytest.raises(UserError, match="unknown suite"):
        find_suite("vbench1_i2v")  # no plan, no generation, no run: they would need the images


def result_set(plan: Plan, entries: Entries, *values: object) -> ResultSet:
    results = ResultSet(suite=plan.suite, source=Path("test"))
    for name in plan.dimensions:
        dimension = plan.suite.dimensions[name]
        results.dimensions[name] = parse_dimension(dimension, None, entries(plan, name, *values))
    return results


def test_a_complete_set_has_every_line(whole: Plan, entries: Entries) -> None:
    scores = aggregate(result_set(whole, entries, 1, 0, 1), whole)
    assert scores.is_complete
    assert {line.name for line in scores.dimensions.values()} == set(VBENCH2.dimensions)
    total = scores.categories["Total"]
    categories = [scores.categories[c.name].score or 0 for c in VBENCH2.categories]
    assert total.score == pytest.approx(sum(categories) / 5)
    assert total.interval is not None and total.interval[0] <= total.score <= total.interval[1]
    assert scores.dimensions["Material"].videos == 6 and scores.dimensions["Material"].prompts == 2
    assert scores.dimensions["Diversity"].videos == 2


def test_a_missing_dimension_is_not_zero(whole: Plan, entries: Entries) -> None:
    results = result_set(whole, entries, 1)
    del results.dimensions["Material"]
    scores = aggregate(results, whole)
    assert not scores.is_complete and scores.dimensions["Material"].score is None
    for name in ("Physics", "Total"):
        line = scores.categories[name]
        assert line.score is None and line.interval is None
        assert line.notes == ("no score without Material",)
    assert scores.categories["Creativity"].score == 1.0
    record = json.loads(json.dumps(scores.as_record(), allow_nan=False))
    assert record["categories"]["Total"]["score"] is None


def test_a_missing_video_stops_the_total(whole: Plan, entries: Entries) -> None:
    results = result_set(whole, entries, 1, 0)
    lost = next(iter(results.dimensions["Mechanics"].videos))
    del results.dimensions["Mechanics"].videos[lost]
    strict = aggregate(results, whole)
    assert strict.dimensions["Mechanics"].unscored == {lost: "missing: no result"}
    assert strict.dimensions["Mechanics"].score == pytest.approx(2 / 5)
    assert strict.categories["Physics"].score is None
    assert strict.categories["Total"].notes == ("no score while videos are missing: Mechanics",)
    assert aggregate(results, whole).as_record() == strict.as_record()  # nothing was changed


def test_what_counts_in_a_dimension(whole: Plan, entries: Entries) -> None:
    results = result_set(whole, entries, 1)
    unplanned = aggregate(results)  # without a plan the official numbers count
    assert unplanned.dimensions["Material"].unscored == {"144 more": "missing: no result"}
    material, extra = VBENCH2.dimensions["Material"], {"video_path": "/s-0.mp4", "video_results": 0}
    items = [*entries(whole, "Material", 1, -1), extra]
    results.dimensions["Material"] = parse_dimension(material, None, items)
    line = aggregate(results, whole).dimensions["Material"]
    assert (line.score, line.videos, line.not_applicable) == (1.0, 3, 3) and not line.unscored
    assert "s-0.mp4" in line.notes[0]


def drawn(name: str, values: np.ndarray, tag: str = "p") -> dict[str, DimensionResults]:
    """Results of one dimension: values [prompts, samples]."""
    videos = {
        f"{tag}{i}-{k}.mp4": VideoResult(value=float(value))
        for i, row in enumerate(values)
        for k, value in enumerate(row)
    }
    return {name: DimensionResults(dimension=VBENCH2.dimensions[name], videos=videos)}


def error(line: str, results: dict[str, DimensionResults]) -> tuple[float, float] | None:
    moves = prompt_moves(results)
    return standard_error(VBENCH2, line, moves, moves.count())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_error_of_a_dimension_is_that_of_the_means_of_its_prompts(seed: int) -> None:
    values = np.random.default_rng(seed).random((10, 3))
    means = values.mean(axis=1)
    expected = means.std(ddof=1) / math.sqrt(10)
    assert error("Material", drawn("Material", values)) == pytest.approx((expected, 9))
    # Samples of a prompt add nothing when they agree.
    repeated = drawn("Material", np.repeat(means[:, None], 9, axis=1))
    assert error("Material", repeated) == pytest.approx((expected, 9))


def test_shared_prompts_move_together() -> None:
    """A category of two dimensions on the same prompts with the same results: no averaging out."""
    values = np.random.default_rng(0).random((57, 3))
    one = drawn("Instance_Preservation", values)
    same = error("Commonsense", one | drawn("Motion_Rationality", values))
    apart = error("Commonsense", one | drawn("Motion_Rationality", values, tag="q"))
    single = error("Instance_Preservation", one)
    assert same and apart and single
    assert same[0] == pytest.approx(single[0])
    assert apart[0] == pytest.approx(single[0] / math.sqrt(2))


def test_degrees_of_freedom_follow_welch_and_satterthwaite() -> None:
    rng = np.random.default_rng(1)
    parts = {"Instance_Preservation": rng.random((8, 1)), "Motion_Rationality": rng.random((20, 1))}
    results = {}
    for name, values in parts.items():
        results |= drawn(name, values, tag=name)
    v = {name: values.var(ddof=1) / len(values) / 4 for name, values in parts.items()}
    freedom = sum(v.values()) ** 2 / sum(v[n] ** 2 / (len(x) - 1) for n, x in parts.items())
    expected = (math.sqrt(sum(v.values())), freedom)
    assert error("Commonsense", results) == pytest.approx(expected)


def test_the_error_agrees_with_resampled_prompts() -> None:
    """Frames as weights, videos that do not apply, prompts of unequal size: ratios of sums."""
    rng = np.random.default_rng(2)
    dimension = VBENCH2.dimensions["Material"]
    videos = {
        f"p{i}-{k}.mp4": VideoResult(
            value=-1.0 if rng.random() < 0.2 else float(rng.random()), frames=float(k + 1)
        )
        for i in range(60)
        for k in range(1 + i % 4)
    }
    results = {"Material": DimensionResults(dimension=dimension, videos=videos)}
    sums = np.zeros((60, 2))
    for name, video in results["Material"].applicable.items():
        sums[int(prompt_of(name)[1:])] += (video.value * video.frames, video.frames)
    counts = rng.multinomial(60, np.full(60, 1 / 60), size=20_000) @ sums
    resampled = (counts[:, 0] / counts[:, 1]).std()
    expected = error("Material", results)
    assert expected is not None and expected[0] == pytest.approx(resampled, rel=0.04)


def test_where_there_is_no_error() -> None:
    assert error("Material", drawn("Material", np.ones((5, 1)))) == (0.0, math.inf)
    assert error("Material", drawn("Material", np.array([[0.0, 1.0]]))) is None  # one prompt
    assert error("Physics", drawn("Material", np.ones((5, 1)))) is None
    assert prompt_of("a b -c.-12.mp4") == "a b -c."
    assert prompt_of("ends in a space -0.mp4") == "ends in a space "


def model(quality: float, seed: int) -> ResultSet:
    """Yes-or-no results of 12 prompts with a difficulty that is the same for every model."""
    rng = np.random.default_rng(seed)
    chance = np.clip(quality + np.random.default_rng(99).normal(0, 0.15, 12), 0, 1)
    results = ResultSet(suite=VBENCH2, source=Path(f"model{seed}"))
    for name, dimension in VBENCH2.dimensions.items():
        entries = [
            {"video_path": f"/x/{name} {p}-{i}.mp4", "video_results": int(rng.random() < chance[p])}
            for p in range(12)
            for i in range(1 if dimension.per_prompt else 3)
        ]
        results.dimensions[name] = parse_dimension(dimension, None, entries)
    return results


def test_a_better_model_is_called_better() -> None:
    comparison = compare(VBENCH2, model(0.8, 1), model(0.5, 2))
    total = comparison.lines[-1]
    assert total.name == "Total" and comparison.family == 23
    assert (total.verdict, total.basis) == ("first is better", PAIRED)
    assert total.difference == pytest.approx((total.first or 0) - (total.second or 0))
    back = compare(VBENCH2, model(0.5, 2), model(0.8, 1)).lines[-1]
    assert back.verdict == "second is better"
    assert back.half_width == pytest.approx(total.half_width)
    for line in compare(VBENCH2, model(0.6, 1), model(0.6, 1)).lines:  # itself
        assert (line.difference, line.half_width, line.verdict) == (0, 0, "not separable")


def test_equal_models_are_seldom_called_different() -> None:
    """Total: at most the promised 5 %, with the noise of 40 studies; all other lines together."""
    calls = []
    for study in range(40):
        comparison = compare(VBENCH2, model(0.6, 2 * study), model(0.6, 2 * study + 1))
        calls.append({line.name for line in comparison.lines if "better" in line.verdict})
    assert sum("Total" in names for names in calls) <= 6  # P(more than 6 of 40 | 5 %) < 0.5 %
    assert sum(bool(names - {"Total"}) for names in calls) <= 6


def test_published_models_get_a_rough_interval() -> None:
    first, second, third = (
        published_models(VBENCH2)[name] for name in ("LongCat-Video", "Vidu Q1", "HunyuanVideo")
    )
    comparison = compare(VBENCH2, first, second)
    total = comparison.lines[-1]
    assert (total.verdict, total.basis) == ("not separable", ROUGH)
    assert total.difference == pytest.approx(-0.0059, abs=1e-9)
    assert total.half_width == pytest.approx(1.96 * 0.0302, abs=0.001)
    assert any("rough bound" in remark for remark in comparison.remarks)
    assert compare(VBENCH2, first, third).lines[-1].verdict == "first is better"
    against = {line.name: line for line in compare(VBENCH2, model(0.9, 1), first).lines}
    assert (against["Total"].verdict, against["Total"].basis) == ("first is better", ROUGH)
    assert against["Material"].verdict == "no score"


def test_the_rough_error_is_that_of_independent_yes_or_no_prompts() -> None:
    categories = published_models(VBENCH2)["LongCat-Video"].categories
    rng = np.random.default_rng(0)
    shares = {
        d.name: rng.binomial(d.prompts, categories[c.name], 4_000) / d.prompts
        for c in VBENCH2.categories
        for d in c.dimensions
    }
    lines = [
        VBENCH2.totals({name: float(values[i]) for name, values in shares.items()})
        for i in range(4_000)
    ]
    simulated = {name: np.std([line[name] for line in lines]) for name in lines[0]}
    assert rough_errors(VBENCH2, categories) == pytest.approx(simulated, rel=0.05)
    assert rough_errors(VBENCH2, {"Total": 0.6}) == {}


def test_what_cannot_be_compared_is_told(tmp_path: Path) -> None:
    lacking = model(0.8, 1)
    del lacking.dimensions["Material"]
    lines = {line.name: line for line in compare(VBENCH2, lacking, model(0.5, 2)).lines}
    assert lines["Total"].verdict == "no score" and lines["Total"].first is None
    assert lines["Creativity"].basis == PAIRED
    for number, commit in enumerate(("45e79ec", "0ld")):
        for results in model(0.6, number).dimensions.values():
            write_results(tmp_path / str(number), results, {"upstream_commit": commit})
    sides = [read_side(VBENCH2, str(tmp_path / str(number))) for number in (0, 1)]
    assert "not the same upstream_commit: 0ld, 45e79ec" in compare(VBENCH2, *sides).remarks
    assert isinstance(read_side(VBENCH2, "Veo3"), PublishedModel)
    with pytest.raises(UserError, match=r"(?s)no folder of results.*LongCat-Video"):
        read_side(VBENCH2, str(tmp_path / "absent"))


def public_total(path: Path) -> float:
    """What the public aggregator makes of a zip.

    It reads the files of the zip's top folders only; a dimension that is not found counts 0.
    """
    scores = dict.fromkeys(VBENCH2.dimensions, 0.0)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".json") and name.count("/") <= 1:
                content = json.loads(archive.read(name))
                if isinstance(content, dict):
                    scores |= {key: value[0] for key, value in content.items()}
    return VBENCH2.totals(scores)["Total"]


@pytest.fixture
def official(whole: Plan, entries: Entries, tmp_path: Path) -> Path:
    """Results as the public evaluate.sh writes them: two folders deep, the -1 in no mean."""
    for name, dimension in VBENCH2.dimensions.items():
        values = (1, 0, -1) if dimension.may_not_apply else (1, 0, 1)
        items = entries(whole, name, *values)
        score = parse_dimension(dimension, None, items).score
        path = tmp_path / "evaluation_results" / name / "model" / "r_eval_results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({name: [score, items]}))
        path.with_name("r_full_info.json").write_text("[]")
    return tmp_path / "evaluation_results"


def test_the_official_layout_scores_0_there_and_right_here(
    whole: Plan, official: Path, tmp_path: Path
) -> None:
    readme, ours, again = (tmp_path / f"{name}.zip" for name in ("readme", "ours", "again"))
    with zipfile.ZipFile(readme, "w") as archive:
        for file in official.rglob("*.json"):
            archive.write(file, file.relative_to(official))
    assert public_total(readme) == 0.0
    total = submit(VBENCH2, official, ours, whole).categories["Total"].score
    assert total is not None and total > 0.4
    assert public_total(ours) == pytest.approx(total, abs=1e-12)
    submit(VBENCH2, ours, again, whole)  # a zip can be packed again
    assert again.read_bytes() == ours.read_bytes()


@pytest.mark.parametrize("damage", ["dimension", "video", "torn", "nan"])
def test_incomplete_results_are_refused_and_nothing_is_written(
    whole: Plan, official: Path, tmp_path: Path, damage: str
) -> None:
    path = official / "Material" / "model" / "r_eval_results.json"
    content = json.loads(path.read_text())
    if damage == "video":
        content["Material"][1].pop()
    if damage == "nan":
        content["Material"][1][0]["video_results"] = float("nan")
    text = json.dumps(content)
    path.write_text(text[:-20] if damage == "torn" else text)
    if damage == "dimension":
        path.unlink()
    with pytest.raises(UserError, match=r"(?s)not complete.*Material"):
        submit(VBENCH2, official, tmp_path / "ours.zip", whole)
    assert not (tmp_path / "ours.zip").exists()


def test_the_public_image_to_video_file_is_read_totalled_and_packed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made: dict[str, list[Any]] = {}
    for name, dimension in VBENCH1_I2V.dimensions.items():
        values = rng.uniform(0.6, 0.9, 5 * dimension.prompts) * dimension.unit
        more = {"cnt_per_video": 16} if dimension.frames_key else {}
        entries = [
            {"video_path": f"/v/{name} {i // 5}-{i % 5}.mp4", "video_results": float(v), **more}
            for i, v in enumerate(values)
        ]
        kinds = [{"pan_left": 0.5, "static": float("nan")}] if name == "camera_motion" else []
        made[name] = [float(values.mean()) / dimension.unit, *kinds, entries]
    flickering = {"temporal_flickering": [0.9, [{"video_path": "/x-0.mp4", "video_results": 0.9}]]}
    (tmp_path / "all.json").write_text(json.dumps(made | flickering))
    found = read_results(VBENCH1_I2V, tmp_path / "all.json")
    scores = aggregate(found)
    expected = VBENCH1_I2V.totals({name: value[0] for name, value in made.items()})
    assert scores.is_complete and not found.problems
    for name, line in scores.categories.items():
        assert line.score == pytest.approx(expected[name]) and line.interval is not None
    assert scores.dimensions["camera_motion"].prompts == 763
    submit(VBENCH1_I2V, tmp_path / "all.json", tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        packed = json.loads(archive.read("camera_motion/camera_motion_eval_results.json"))
    assert packed["camera_motion"][0] == pytest.approx(made["camera_motion"][0])
    as_text = read_results(VBENCH1, tmp_path / "all.json")  # suites are not taken for each other
    assert any("i2v_subject" in problem for problem in as_text.problems)
