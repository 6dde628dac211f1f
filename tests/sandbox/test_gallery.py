import json

from longtake.core.video import read_video
from longtake.evaluation.ratings import read_samples
from longtake.sandbox.captions import parse_caption
from longtake.sandbox.gallery import render_to_directory


def test_gallery_is_complete_and_repeats(tmp_path):
    sheets = []
    for name in ("first", "second"):
        sheet = render_to_directory(tmp_path / name, 4, 9, "held_out", True)
        sheets.append(sheet.read_bytes())
        lines = (tmp_path / name / "captions.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert len(records) == 4
        for record in records:
            parse_caption(record["caption"])
            assert record["corruption"] != "none"
            clip, fps = read_video(tmp_path / name / record["clip"])
            assert clip.shape == (17, 3, 256, 256) and fps == 8
        listed = read_samples(tmp_path / name / "samples.csv")
        assert [s.caption for s in listed.samples] == [record["caption"] for record in records]
        assert not listed.missing_videos()
    assert sheets[0] == sheets[1]
