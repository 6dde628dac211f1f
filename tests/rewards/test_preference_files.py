import csv
import json

import pytest

from longtake.rewards.preference_data import OVERALL, PreferencePair
from longtake.rewards.preference_files import (
    read_hpsv3_json,
    read_preference_csv,
    write_hpsv3_json,
    write_preference_csv,
)
from longtake.rewards.preference_labels import A_WINS, B_WINS, TIE
from longtake.runtime.errors import RunDirectoryError, UserError

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


def video_pairs():
    return [
        PreferencePair(
            prompt='a "cat", jumping\nover a line',
            path_a="a/0.mp4",
            path_b="b/0.mp4",
            labels={"VQ": A_WINS, "MQ": TIE, "TA": B_WINS},
            fps_a=23.976023976023978,
            fps_b=1 / 3,
            num_frames_a=48,
            num_frames_b=93,
            mos_a={"VQ": 3.25, "MQ": 0.1 + 0.2},
            mos_b={"VQ": -1e-3},
        ),
        PreferencePair(
            prompt="ein Fuß, 猫",
            path_a="a/1.mp4",
            path_b="b/1.mp4",
            labels={"TA": TIE},
            fps_a=8.0,
            fps_b=8.0,
            num_frames_a=17,
            num_frames_b=17,
        ),
    ]


def image_pairs():
    return [
        PreferencePair(
            prompt=f"prompt {i}",
            path_a=f"{i}/a.png",
            path_b=f"{i}/b.png",
            labels={OVERALL: A_WINS},
            confidence=0.95 + 0.01 * i,
        )
        for i in range(4)
    ]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_public_columns_are_read(tmp_path):
    first, second = read_preference_csv(write(tmp_path / "x.csv", PUBLIC))
    assert first.prompt == 'a cat, "quoted"' and second.prompt == "eine schöne Katze"
    assert first.labels == {"VQ": A_WINS, "MQ": TIE, "TA": B_WINS, OVERALL: A_WINS}
    assert second.labels == {"VQ": TIE, "TA": TIE, OVERALL: B_WINS}
    assert (first.fps_a, first.num_frames_a, first.fps_b, first.num_frames_b) == (24, 48, 30, 93)
    assert second.num_frames_b == 17
    assert read_preference_csv(write(tmp_path / "y.csv", "\ufeff" + PUBLIC)) == [first, second]


def test_csv_round_trip(tmp_path):
    pairs = video_pairs()
    assert read_preference_csv(write_preference_csv(pairs, tmp_path / "new" / "x.csv")) == pairs
    more = [*pairs, read_preference_csv(write(tmp_path / "y.csv", PUBLIC))[0]]
    assert read_preference_csv(write_preference_csv(more, tmp_path / "z.csv")) == more


def test_csv_has_the_public_header(tmp_path):
    path = write_preference_csv(video_pairs(), tmp_path / "x.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    public = {"path_A", "path_B", "prompt", "VQ", "MQ", "TA"}
    public |= {"fps_A", "num_frames_A", "fps_B", "num_frames_B"}
    assert set(rows[0]) == public | {"MOS_A_VQ", "MOS_B_VQ", "MOS_A_MQ"}
    assert [row["TA"] for row in rows] == ["B", "same"] and rows[1]["VQ"] == ""


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("VQ", "C", "row 3: VQ is 'C', expected A, B, same"),
        ("TA", "1", "row 3: TA"),
        ("prompt", "  ", "row 3: prompt"),
        ("path_B", "", "row 3: path_B"),
        ("fps_A", "0", "row 3: fps_A"),
        ("fps_A", "nan", "row 3: fps_A"),
        ("fps_B", "fast", "row 3: fps_B is 'fast'"),
        ("num_frames_A", "17.5", "row 3: num_frames_A"),
        ("num_frames_B", "-2", "row 3: num_frames_B"),
        ("num_frames_B", "inf", "row 3: num_frames_B"),
        ("MOS_A_VQ", "good", "row 3: MOS_A_VQ is 'good', expected a number or empty"),
    ],
)
def test_wrong_values_are_named_by_row(tmp_path, column, value, message):
    path = write_preference_csv(video_pairs()[::-1], tmp_path / "x.csv")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows, header = list(reader), reader.fieldnames
    rows[1][column] = value
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(UserError) as error:
        read_preference_csv(path)
    assert message in str(error.value) and "row 2" not in str(error.value)


def test_rows_of_another_length_are_named(tmp_path):
    lines = PUBLIC.splitlines()
    short = lines[2].rsplit(",", 2)[0]
    text = "\n".join([*lines[:2], "", short, lines[2] + ",extra", lines[1]])
    with pytest.raises(UserError, match="row 4: 11 cells, expected 13; row 5: 14 cells"):
        read_preference_csv(write(tmp_path / "x.csv", text))


def test_long_lists_of_problems_are_cut(tmp_path):
    header, first, _ = PUBLIC.splitlines()
    text = "\n".join([header] + [first.replace("24.0", "-1")] * 9)
    with pytest.raises(UserError, match="row 6: fps_A is '-1', expected a rate above 0; 4 more"):
        read_preference_csv(write(tmp_path / "x.csv", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("\n", "path_A"),
        (PUBLIC.replace("num_frames_B", "frames_B"), "add num_frames_B"),
        ("path_A,path_B,prompt,fps_A,num_frames_A,fps_B,num_frames_B\n", "a column of labels"),
        (PUBLIC.splitlines()[0], "no pair"),
        (PUBLIC.replace("A_model", "VQ"), "twice"),
        (PUBLIC[: PUBLIC.index("quoted")], "cannot read"),  # cut inside a quoted cell
    ],
)
def test_broken_csv_files_are_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_preference_csv(write(tmp_path / "x.csv", text))


def test_files_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"\x89PNG\xff\xfe\x00\x01")
    for reader in (read_preference_csv, read_hpsv3_json):
        with pytest.raises(UserError, match="UTF-8"):
            reader(path)
        with pytest.raises(UserError, match=r"missing\.csv"):
            reader(tmp_path / "missing.csv")


def test_csv_needs_the_timing_of_videos(tmp_path):
    with pytest.raises(UserError, match="write_hpsv3_json"):
        write_preference_csv(image_pairs(), tmp_path / "x.csv")


def test_json_round_trip(tmp_path):
    pairs = image_pairs()
    path = write_hpsv3_json([pairs[0], pairs[1].swapped(), *pairs[2:]], tmp_path / "new" / "x.json")
    assert read_hpsv3_json(path) == pairs  # the winner is A again
    entries = json.loads(path.read_text())
    assert all(set(e) == {"prompt", "path1", "path2", "confidence"} for e in entries)


def test_json_pairs_below_the_confidence_are_dropped(tmp_path):
    path = write_hpsv3_json(image_pairs(), tmp_path / "x.json")
    assert len(read_hpsv3_json(path, min_confidence=0.965)) == 2
    with pytest.raises(UserError, match=r"4 pairs below 0\.99"):
        read_hpsv3_json(path, min_confidence=0.99)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("prompt", None, "row 2: prompt is None, expected a text"),
        ("path1", "", "row 2: path1"),
        ("path2", 7, "row 2: path2 is 7"),
        ("confidence", 1.2, "row 2: confidence is 1.2, expected a number from 0 to 1"),
        ("confidence", None, "row 2: confidence"),
        ("confidence", True, "row 2: confidence"),
    ],
)
def test_wrong_json_values_are_named_by_row(tmp_path, key, value, message):
    path = write_hpsv3_json(image_pairs(), tmp_path / "x.json")
    entries = json.loads(path.read_text())
    entries[1][key] = value
    entries[0]["choice_dist"] = [9, 1]  # other keys are left aside
    with pytest.raises(UserError) as error:
        read_hpsv3_json(write(path, json.dumps(entries)))
    assert message in str(error.value) and "row 1" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"prompt": "a"', "cannot read"),
        ('{"prompt": "a"}', "not a list"),
        ("[]", "no pair"),
        ('["a", 3]', "row 1: str, expected an object; row 2: int"),
    ],
)
def test_broken_json_files_are_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_hpsv3_json(write(tmp_path / "x.json", text))


def test_json_needs_a_winner(tmp_path):
    with pytest.raises(UserError, match="write_preference_csv"):
        write_hpsv3_json(video_pairs(), tmp_path / "x.json")


def test_unwritable_paths_are_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot write"):
        write_preference_csv(video_pairs(), tmp_path / "file" / "x.csv")
    with pytest.raises(RunDirectoryError, match="cannot write"):
        write_hpsv3_json(image_pairs(), tmp_path / "file" / "x.json")
