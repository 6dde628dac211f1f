"""The report card on judges whose behaviour is known by construction."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from longtake.evaluation.judge.card import (
    CONTROLS,
    expected_change,
    make_report_card,
    report_tables,
)
from longtake.evaluation.judge.data import (
    JUDGED,
    TrainingRecord,
    check_leakage,
    read_rated_clips,
)
from longtake.evaluation.judge.levels import LevelSettings
from longtake.evaluation.ratings import Rating, Sample, append_ratings, write_samples
from longtake.evaluation.tables import with_provenance, write_result
from longtake.runtime.errors import UserError

SETTINGS = LevelSettings(resamples=200)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rated")
    rng = np.random.default_rng(0)
    listed, ratings = [], []
    for p in range(40):
        for m, model in enumerate("ABCD"):
            name = f"{p}{model}"
            listed.append(
                Sample(
                    sample=name,
                    model=model,
                    prompt=f"p{p}",
                    caption=f"the {p} quick brown foxes jump over {p} lazy dogs",
                    video=f"{name}.mp4",
                )
            )
            for dimension in JUDGED:
                quality = 2 + 0.4 * m + rng.normal(0, 0.7)
                for rater in rng.permutation(8)[:3]:
                    score = float(np.clip(np.round(quality + rng.normal(0, 0.5)), 1, 5))
                    ratings.append(
                        Rating(sample=name, dimension=dimension, rater=f"r{rater}", score=score)
                    )
    append_ratings(folder / "ratings.jsonl", ratings)
    write_samples(folder / "samples.csv", listed)
    return read_rated_clips([folder / "ratings.jsonl"], folder / "samples.csv")


def records(clips, score, *, name="judge@1", calibration="abc", noise=0.0, seed=0):
    """Scores ``score(row, column)`` for every clip; None stays unscored."""
    rng = np.random.default_rng(seed)
    found = []
    for row, item in enumerate(clips.samples.samples):
        for column, dimension in enumerate(clips.dimensions):
            value = score(row, column)
            found.append(
                Rating(
                    sample=item.sample,
                    dimension=dimension,
                    rater=name,
                    score=None if value is None else float(value) + noise * rng.normal(),
                    reason="the answer could not be parsed" if value is None else "",
                    kind="automatic",
                    provenance={"calibration": calibration},
                )
            )
    return found


def test_a_good_judge(clips):
    def good(row, column):
        return clips.mean[row, column]

    scores = records(clips, good, noise=0.1)
    controls = [
        *records(
            clips,
            lambda r, c: clips.mean[(r + 4) % 160, c] - 1 if c == 0 else clips.mean[r, c],
            name="judge@1+shuffled_prompt",
            noise=0.1,
        ),
        *records(clips, lambda r, c: 1.0, name="judge@1+blank"),
        *records(clips, lambda r, c: good(r, c) - (c == 2), name="judge@1+frozen"),
        *records(clips, good, name="judge@1+reversed", seed=5, noise=0.1),
        *records(clips, good, name="judge@1+repeat", noise=0.1),
    ]
    card = make_report_card(clips, scores, controls, settings=SETTINGS)
    assert card.judge == "judge@1" and card.calibrated and card.num_prompts == 40
    for dimension in JUDGED:
        assert card.value(dimension, "sample", "plcc").ci_low > 0.97
        assert 0.07 < card.value(dimension, "sample", "rmse").value < 0.13
        assert card.value(dimension, "sample", "plcc").n == 160
    assert all(0.5 < ceiling.value < 0.95 for ceiling in card.ceilings)
    assert [c.control for c in card.controls[:5]] == list(CONTROLS)
    verdicts = {(c.control, c.dimension): c.verdict for c in card.controls}
    for (control, dimension), verdict in verdicts.items():
        expected = "as expected" if expected_change(control, dimension) else ""
        assert verdict == expected, (control, dimension)
    found = {(c.control, c.dimension): c for c in card.controls}
    assert found["frozen", "motion_quality"].change == pytest.approx(-1, abs=0.05)
    assert found["repeat", "motion_quality"].spread == 0  # the same draws as the scores
    assert found["shuffled_prompt", "text_alignment"].plcc_after < 0.5
    assert math.isnan(found["blank", "visual_quality"].plcc_after)
    assert all(item.scored == 160 and item.missing == 0 for item in card.coverage)


def test_a_judge_that_ignores_the_prompt_and_repeats_badly_is_found_out(clips):
    scores = records(clips, lambda r, c: clips.mean[r, c], noise=0.1)
    controls = [
        *records(clips, lambda r, c: clips.mean[r, c], name="judge@1+shuffled_prompt", noise=0.1),
        *records(clips, lambda r, c: clips.mean[r, c], name="judge@1+repeat", noise=0.5, seed=3),
        *records(clips, lambda r, c: 5.0, name="judge@1+blank"),
    ]
    card = make_report_card(clips, scores, controls, settings=SETTINGS)
    found = {(c.control, c.dimension): c for c in card.controls}
    shuffled = found["shuffled_prompt", "text_alignment"]
    assert shuffled.change == 0 and shuffled.verdict == "not as expected"
    assert found["blank", "visual_quality"].verdict == "not as expected"
    repeat = found["repeat", "visual_quality"]
    assert repeat.verdict == "not as expected" and repeat.spread == pytest.approx(0.51, abs=0.1)


def test_failures_are_counted_and_left_out(clips):
    def sometimes(row, column):
        return None if column == 0 and row % 10 == 0 else clips.mean[row, column]

    scores = [r for r in records(clips, sometimes) if (r.sample, r.dimension) != ("5B", JUDGED[1])]
    card = make_report_card(clips, scores, settings=SETTINGS)
    text, visual, _ = card.coverage
    assert (text.scored, text.unscored, text.missing) == (144, 16, 0)
    assert text.reasons == {"the answer could not be parsed": 16}
    assert (visual.scored, visual.unscored, visual.missing) == (159, 0, 1)
    assert card.value(JUDGED[0], "sample", "plcc").n == 144
    assert card.value(JUDGED[0], "sample", "plcc").value == pytest.approx(1)  # no zeros crept in


def test_the_last_answer_counts(clips):
    scores = [*records(clips, lambda r, c: None), *records(clips, lambda r, c: clips.mean[r, c])]
    card = make_report_card(clips, scores, settings=SETTINGS)
    assert all(item.unscored == 0 for item in card.coverage)


def test_uncalibrated_scores_have_no_error_in_points(clips):
    scores = records(clips, lambda r, c: 100 * clips.mean[r, c], calibration="")
    card = make_report_card(clips, scores, settings=SETTINGS)
    assert not card.calibrated
    error = card.value(JUDGED[0], "sample", "rmse")
    assert math.isnan(error.value) and "not calibrated" in error.reason
    assert card.value(JUDGED[0], "sample", "plcc").value == pytest.approx(1)


def test_which_judge(clips):
    one = records(clips, lambda r, c: clips.mean[r, c])
    two = records(clips, lambda r, c: 6 - clips.mean[r, c], name="judge@2")
    with pytest.raises(UserError, match="one judge"):
        make_report_card(clips, one + two, settings=SETTINGS)
    card = make_report_card(clips, one + two, judge="judge@2", settings=SETTINGS)
    assert card.value(JUDGED[0], "model", "plcc").value == pytest.approx(-1)
    with pytest.raises(UserError, match="not in the log"):
        make_report_card(clips, one, judge="judge@3", settings=SETTINGS)
    human = [dataclasses.replace(item, kind="human") for item in one]
    with pytest.raises(UserError, match="one judge"):
        make_report_card(clips, human, settings=SETTINGS)
    with pytest.raises(UserError, match="both a rating and a score"):
        make_report_card(clips, records(clips, lambda r, c: None), settings=SETTINGS)


def test_clusters_widen_the_intervals(clips):
    """Two prompts of one image are one draw: ten clusters of four prompts vary more."""
    samples = tuple(
        dataclasses.replace(item, cluster=f"c{int(item.prompt[1:]) // 4}")
        for item in clips.samples.samples
    )
    grouped = dataclasses.replace(
        clips, samples=dataclasses.replace(clips.samples, samples=samples)
    )
    # The judge errs by cluster.
    error = np.random.default_rng(0).normal(0, 1, size=10)
    scores = records(clips, lambda r, c: clips.mean[r, c] + error[r // 16])
    width = []
    for data in (clips, grouped):
        found = make_report_card(data, scores, settings=SETTINGS).value(JUDGED[0], "sample", "rmse")
        width.append(found.ci_high - found.ci_low)
    assert width[1] > 1.3 * width[0]


def test_leakage(clips):
    listed = clips.samples.samples
    scores = records(clips, lambda r, c: clips.mean[r, c])
    unknown = make_report_card(clips, scores, settings=SETTINGS).leakage
    assert not unknown.checked and "not checked" in unknown.verdict
    seen = TrainingRecord(
        prompts=(
            "THE 3  quick brown foxes jump over 3 lazy dogs",
            "the 7 quick brown foxes jump over 7 lazy cats",
            "something else altogether is seen here",
        ),
        models=("A", "Z"),
    )
    card = make_report_card(clips, scores, training=seen, settings=SETTINGS)
    assert card.leakage.same_prompts == ("the 3 quick brown foxes jump over 3 lazy dogs",)
    assert card.leakage.near_prompts == ("the 7 quick brown foxes jump over 7 lazy dogs",)
    assert card.leakage.shared_models == ("A",) and "1 of 40 prompts" in card.leakage.verdict
    assert {f.kind for f in card.findings} >= {"prompt that the judge was trained on"}
    clean = check_leakage(listed, TrainingRecord(prompts=("another one",), models=()))
    assert clean.checked and not clean.same_prompts and "none of 40" in clean.verdict


def test_tables_and_json(clips, tmp_path):
    scores = records(clips, lambda r, c: clips.mean[r, c], noise=0.3)
    controls = records(clips, lambda r, c: 1.0, name="judge@1+blank")
    card = make_report_card(clips, scores, controls, settings=SETTINGS)
    tables = report_tables(card)
    record = with_provenance(card.as_record(), [])
    written = write_result(tmp_path, "judge_report", record, tables)
    again = json.loads((tmp_path / "judge_report.json").read_text())
    assert len(again["measurements"]) == 45 and again["judge"] == "judge@1"
    plcc = card.value(JUDGED[0], "sample", "plcc")
    assert again["measurements"][0]["value"] == plcc.value
    assert again["controls"][0]["plcc_after"] is None  # undefined, not 0
    names = {path.name for path in written}
    assert {"judge_report_agreement.csv", "judge_report_controls.csv"} <= names
    agreement = next(table for table in tables if table.name == "agreement")
    assert len(agreement.frame) == 9 and "[" in agreement.frame["PLCC"][0]
    for table in tables:
        table.as_rich()


def test_the_ceiling_is_the_mean_of_rater_against_rest(clips):
    scores = records(clips, lambda r, c: clips.mean[r, c])
    found = make_report_card(clips, scores, settings=SETTINGS).ceilings[0]
    table = clips.ratings[clips.ratings["dimension"] == JUDGED[0]]
    total, number = (table.groupby("sample")["score"].transform(how) for how in ("sum", "count"))
    table = table.assign(rest=(total - table["score"]) / (number - 1))
    each = [stats.pearsonr(part["score"], part["rest"])[0] for _, part in table.groupby("rater")]
    assert found.value == pytest.approx(np.mean(each)) and len(each) == 8
    assert found.n == 480 and found.ci_low < found.value < found.ci_high
    # One rater for each video: nobody to compare with.
    alone = dataclasses.replace(
        clips, ratings=clips.ratings.drop_duplicates(["sample", "dimension"])
    )
    none = make_report_card(alone, scores, settings=SETTINGS).ceilings[0]
    assert math.isnan(none.value) and none.n == 0
