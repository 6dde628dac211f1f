"""Categories and totals against published rows."""

import numpy as np
import pytest

from longtake.evaluation.vbench.suites import VBENCH1, VBENCH1_I2V, VBENCH2, Suite
from longtake.evaluation.vbench.totals import all_scores, category_score, shares, total_score

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
# printed Quality, I2V, Total. The table's fourth column does not follow from its own dimensions:
# I2V 93.25 printed, 92.88 computed.
I2V_ROWS = {
    "motion=10": ("95.62 96.92 99.08 48.78 61.74 70.17 97.44 98.45 48.15", (80.86, 95.11, 87.98)),
    "motion=5": ("96.02 97.06 99.24 36.58 62.29 70.43 97.85 98.63 49.22", (80.11, 95.50, 87.80)),
    "OSTopA": ("94.52 96.47 98.09 53.41 61.04 71.12 97.73 98.83 29.58", (80.36, 94.63, 87.49)),
}
EVERY = (VBENCH1, VBENCH2, VBENCH1_I2V)


def scores(suite: Suite, text: str, unit: float = 1.0) -> dict[str, float]:
    values = [float(word) / unit for word in text.split()]
    return dict(zip(suite.dimensions, values, strict=True))


def test_hunyuanvideo_reproduces_its_row_of_table_8() -> None:
    found = all_scores(VBENCH2, scores(VBENCH2, HUNYUAN, 100))
    assert {name: round(100 * score, 3) for name, score in found.items()} == {
        "Creativity": 41.845,
        "Commonsense": 63.44,
        "Controllability": 28.6,
        "Human Fidelity": 82.407,
        "Physics": 60.195,
        "Total": 55.297,
    }


def test_ltx_reproduces_its_total() -> None:
    assert round(all_scores(VBENCH2, scores(VBENCH2, LTX))["Total"], 6) == 0.615066


def test_vbench_1_reproduces_a_published_row() -> None:
    found = all_scores(VBENCH1, scores(VBENCH1, VBENCH1_ROW, 100))
    assert [round(100 * found[name], 3) for name in ("Quality", "Semantic", "Total")] == [
        79.814,
        65.432,
        76.938,
    ]


@pytest.mark.parametrize("row", I2V_ROWS)
def test_image_to_video_reproduces_published_rows(row: str) -> None:
    text, printed = I2V_ROWS[row]
    found = all_scores(VBENCH1_I2V, scores(VBENCH1_I2V, text, 100))
    assert [100 * found[name] for name in ("Quality", "I2V", "Total")] == pytest.approx(
        printed, abs=0.01
    )


def test_image_to_video_by_hand() -> None:
    """The public formula, written out: weighted means of two groups, then their plain mean."""
    rng = np.random.default_rng(3)
    sc, bc, ms, dd, aq, iq, subject, background, camera = rng.random(9)
    known = {
        "subject_consistency": sc,
        "background_consistency": bc,
        "motion_smoothness": ms,
        "dynamic_degree": dd,
        "aesthetic_quality": aq,
        "imaging_quality": iq,
        "i2v_subject": subject,
        "i2v_background": background,
        "camera_motion": camera,
    }
    quality = (sc - 0.1462) / 0.8538 + (bc - 0.2615) / 0.7385 + (ms - 0.706) / 0.2915
    quality = (quality + 0.5 * dd + aq + iq) / 5.5
    condition = ((subject - 0.1462) / 0.8538 + (background - 0.2615) / 0.7385 + 0.1 * camera) / 2.1
    assert all_scores(VBENCH1_I2V, known) == pytest.approx(
        {"Quality": quality, "I2V": condition, "Total": (quality + condition) / 2}
    )


@pytest.mark.parametrize("suite", EVERY, ids=lambda suite: suite.name)
def test_nothing_stands_in_for_a_missing_dimension(suite: Suite) -> None:
    known = dict.fromkeys(suite.dimensions, 0.5)
    complete = set(all_scores(suite, known))
    assert complete == {category.name for category in suite.categories} | {"Total"}
    for category in suite.categories:
        for dimension in category.dimensions:
            others = {name: score for name, score in known.items() if name != dimension.name}
            assert set(all_scores(suite, others)) == complete - {category.name, "Total"}
            with pytest.raises(KeyError):
                category_score(category, others)
    with pytest.raises(KeyError):
        total_score(suite, {suite.categories[0].name: 0.5})


def test_limits_are_normalised_to_0_and_1() -> None:
    for suite in EVERY:
        low = {d.name: d.low for d in suite.dimensions.values()}
        high = {d.name: d.high for d in suite.dimensions.values()}
        assert all(abs(score) < 1e-12 for score in all_scores(suite, low).values())
        assert all(abs(score - 1) < 1e-12 for score in all_scores(suite, high).values())


def test_arrays_are_scored_element_by_element() -> None:
    rng = np.random.default_rng(0)
    many = {name: rng.random(5) for name in VBENCH1.dimensions}
    found = all_scores(VBENCH1, many)
    for index in range(5):
        one = all_scores(VBENCH1, {name: float(values[index]) for name, values in many.items()})
        assert {name: values[index] for name, values in found.items()} == pytest.approx(one)


@pytest.mark.parametrize("suite", EVERY, ids=lambda suite: suite.name)
def test_shares_are_the_slopes_of_the_formulas(suite: Suite) -> None:
    base = dict.fromkeys(suite.dimensions, 0.4)
    before = all_scores(suite, base)
    for moved in suite.dimensions:
        after = all_scores(suite, {**base, moved: 0.5})
        for line in (*before, moved):
            slope = ((after | {moved: 0.5})[line] - (before | {moved: 0.4})[line]) / 0.1
            assert shares(suite, line).get(moved, 0.0) == pytest.approx(slope, abs=1e-9)
