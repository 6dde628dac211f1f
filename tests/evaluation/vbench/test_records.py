"""Records of finished videos: whole lines only, the last word of a video counts."""

from pathlib import Path

from longtake.evaluation.vbench.records import read_records, rewrite_records


def test_round_trip_with_odd_names(tmp_path: Path) -> None:
    path = tmp_path / "work" / "records.jsonl"
    names = ["a -0.mp4", "é “quoted”-1.mp4", 'with "marks"-2.mp4']
    entries = {n: {"video_path": f"/v/{n}", "video_results": i} for i, n in enumerate(names)}
    rewrite_records(path, entries)
    assert read_records(path) == entries
    rewrite_records(path, {})
    assert read_records(path) == {} and read_records(tmp_path / "absent") == {}


def test_torn_and_foreign_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    lines = [
        b'{"video_path": "/v/a-0.mp4", "video_results": 1}',
        b'{"video_path": "/v/b-0.mp4", "vid',
        b'{"video_results": 1}',
        b"[1]",
        b"\xff\xfe",
        b'{"video_path": "/v/a-0.mp4", "video_results": 0}',
    ]
    path.write_bytes(b"\n".join(lines))
    assert read_records(path) == {"a-0.mp4": {"video_path": "/v/a-0.mp4", "video_results": 0}}
