"""What browsers play, and what files say of their makers."""

from pathlib import Path

import av
import pytest

from longtake.evaluation.annotation.video_facts import VideoFacts, video_facts


def encode(path: Path, codec: str, kind: str = "mp4") -> Path:
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "problem"),
    [("a.mp4", "libx264", ""), ("a.MP4", "libx264", ""), ("a.mp4", "mpeg4", "codec mpeg4"),
     ("a.mov", "libx264", "ending .mov"), ("a", "libx264", "ending missing")],
)  # fmt: skip
def test_codecs_and_endings_that_browsers_lack(
    tmp_path: Path, name: str, codec: str, problem: str
) -> None:
    assert video_facts(encode(tmp_path / name, codec)).problem == problem


def test_files_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    for path in (tmp_path / "a.mp4", tmp_path / "gone.mp4"):
        assert video_facts(path).problem.startswith("cannot be read")


def test_models_are_found_as_words() -> None:
    facts = VideoFacts(tags=("Lavf61", "by Wan2.2-T2V, seed 3"))
    assert facts.names(["wan2.2", "wan", "veo", "av", "seed"]) == ["wan2.2", "seed"]
    assert VideoFacts().names(["wan"]) == []
