"""The state machine: transitions, order of raters, scopes, assignments, budget."""

import random

import pytest

from longtake.evaluation.mos_protocol import (
    ProtocolConfig,
    State,
    assess,
    assign,
    budget_factor,
    transition,
)
from longtake.runtime.errors import ConfigError

RULE = ProtocolConfig()
DIMENSIONS = ("overall", "motion")


def rated(sample, *scores, dimension=None):
    """Ratings by r1, r2, ...; a score is one number or one for each dimension."""
    names = DIMENSIONS if dimension is None else (dimension,)
    return [
        (sample, f"r{i}", name, float(score if isinstance(score, int) else score[d]))
        for i, score in enumerate(scores, start=1)
        for d, name in enumerate(names)
    ]


def one(ratings, rule=RULE):
    (unit,) = assess(ratings, DIMENSIONS, rule)
    return unit


@pytest.mark.parametrize(
    ("state", "complete", "discrepancy", "after"),
    [
        (State.WAITING, 0, None, State.WAITING),
        (State.WAITING, 2, None, State.WAITING),
        (State.WAITING, 3, 0.0, State.AGREED),
        (State.WAITING, 3, 1.0, State.AGREED),
        (State.WAITING, 3, 2.0, State.ESCALATED),
        (State.WAITING, 5, 4.0, State.ESCALATED),
        (State.ESCALATED, 3, 2.0, State.ESCALATED),
        (State.ESCALATED, 4, 2.0, State.ESCALATED),
        (State.ESCALATED, 5, 2.0, State.RESOLVED),
        (State.AGREED, 9, 4.0, State.AGREED),
        (State.RESOLVED, 9, 4.0, State.RESOLVED),
    ],
)
def test_transitions(state, complete, discrepancy, after):
    assert transition(state, complete, discrepancy, RULE) is after


@pytest.mark.parametrize(
    ("scores", "state", "needed", "surplus"),
    [
        ((), None, 0, 0),
        ((3,), State.WAITING, 2, 0),
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
    units = assess(rated("s", *scores), DIMENSIONS, RULE, ["s"])
    (unit,) = units
    assert unit.state is (state or State.WAITING)
    if state is not None:
        assert (unit.needed, unit.surplus) == (needed, surplus)
    else:
        assert unit.needed == 3 and unit.discrepancy is None


def test_a_rater_counts_when_all_dimensions_are_rated():
    ratings = [*rated("s", 3, 3), ("s", "r3", "overall", 3.0)]
    unit = one(ratings)
    assert (unit.state, unit.complete, unit.partial) == (State.WAITING, ("r1", "r2"), ("r3",))
    assert one([*ratings, ("s", "r3", "motion", 5.0)]).state is State.ESCALATED


def test_the_first_raters_are_those_who_finish_first():
    # r1 begins first and finishes last: the far-off score of r1 comes too late for a dispute.
    ratings = [("s", "r1", "overall", 1.0)]
    for name in ("r2", "r3", "r4"):
        ratings += [("s", name, d, 4.0) for d in DIMENSIONS]
    ratings.append(("s", "r1", "motion", 1.0))
    unit = one(ratings)
    assert unit.state is State.AGREED and unit.complete == ("r2", "r3", "r4", "r1")
    assert unit.surplus == 1


def test_by_dimension_only_the_disputed_one_is_rated_again():
    rule = ProtocolConfig(scope="dimension")
    units = assess(rated("s", 3, (3, 5), 3), DIMENSIONS, rule)
    assert [(u.dimensions, u.state, u.needed) for u in units] == [
        (("overall",), State.AGREED, 0), (("motion",), State.ESCALATED, 2),
    ]  # fmt: skip


def test_the_rule_can_be_changed():
    rule = ProtocolConfig(first_raters=2, extra_raters=1, threshold=1.0)
    assert one(rated("s", 3, 4), rule).needed == 1
    assert one(rated("s", 3, 4, 5), rule).state is State.RESOLVED
    assert one(rated("s", 1, 5), ProtocolConfig(first_raters=2, extra_raters=0)).needed == 0


@pytest.mark.parametrize(
    "wrong",
    [{"first_raters": 1}, {"extra_raters": -1}, {"threshold": 0}, {"threshold": float("nan")},
     {"scope": "prompt"}],
)  # fmt: skip
def test_a_rule_without_sense_is_refused(wrong):
    with pytest.raises(ConfigError):
        ProtocolConfig(**wrong)


@pytest.mark.parametrize("scope", ["video", "dimension"])
@pytest.mark.parametrize("seed", range(4))
def test_a_study_driven_by_assignments_ends_as_the_protocol_says(scope, seed):
    rng = random.Random(seed)
    rule = ProtocolConfig(scope=scope)
    samples = [f"s{i}" for i in range(25)]
    raters = [f"r{i}" for i in range(6)]
    ratings = []
    for rounds in range(5):  # noqa: B007
        units = assess(ratings, DIMENSIONS, rule, samples)
        made, short = assign(units, raters, seed=seed)
        assert not short
        if not made:
            break
        seen = {(r, s, d) for s, r, d, _ in ratings}
        for item in made:
            for dimension in item.dimensions:
                assert (item.rater, item.sample, dimension) not in seen  # nobody rates twice
                ratings.append((item.sample, item.rater, dimension, float(rng.randint(2, 5))))
    assert rounds == 2  # the first raters, the extra ones, nothing
    for unit in assess(ratings, DIMENSIONS, rule, samples):
        assert unit.state in (State.AGREED, State.RESOLVED) and not unit.surplus
        assert len(unit.complete) == (3 if unit.state is State.AGREED else 5)


def test_assignments_are_balanced_and_shuffled():
    units = assess([], DIMENSIONS, RULE, [f"s{i:02d}" for i in range(40)])
    made, _ = assign(units, list("abcdef"), seed=1)
    load = {r: sum(item.rater == r for item in made) for r in "abcdef"}
    assert set(load.values()) == {20}
    mine = [item.sample for item in made if item.rater == "a"]
    assert mine != sorted(mine)
    assert assign(units, list("abcdef"), seed=1)[0] == made
    assert assign(units, list("abcdef"), seed=2)[0] != made


def test_who_began_a_video_finishes_it_and_too_few_raters_are_named():
    ratings = [("s", "b", "overall", 3.0)]
    units = assess(ratings, DIMENSIONS, RULE)
    made, short = assign(units, ["a", "b"])
    assert {item.rater for item in made} == {"a", "b"}
    assert short == ("s: 1 more raters needed",)


def test_budget():
    assert budget_factor(0.0, RULE) == 1.0
    assert budget_factor(0.3, RULE) == pytest.approx(1.2)  # 1 + (2 / 3) x rate
