"""The comparison of colour and gray motion training, in its smallest size."""

import json

import pytest

from longtake.bench import bench_motion_colour as bench
from longtake.rewards.pairs import read_pairs
from longtake.sandbox.annotators import Annotator
from longtake.sandbox.preferences import PairConfig
from longtake.sandbox.recipes.pairs import make_preferences

CONFIG = PairConfig(damaged=1, pairs_per_prompt=6)


def test_both_modes_are_trained_and_measured(tmp_path):
    pairs = tmp_path / "pairs"
    for place, split, count in (
        ("pairs", "train", 3),
        ("pairs", "held_out", 2),
        ("truth", "held_out", 2),
    ):
        make_preferences(pairs / place, split, count, 0, Annotator(), config=CONFIG)
    out = tmp_path / "out"
    options = ["--pairs", str(pairs), "--out", str(out), "--updates", "2", "--eval-every", "1"]
    options += ["--set", "captions.updates=1"]
    command = [*options, "--seeds", "3", "--device", "cpu"]
    assert bench.main([*command, "--only", "gray:3"]) == 0
    assert not (out / "motion_colour.json").exists()
    first = (out / "gray-3" / "result.json").read_bytes()
    assert bench.main(command) == 0
    assert (out / "gray-3" / "result.json").read_bytes() == first  # kept, not trained again
    runs = json.loads((out / "motion_colour.json").read_text())["runs"]
    assert [(run["mode"], run["seed"]) for run in runs] == [("colour", 3), ("gray", 3)]
    for run in runs:
        assert [row["update"] for row in run["curve"]] == [-1, 0, 1]
        assert set(run["accuracy"]) == {"pairs", "truth"}
        assert {row["change"] for row in run["sensitivity"]} == {"hue", "saturation"}
    colour, gray = ({row["change"]: row["mean"] for row in run["sensitivity"]} for run in runs)
    assert gray["hue"] < 0.5 * colour["hue"]  # luma is kept, up to clipping
    with pytest.raises(SystemExit):
        bench.main([*options, "--only", "grey:0"])
    with pytest.raises(SystemExit):
        bench.main([*options, "--train-pairs", "0"])


def test_the_first_pairs_keep_their_clips(tmp_path):
    pairs = tmp_path / "pairs"
    for place, split in (("pairs", "train"), ("pairs", "held_out"), ("truth", "held_out")):
        make_preferences(pairs / place, split, 2, 0, Annotator(), config=CONFIG)
    cut = bench.first_pairs(pairs, tmp_path / "out", 7, None)
    assert bench.first_pairs(pairs, tmp_path / "out", 7, None) == cut  # again: kept
    assert bench.first_pairs(pairs, tmp_path / "out", 8, None) != cut
    for place, name, count in (("pairs", "train", 7), ("pairs", "held_out", 12)):
        whole = read_pairs(pairs / place / f"{name}.csv")
        assert read_pairs(cut / place / f"{name}.csv") == whole[:count]
    for pair in read_pairs(cut / "truth" / "held_out.csv"):
        assert (cut / "truth" / pair.path_a).is_file()
