import pytest

from longtake.rewards.preference_data import (
    PreferencePair,
    balance_order,
    split_by_prompt,
)
from longtake.rewards.preference_labels import A_WINS, B_WINS, TIE
from longtake.runtime.errors import UserError
from longtake.runtime.rng import derive_key


def pair(i, prompt="a cat", **labels):
    return PreferencePair(
        prompt=prompt,
        path_a=f"{i}_a.mp4",
        path_b=f"{i}_b.mp4",
        labels=labels,
        fps_a=8.0 + i,
        fps_b=16.0,
        num_frames_a=17,
        num_frames_b=20 + i,
        mos_a={"VQ": 3.5},
        mos_b={"VQ": 2.0},
    )


def many(n=300, prompts=60):
    rule = (A_WINS, B_WINS, TIE)
    return [
        pair(i, f"prompt {i % prompts}", VQ=A_WINS, MQ=rule[derive_key(0, i) % 3]) for i in range(n)
    ]


def test_swapping_twice_is_the_identity_and_once_mirrors_everything():
    one = pair(3, VQ=A_WINS, MQ=TIE, TA=B_WINS)
    other = one.swapped()
    assert other.swapped() == one
    assert (other.path_a, other.fps_a, other.num_frames_a) == ("3_b.mp4", 16.0, 23)
    assert other.labels == {"VQ": B_WINS, "MQ": TIE, "TA": A_WINS}
    assert other.mos_a == {"VQ": 2.0} and other.mos_b == {"VQ": 3.5}


@pytest.mark.parametrize("seed", range(4))
def test_prompts_never_mix(seed):
    pairs = many()
    train, validation = split_by_prompt(pairs, 0.3, seed)
    assert len(train) + len(validation) == len(pairs)
    assert not {p.prompt for p in train} & {p.prompt for p in validation}
    assert 0.1 < len({p.prompt for p in validation}) / 60 < 0.5


def test_split_depends_on_the_prompt_and_the_seed_alone():
    pairs = many()
    _, validation = split_by_prompt(pairs, 0.3, 0)
    chosen = {p.prompt for p in validation}
    more = [*reversed(pairs), *(pair(i, f"new prompt {i}", VQ=TIE) for i in range(100))]
    _, again = split_by_prompt(more, 0.3, 0)
    assert {p.prompt for p in again if not p.prompt.startswith("new")} == chosen
    assert {p.prompt for p in split_by_prompt(pairs, 0.3, 1)[1]} != chosen
    larger = {p.prompt for p in split_by_prompt(pairs, 0.5, 0)[1]}
    assert chosen < larger  # raising the share only adds prompts


def test_spelling_variants_of_a_prompt_stay_together():
    texts = ["A red  circle", "a red circle", " a red circle\n"]
    pairs = [pair(i, text, VQ=A_WINS) for i, text in enumerate(texts)] + many(30)
    for seed in range(8):
        train, validation = split_by_prompt(pairs, 0.5, seed)
        assert {len([p for p in side if p.prompt in texts]) for side in (train, validation)} == {
            0,
            3,
        }


def test_split_refuses_what_it_cannot_do():
    with pytest.raises(UserError, match="empty"):
        split_by_prompt([pair(i, VQ=A_WINS) for i in range(50)], 0.5, 0)  # one prompt
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="share"):
            split_by_prompt(many(), share, 0)


@pytest.mark.parametrize(("dimension", "seed"), [("VQ", 0), ("VQ", 1), ("MQ", 0)])
def test_winners_are_balanced(dimension, seed):
    pairs = many(301)
    balanced = balance_order(pairs, dimension, seed)
    labels = [p.label(dimension) for p in balanced]
    assert abs(labels.count(A_WINS) - labels.count(B_WINS)) <= 1
    assert labels.count(TIE) == [p.label(dimension) for p in pairs].count(TIE)
    for before, after in zip(pairs, balanced, strict=True):
        assert after in (before, before.swapped())
    tied = [b != p for b, p in zip(balanced, pairs, strict=True) if p.label("MQ") == TIE]
    assert 0.3 < sum(tied) / len(tied) < 0.7


def test_balance_does_not_depend_on_the_order_of_the_pairs():
    pairs = many(100)
    forward = balance_order(pairs, "VQ", 0)
    assert balance_order(pairs[::-1], "VQ", 0) == forward[::-1]
    assert balance_order(pairs, "VQ", 1) != forward
