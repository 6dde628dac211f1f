"""Agreement of rewards with preference pairs, on clips and labels that are known."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from longtake import cli
from longtake.core.video import write_mp4
from longtake.evaluation.pairs import evaluate_pairs
from longtake.rewards.pairs import A_WINS, B_WINS, TIE, PreferencePair, write_pairs
from longtake.rewards.score_files import find_inputs, score_clips
from longtake.runtime.errors import UserError

REWARD = "general"
RATE = {"fps_a": 8.0, "fps_b": 8.0, "num_frames_a": 9, "num_frames_b": 9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven clips of noise that grows with the number; a reward ranks them somehow."""
    out = tmp_path_factory.mktemp("pairs")
    draw = torch.Generator().manual_seed(0)
    base = torch.full((9, 3, 64, 64), 0.5)
    base[:, 0, 20:40, 20:40] = 0.9
    for number in range(7):
        clip = (base + 0.08 * number * torch.randn(base.shape, generator=draw)).clamp(0, 1)
        write_mp4(clip, out / f"{number}.mp4", fps=8, lossless=True)
    return out


def pair(a, b, label, prompt):
    labels = {} if label is None else {"VQ": label}
    labels["TA"] = TIE
    return PreferencePair(
        prompt=prompt, path_a=f"{a}.mp4", path_b=f"{b}.mp4", labels=labels, **RATE
    )


def test_accuracies_follow_from_the_scores_of_the_clips(folder):
    scores = score_clips(find_inputs(folder, "a red square"), [REWARD]).column(REWARD)
    order = sorted(range(7), key=lambda number: scores[number])
    worst, best = order[0], order[-1]
    pairs = [
        pair(best, worst, A_WINS, "a red square"),
        pair(worst, best, B_WINS, "a red square"),
        pair(best, worst, B_WINS, "one red square"),  # the annotator errs
        pair(order[2], order[3], TIE, "one red square"),
        pair(worst, order[3], None, "the red square"),
    ]
    write_pairs(pairs, folder / "pairs.csv")
    visual, text = evaluate_pairs(folder / "pairs.csv", [REWARD])
    assert (visual.reward, visual.dimension, text.dimension) == (REWARD, "VQ", "TA")
    assert visual.accuracy == pytest.approx(2 / 3) and visual.decided == 3
    assert visual.labelled == 4 and visual.accuracy_with_ties == pytest.approx(3 / 4)
    # Two prompts: a resample holds both, or one of them twice.
    assert (visual.ci_low, visual.ci_high) == (0, 1)
    assert math.isnan(text.accuracy) and text.decided == 0 and text.labelled == 5
    assert math.isnan(text.ci_low) and visual.unscored == text.unscored == 0


def test_a_clip_that_is_not_scored_leaves_its_pairs_out(folder):
    (folder / "broken.mp4").write_bytes(b"no video")
    pairs = [pair(0, 6, A_WINS, "a"), pair(6, 0, A_WINS, "b"), pair(0, 5, A_WINS, "c")]
    broken = PreferencePair(
        prompt="c", path_a="broken.mp4", path_b="0.mp4", labels={"VQ": A_WINS}, **RATE
    )
    write_pairs([*pairs, broken], folder / "some.csv")
    output = folder / "scores.csv"
    visual = evaluate_pairs(folder / "some.csv", [REWARD], output=output)[0]
    assert (visual.decided, visual.unscored) == (3, 1)
    assert "broken.mp4" in output.read_text()
    again = evaluate_pairs(folder / "some.csv", [REWARD], output=output)[0]
    assert again == visual


def test_command_prints_a_table_and_json(folder):
    write_pairs([pair(0, 6, A_WINS, "a"), pair(1, 5, A_WINS, "b")], folder / "two.csv")
    command = ["rewards", "evaluate", "--pairs", str(folder / "two.csv"), "--reward", REWARD]
    shown = CliRunner().invoke(cli.app, command)
    assert shown.exit_code == 0 and "95 % interval" in shown.stdout and REWARD in shown.stdout
    lines = CliRunner().invoke(cli.app, [*command, "--json"]).stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["dimension"] for row in rows] == ["VQ", "TA"] and rows[0]["decided"] == 2
    with pytest.raises(UserError):
        evaluate_pairs(folder / "missing.csv", [REWARD])
