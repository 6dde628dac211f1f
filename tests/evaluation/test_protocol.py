"""The state machine, the assignments, and a whole study driven by sheets."""

import csv

import pytest

from longtake.evaluation.comparison import ComparisonSettings
from longtake.evaluation.mos import MosSettings, mos_from_files
from longtake.evaluation.protocol import (
    ProtocolConfig,
    State,
    assess,
    assign,
    write_assignments,
)
from longtake.evaluation.ratings import Sample, import_ratings, read_samples, write_samples
from longtake.runtime.errors import ConfigError, UserError

RULE = ProtocolConfig()
DIMENSIONS = ("overall", "motion")
RATERS = ["ann", "bob", "cy", "dee", "eve", "flo"]


def rated(sample, *scores):
    """Ratings by r1, r2, ...; a score is one number or one for each dimension."""
    return [
        (sample, f"r{i}", name, float(score if isinstance(score, int) else score[d]))
        for i, score in enumerate(scores, start=1)
        for d, name in enumerate(DIMENSIONS)
    ]


def one(ratings, rule=RULE):
    (unit,) = assess(ratings, DIMENSIONS, rule, ["s"])
    return unit


@pytest.mark.parametrize(
    ("scores", "state", "needed", "surplus"),
    [
        ((), State.WAITING, 3, 0),
        ((3, 4), State.WAITING, 1, 0),
        ((3, 4, 4), State.AGREED, 0, 0),
        ((2, 4, 3), State.ESCALATED, 2, 0),
        ((2, 4, 3, 3), State.ESCALATED, 1, 0),
        ((2, 4, 3, 3, 3), State.RESOLVED, 0, 0),
        ((2, 4, 3, 3, 3, 5), State.RESOLVED, 0, 1),
        ((3, 3, 3, 1), State.AGREED, 0, 1),  # a later rating starts no dispute
        ((3, (3, 5), 3), State.ESCALATED, 2, 0),  # one dimension is enough
    ],
)
def test_one_video(scores, state, needed, surplus):
    unit = one(rated("s", *scores))
    assert (unit.state, unit.needed, unit.surplus) == (state, needed, surplus)


def test_a_rater_counts_when_all_dimensions_are_rated():
    ratings = [*rated("s", 3, 3), ("s", "r3", "overall", 3.0)]
    unit = one(ratings)
    assert (unit.state, unit.complete, unit.partial) == (State.WAITING, ("r1", "r2"), ("r3",))
    assert one([*ratings, ("s", "r3", "motion", 5.0)]).state is State.ESCALATED


def test_the_rule_can_be_changed():
    rule = ProtocolConfig(first_raters=2, extra_raters=1, threshold=1.0)
    assert one(rated("s", 3, 4), rule).needed == 1
    assert one(rated("s", 3, 4, 5), rule).state is State.RESOLVED
    with pytest.raises(ConfigError):
        ProtocolConfig(first_raters=1)


def test_the_first_raters_are_those_who_finish_first():
    # r1 begins first and finishes last: the far-off score of r1 comes too late for a dispute.
    ratings = [("s", "r1", "overall", 1.0)]
    for name in ("r2", "r3", "r4"):
        ratings += [("s", name, d, 4.0) for d in DIMENSIONS]
    ratings.append(("s", "r1", "motion", 1.0))
    unit = one(ratings)
    assert unit.state is State.AGREED and unit.complete == ("r2", "r3", "r4", "r1")


def test_assignments_are_balanced_and_shuffled():
    units = assess([], DIMENSIONS, RULE, [f"s{i:02d}" for i in range(40)])
    assignments, _ = assign(units, RATERS, seed=1)
    load = {r: sum(item.rater == r for item in assignments) for r in RATERS}
    assert set(load.values()) == {20}
    mine = [item.sample for item in assignments if item.rater == "ann"]
    assert mine != sorted(mine)
    assert assign(units, RATERS, seed=1)[0] == assignments
    assert assign(units, RATERS, seed=2)[0] != assignments


def test_who_began_a_video_finishes_it_and_too_few_raters_are_named():
    units = assess([("s", "b", "overall", 3.0)], DIMENSIONS, RULE)
    assignments, short = assign(units, ["a", "b"])
    assert {item.rater for item in assignments} == {"a", "b"}
    assert short == ("s: 1 more raters needed",)


@pytest.fixture
def study(tmp_path):
    samples = []
    for p in range(6):
        for model in ("wan", "veo"):
            name = f"{model}-{p}.mp4"
            (tmp_path / name).write_bytes(name.encode())
            samples.append(
                Sample(
                    sample=f"{model}-{p}",
                    model=model,
                    prompt=f"p{p}",
                    caption=f"caption {p}",
                    video=name,
                )
            )
    return write_samples(tmp_path / "samples.csv", samples)


def fill(sheet):
    """Fill in a sheet: veo is better, and four raters dispute one video of wan."""

    def score(row, dimension):
        video = (sheet.parent / row["video"]).read_bytes()
        disputed = video == b"wan-3.mp4" and dimension == "overall" and row["rater"] < "eve"
        return (4 if video.startswith(b"veo") else 2) + (2 if disputed else 0)

    rows = list(csv.DictReader(sheet.read_text().splitlines()))
    for row in rows:
        if "score" in row:
            row["score"] = score(row, row["dimension"])
        else:
            row |= {dimension: score(row, dimension) for dimension in DIMENSIONS}
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("scope", ["video", "dimension"])
def test_a_study_from_sheets_to_result(tmp_path, study, scope):
    log, rule = tmp_path / "ratings.jsonl", ProtocolConfig(scope=scope)
    for rounds in range(5):
        report = write_assignments(
            read_samples(study), [log] if log.exists() else [], DIMENSIONS, rule, RATERS,
            tmp_path / f"round{rounds}",
        )  # fmt: skip
        if not report.sheets:
            break
        for sheet in report.sheets:
            text = sheet.read_text()
            assert "wan" not in text and "veo" not in text and "caption" in text
            fill(sheet)
            imported = import_ratings(sheet, log, DIMENSIONS)
            assert imported.present == 0 and imported.findings == ()
            again = import_ratings(sheet, log, DIMENSIONS)
            assert (again.added, again.present) == (0, imported.added)
    assert rounds == 2 and report.status.still_needed == 0 and report.status.escalated == 1
    settings = MosSettings(
        dimensions=DIMENSIONS, protocol=rule, comparison=ComparisonSettings(resamples=200)
    )
    result = mos_from_files([log], settings, samples=study)
    # These raters follow a rule, so some fit without any error.
    assert {f.kind for f in result.findings} <= {"rater biases that did not settle"}
    assert result.n_ratings == 12 * 3 * 2 + 2 * (2 if scope == "video" else 1)
    means = result.means.set_index(["dimension", "model"])["mean"]
    assert means["motion", "veo"] == 4.0
    assert set(result.differences["better"]) == {"veo"}


def test_what_cannot_be_assigned_is_reported_or_refused(tmp_path, study):
    (tmp_path / "wan-0.mp4").unlink()
    samples, folder = read_samples(study), tmp_path / "round"
    report = write_assignments(samples, [], DIMENSIONS, RULE, ["ann", "bob"], folder)
    assert {f.kind: len(f.items) for f in report.findings} == {
        "missing video": 1, "too few raters": 11,
    }  # fmt: skip
    assert len(report.assignments) == 2 * 11 and report.status.states["waiting"] == 12
    for raters, message in (
        (["ann", "bob"], "may be filled in"),
        ([], "raters cannot be used"),
        (["ann", "ann"], "raters cannot be used"),
    ):
        with pytest.raises(UserError, match=message):
            write_assignments(samples, [], DIMENSIONS, RULE, raters, folder)
