"""Preference pairs: both public formats, what is refused, the split and the order."""

import csv
import json

import pytest

from longtake.rewards.pairs import (
    A_WINS,
    B_WINS,
    OVERALL,
    TIE,
    PreferencePair,
    balance_order,
    read_pairs,
    split_by_prompt,
    write_pairs,
)
from longtake.runtime.errors import UserError
from longtake.runtime.rng import derive_key

# Written by hand in the order of the public file, with columns that we do not use.
PUBLIC = "\n".join(
    [
        "path_A,path_B,A_model,B_model,prompt,"
        "VQ,MQ,TA,Overall,fps_A,num_frames_A,fps_B,num_frames_B",
        'x/1.mp4,y/1.mp4,m1,m2,"a cat, ""quoted""",A,same,B,A,24.0,48,30.0,93',
        "x/2.mp4,y/2.mp4,m1,m3,eine schöne Katze,same,,same,B,8,17,8,17.0",
        "",
    ]
)


def pair(i, prompt="a cat", **labels):
    return PreferencePair(
        prompt=prompt,
        path_a=f"{i}_a.mp4",
        path_b=f"{i}_b.mp4",
        labels=labels,
        fps_a=8.0 + i,
        fps_b=1 / 3,
        num_frames_a=17,
        num_frames_b=20 + i,
    )


def many(n=300, prompts=60):
    rule = (A_WINS, B_WINS, TIE)
    return [
        pair(i, f"prompt {i % prompts}", VQ=A_WINS, MQ=rule[derive_key(0, i) % 3]) for i in range(n)
    ]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def entries(n=4):
    """HPSv3's form, with a key that we do not use."""
    return [
        {
            "prompt": f"prompt {i}",
            "path1": f"{i}/a.png",
            "path2": f"{i}/b.png",
            "confidence": 0.95 + 0.01 * i,
            "choice_dist": [9, 1],
        }
        for i in range(n)
    ]


def test_public_columns_are_read(tmp_path):
    first, second = read_pairs(write(tmp_path / "x.csv", PUBLIC))
    assert first.prompt == 'a cat, "quoted"' and second.prompt == "eine schöne Katze"
    assert first.labels == {"VQ": A_WINS, "MQ": TIE, "TA": B_WINS, OVERALL: A_WINS}
    assert second.labels == {"VQ": TIE, "TA": TIE, OVERALL: B_WINS}
    assert (first.fps_a, first.num_frames_a, first.fps_b, first.num_frames_b) == (24, 48, 30, 93)
    assert second.num_frames_b == 17
    assert read_pairs(write(tmp_path / "y.csv", "\ufeff" + PUBLIC)) == [first, second]


def test_csv_round_trip(tmp_path):
    pairs = [
        pair(0, 'a "cat", jumping\nover a line', VQ=A_WINS, MQ=TIE),
        pair(1, "猫", TA=B_WINS),
    ]
    path = write_pairs(pairs, tmp_path / "new" / "x.csv")
    assert read_pairs(path) == pairs
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    public = {"path_A", "path_B", "prompt", "VQ", "MQ", "TA"}
    assert set(rows[0]) == public | {"fps_A", "num_frames_A", "fps_B", "num_frames_B"}
    assert [row["MQ"] for row in rows] == ["same", ""]
    more = [*pairs, read_pairs(write(tmp_path / "y.csv", PUBLIC))[0]]
    assert read_pairs(write_pairs(more, tmp_path / "z.csv")) == more


def test_the_winner_of_an_hpsv3_entry_is_a(tmp_path):
    path = write(tmp_path / "x.json", json.dumps(entries()))
    pairs = read_pairs(path)
    assert [(p.path_a, p.path_b) for p in pairs] == [(f"{i}/a.png", f"{i}/b.png") for i in range(4)]
    assert {p.label(OVERALL) for p in pairs} == {A_WINS} and pairs[0].fps_a is None
    assert len(read_pairs(path, min_confidence=0.965)) == 2


def changed(column, value):
    """The public file with one cell of its second pair, row 3, replaced."""
    header, *rows = list(csv.reader(PUBLIC.splitlines()))
    rows[1][header.index(column)] = value
    return "\n".join(
        ",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in [header, *rows]
    )


def entry(**changes):
    return json.dumps([*entries(1), {**entries(2)[1], **changes}])


REFUSED = {
    "word": ("x.csv", changed("VQ", "C"), r"row 3: VQ is 'C'.*'A', 'same', 'B'"),
    "no prompt": ("x.csv", changed("prompt", "  "), "row 3: prompt"),
    "rate nan": ("x.csv", changed("fps_A", "nan"), "row 3: fps_A"),
    "half a frame": ("x.csv", changed("num_frames_A", "17.5"), "row 3: num_frames_A is 17.5"),
    "shorter row": ("x.csv", PUBLIC + "x,y", "row 4: prompt"),
    "empty": ("x.csv", "", "cannot read"),
    "no column": ("x.csv", PUBLIC.replace("num_frames_B", "frames_B"), "columns .* missing"),
    "no labels": ("x.csv", PUBLIC.replace(",VQ,MQ,TA,Overall", ",a,b,c,d"), "columns .* missing"),
    "no pair": ("x.csv", PUBLIC.splitlines()[0], "no pair"),
    "column twice": ("x.csv", PUBLIC.replace("A_model", "VQ"), "a column twice"),
    "cut": ("x.csv", PUBLIC[: PUBLIC.index("quoted")], "cannot read"),
    "no json": ("x.json", '[{"prompt": "a"', "cannot read"),
    "no list": ("x.json", '{"prompt": "a"}', "cannot read"),
    "confidence": ("x.json", entry(confidence=1.2), "row 2: confidence is 1.2"),
    "doubtful": ("x.json", entry().replace("0.9", "0.8"), "none with confidence 0.95"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused(tmp_path, case):
    name, text, message = REFUSED[case]
    with pytest.raises(UserError) as error:
        read_pairs(write(tmp_path / name, text))
    assert error.match(f"(?s){message}") and "row 1:" not in str(error.value)


def test_swapping_twice_is_the_identity_and_once_mirrors_everything():
    one = pair(3, VQ=A_WINS, MQ=TIE, TA=B_WINS)
    other = one.swapped()
    assert other.swapped() == one
    assert (other.path_a, other.fps_a, other.num_frames_a) == ("3_b.mp4", 1 / 3, 23)
    assert other.labels == {"VQ": B_WINS, "MQ": TIE, "TA": A_WINS}


def test_split_depends_on_the_prompt_and_the_seed_alone():
    pairs = many()
    train, validation = split_by_prompt(pairs, 0.3, 0)
    chosen = {p.prompt for p in validation}
    assert len(train) + len(validation) == len(pairs)
    assert not {p.prompt for p in train} & chosen and 0.1 < len(chosen) / 60 < 0.5
    more = [*reversed(pairs), *(pair(i, f"new prompt {i}", VQ=TIE) for i in range(100))]
    _, again = split_by_prompt(more, 0.3, 0)
    assert {p.prompt for p in again if not p.prompt.startswith("new")} == chosen
    assert {p.prompt for p in split_by_prompt(pairs, 0.3, 1)[1]} != chosen
    larger = {p.prompt for p in split_by_prompt(pairs, 0.5, 0)[1]}
    assert chosen < larger  # raising the share only adds prompts
    with pytest.raises(UserError, match="empty"):
        split_by_prompt([pair(i, VQ=A_WINS) for i in range(50)], 0.5, 0)  # one prompt


def test_spelling_variants_of_a_prompt_stay_together():
    texts = ["A red  circle", "a red circle", " a red circle\n"]
    pairs = [pair(i, text, VQ=A_WINS) for i, text in enumerate(texts)] + many(30)
    for seed in range(8):
        for side in split_by_prompt(pairs, 0.5, seed):
            assert len([p for p in side if p.prompt in texts]) in (0, 3)


def test_winners_are_balanced():
    dimension, seed = "MQ", 1
    pairs = many(301)
    balanced = balance_order(pairs, dimension, seed)
    labels = [p.label(dimension) for p in balanced]
    assert abs(labels.count(A_WINS) - labels.count(B_WINS)) <= 1
    assert labels.count(TIE) == [p.label(dimension) for p in pairs].count(TIE)
    for before, after in zip(pairs, balanced, strict=True):
        assert after in (before, before.swapped())
    tied = [b != p for b, p in zip(balanced, pairs, strict=True) if p.label("MQ") == TIE]
    assert 0.3 < sum(tied) / len(tied) < 0.7
    assert balance_order(pairs[::-1], dimension, seed) == balanced[::-1]
    assert balance_order(pairs, dimension, seed + 1) != balanced
