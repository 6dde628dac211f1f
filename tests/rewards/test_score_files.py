"""Files in, table out: inputs, per-row failures, resume after a kill, and what is printed."""

import csv
import json
import math

import av
import pandas as pd
import pytest
import torch
from PIL import Image

from longtake.core import video as video_files
from longtake.core.video import read_video, to_uint8, write_mp4
from longtake.rewards import score_files as engine
from longtake.rewards.contract import VideoBatch
from longtake.rewards.registry import load_suite
from longtake.rewards.score_files import (
    NAMED_NOTE,
    ScoreRow,
    find_inputs,
    print_report,
    read_table,
    score_clips,
    write_table,
)
from longtake.rewards.suite import RewardSuite
from longtake.runtime.errors import RunDirectoryError, UserError

NAMES = ("general", "motion_quality", "text_alignment")
CAPTION = "a red circle moves left"


def clip(seed=0, frames=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(frames, 3, 32, 32, generator=generator)


@pytest.fixture
def folder(tmp_path):
    """Three videos, two of them with captions, one in a subfolder."""
    root = tmp_path / "videos"
    write_mp4(clip(0), root / "a.mp4", fps=8)
    write_mp4(clip(1, 7), root / "deep" / "b.mp4", fps=15)
    frames = [Image.fromarray(f) for f in to_uint8(clip(2)).permute(0, 2, 3, 1).numpy()]
    frames[0].save(root / "c.gif", save_all=True, append_images=frames[1:], duration=100)
    (root / "a.txt").write_text(CAPTION + "\n")
    (root / "c.txt").write_text('two "blue" squares,\na star')
    (root / "notes.md").write_text("not a video")
    return root


def local(path, prompt, names=NAMES, fps=None):
    frames, rate = read_video(path)
    batch = VideoBatch(video=frames[None], prompts=[prompt], fps=fps or rate)
    scores = load_suite(dict.fromkeys(names, 1.0)).score(batch)
    return {name: row[0].value for name, row in scores.rows.items()}


def run(source, names=NAMES, *, prompt="", fps=None, **options):
    return score_clips(find_inputs(source, prompt, fps), names, device="cpu", **options)


def test_a_single_video_scores_as_in_memory(folder):
    report = run(folder / "deep" / "b.mp4", prompt=CAPTION)
    (row,) = report.rows
    assert row.scores == local(folder / "deep" / "b.mp4", CAPTION)
    assert (row.fps, row.frames, row.unscored) == (15.0, 7, {})
    assert report.unscored() == dict.fromkeys(NAMES, 0) and report.resumed == 0


def test_clips_of_one_size_are_scored_together_and_stay_in_order(tmp_path, monkeypatch):
    lengths = [5] * 18 + [7, 5, 5]
    for number, length in enumerate(lengths):
        path = tmp_path / f"{number:02d}.mp4"
        write_mp4(clip(number, length), path, fps=8 + number % 3)
        if number != 2:  # no caption: text alignment cannot score it
            path.with_suffix(".txt").write_text(CAPTION)
    (tmp_path / "04.mp4").write_bytes(b"no video")
    sizes, score = [], RewardSuite.score

    def count(suite, batch):
        sizes.append(batch.num_samples)
        return score(suite, batch)

    with monkeypatch.context() as patch:
        patch.setattr(RewardSuite, "score", count)
        rows = run(tmp_path).rows
    # Cut by the missing caption (2), the broken file (4), 16 clips, and the longer clip (18).
    assert sizes == [2, 1, 1, 13, 1, 2]
    assert [row.path for row in rows] == [f"{n:02d}.mp4" for n in range(len(lengths))]
    assert rows[4].frames is None and set(rows[4].unscored) == set(NAMES)
    for number in (0, 2, 5, 17, 18, 20):
        names = NAMES[:2] if number == 2 else NAMES
        alone = local(tmp_path / f"{number:02d}.mp4", CAPTION if number != 2 else "", names)
        for name in names:
            assert rows[number].scores[name] == pytest.approx(alone[name], abs=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(RewardSuite, "score", count)
        patch.setattr(engine, "BATCH_BYTES", 1)
        sizes.clear()
        run(tmp_path)
    assert sizes == [1] * 20


def test_captions_of_a_folder(folder):
    report = run(folder)
    assert [row.path for row in report.rows] == ["a.mp4", "c.gif", "deep/b.mp4"]
    assert [row.prompt for row in report.rows] == [CAPTION, 'two "blue" squares,\na star', ""]
    bare = report.rows[2]
    assert bare.unscored == {"text_alignment": "the clip has no caption"}
    assert bare.scores["text_alignment"] is None and bare.scores["general"] is not None
    assert report.unscored() == {"general": 0, "motion_quality": 0, "text_alignment": 1}
    assert [item.prompt for item in find_inputs(folder, "x")] == [
        CAPTION,
        report.rows[1].prompt,
        "x",
    ]
    # A name of several words is a caption where there is no other one, and the row says so.
    (folder / "deep" / "b.mp4").rename(folder / "two_green_stars-12.mp4")
    named = find_inputs(folder)[2]
    assert (named.prompt, named.notes) == ("two green stars", (NAMED_NOTE,))
    assert find_inputs(folder, "x")[2].prompt == "x"
    (folder / "a.txt").rename(folder / "train_000001.txt")
    (folder / "a.mp4").rename(folder / "train_000001.mp4")
    write_csv(folder / "captions.csv", [("train_000001.mp4", "from the list", "24")])
    listed = find_inputs(folder)[1]
    assert (listed.prompt, listed.fps, listed.notes) == ("from the list", 24, ())
    write_csv(folder / "captions.csv", [("gone.mp4", "", "")])
    with pytest.raises(UserError, match=r"gone\.mp4"):
        find_inputs(folder)


def write_csv(path, rows, columns=("path", "prompt", "fps")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def broken_files(folder):
    whole = (folder / "a.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video")
    with av.open(str(folder / "sound.mp4"), "w") as container:  # a container without video frames
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(
            torch.zeros(1, 1024).numpy(), format="fltp", layout="mono"
        )
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_every_failure_is_a_row_and_the_rest_goes_on(folder):
    broken_files(folder)
    table = write_csv(
        folder / "in.csv",
        [
            ("a.mp4", CAPTION, ""),
            ("cut.mp4", CAPTION, ""),
            ("empty.mp4", CAPTION, ""),
            ("text.mp4", CAPTION, ""),
            ("sound.mp4", CAPTION, ""),
            ("absent.mp4", CAPTION, ""),
            ("deep", CAPTION, ""),
            ("deep/b.mp4", CAPTION, "24"),
        ],
    )
    report = run(table)
    reasons = [row.unscored.get("general", "") for row in report.rows]
    for index, words in {
        1: "cannot decode cut.mp4", 2: "cannot decode empty.mp4", 3: "cannot decode text.mp4",
        4: "no video frames", 5: "video file not found", 6: "video file not found",
    }.items():  # fmt: skip
        row = report.rows[index]
        assert words in reasons[index], reasons[index]
        assert row.unscored.keys() == set(NAMES) and set(row.scores.values()) == {None}
        assert row.frames is None
    assert report.rows[0].scores == local(folder / "a.mp4", CAPTION)
    assert report.rows[7].scores == local(folder / "deep" / "b.mp4", CAPTION, fps=24.0)
    assert report.unscored() == dict.fromkeys(NAMES, 6)
    assert all(math.isfinite(mean) for mean in report.means().values())


def test_a_clip_without_a_rate_is_scored_only_where_time_does_not_matter(tmp_path):
    path = tmp_path / "clip.ivf"
    with av.open(str(path), "w", format="ivf") as container:
        stream = container.add_stream("libvpx-vp9", rate=8)
        stream.width = stream.height = 32
        for image in video_files.to_uint8(clip()).permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    row = run(path, prompt=CAPTION).rows[0]
    assert row.unscored.keys() == {"motion_quality", "text_alignment"}
    assert "no frame rate" in row.unscored["motion_quality"] and row.fps is None
    assert row.scores["general"] == local(path, CAPTION, ["general"], fps=1.0)["general"]
    assert run(path, prompt=CAPTION, fps=8).rows[0].unscored == {}


def test_long_clips_do_not_fill_the_memory(folder):
    report = run(folder, max_frames=5, prompt="x")
    assert [row.frames for row in report.rows] == [5, 5, None]
    assert "more than 5 frames" in report.rows[2].unscored["general"]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_resume_scores_only_what_is_missing(folder, tmp_path, ending, monkeypatch):
    output = tmp_path / f"scores.{ending}"
    (folder / "deep" / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:100])
    whole = run(folder, output=output, prompt="x")
    assert read_table(output, NAMES) == whole.rows and whole.unscored()["general"] == 1
    if ending == "csv":
        frame = pd.read_csv(output, float_precision="round_trip")
        assert frame["general"].tolist()[0] == whole.rows[0].scores["general"]
        assert frame["general"].isna().sum() == 1
    (folder / "deep" / "cut.mp4").unlink()
    run(folder, output=output, prompt="x")
    content = output.read_bytes()
    decoded = []

    def counting(path, *rest):
        decoded.append(path.name)
        return read_video(path, *rest)

    monkeypatch.setattr(engine, "read_video", counting)
    again = run(folder, output=output, prompt="x")
    assert (again.resumed, decoded) == (3, []) and output.read_bytes() == content
    assert [row.scores for row in again.rows] == [row.scores for row in whole.rows[:3]]

    write_mp4(clip(9), folder / "a.mp4", fps=8)  # another video under the same name
    changed = run(folder, output=output, prompt="x")
    assert (changed.resumed, decoded) == (2, ["a.mp4"])
    assert changed.rows[0].scores != whole.rows[0].scores
    assert len(read_table(output, NAMES)) == 4  # rows of other inputs stay

    decoded.clear()
    run(folder, output=output, prompt="y")  # b.mp4 has no caption of its own
    assert decoded == ["b.mp4"]
    run(folder, output=output, prompt="y", fps=12)
    assert decoded == ["b.mp4", "a.mp4", "c.gif", "b.mp4"]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_an_interrupted_run_keeps_its_rows(folder, tmp_path, ending, monkeypatch):
    output = tmp_path / f"scores.{ending}"

    def interrupted(path, *rest):
        if path.name == "b.mp4":
            raise KeyboardInterrupt
        return read_video(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "read_video", interrupted)
        patch.setattr(engine, "BATCH_CLIPS", 1)
        with pytest.raises(KeyboardInterrupt):
            run(folder, output=output, prompt="x")
    assert [row.path for row in read_table(output, NAMES)] == ["a.mp4"]
    assert run(folder, output=output, prompt="x").resumed == 1


def test_an_output_of_other_settings_is_refused_and_kept(folder, tmp_path, monkeypatch):
    output = tmp_path / "scores.csv"
    run(folder, output=output)
    content = output.read_bytes()
    with pytest.raises(UserError, match="cannot be continued"):
        run(folder, ["general"], output=output)
    monkeypatch.setattr("longtake.sandbox.analytic_rewards.VERSION", 2)
    with pytest.raises(UserError, match="other versions or settings"):
        run(folder, output=output)
    assert output.read_bytes() == content


FOREIGN = {
    "in.csv": b"path,prompt\na.mp4,x\n",
    "row.jsonl": b'{"path": "a"}\n',
    "text.jsonl": b"not json\n",
    "bytes.csv": b"\x00\x01\xff\n",
}


def test_unusable_outputs_are_refused_before_anything_is_scored(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "read_video", None)
    for name, content in FOREIGN.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be continued"):
            run(folder, output=path)
        assert path.read_bytes() == content
    with pytest.raises(UserError, match="output format"):
        run(folder, output=tmp_path / "scores.txt")
    with pytest.raises(RunDirectoryError, match="cannot write"):
        run(folder, output=path / "scores.csv")  # below a file


def test_tables_keep_odd_text_and_exact_numbers(tmp_path):
    row = ScoreRow(
        path='a,"b".mp4', prompt='quotes " and,\r\n"lines"', fps=30000 / 1001, frames=3,
        scores={"general": 0.1 + 0.2, "clip": None}, unscored={"clip": 'a\n"reason", ü'},
        notes=["n;1", "n2"], settings="s", digest="d",
    )  # fmt: skip
    for ending in ("csv", "jsonl"):
        path = tmp_path / f"t.{ending}"
        write_table(path, ["general", "clip"], [row, row])
        assert read_table(path, ["general", "clip"]) == [row, row]


INPUTS = {
    "absent": (None, "nothing to score"),
    "no column": ("video,prompt\na.mp4,x\n", "columns are missing"),
    "no rows": ("path,prompt\n", "nothing to score"),
    "no path": ("path,prompt\n,x\n", "row 2: path"),
    "rate": ("path,fps\na.mp4,fast\nb.mp4,-3\n", "row 2: fps is 'fast'.*row 3: fps is '-3'"),
    "comma": ("path,prompt\na.mp4,x,y\n", "texts with commas in quotes"),
    "latin": ("path,prompt\na.mp4,caf\udce9\n", "cannot read"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_unusable_inputs_are_refused(tmp_path, case):
    text, words = INPUTS[case]
    path = tmp_path / ("in.csv" if text else "absent.mp4")
    if text:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=f"(?s){words}"):
        find_inputs(path)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="nothing to score"):
        find_inputs(tmp_path / "none")
    with pytest.raises(UserError, match="fps"):
        find_inputs(tmp_path, fps=0.0)


def test_json_for_machines(folder, capsys):
    report = run(folder)
    print_report(report, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert [row["scores"] for row in printed["rows"]] == [dict(row.scores) for row in report.rows]
    assert printed["unscored"] == report.unscored() and printed["mean"] == report.means()
    assert printed["rewards"]["general"]["kind"] == "analytic"
