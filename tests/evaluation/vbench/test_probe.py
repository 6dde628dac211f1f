"""Facts of video files, torn ones, and files unlike the others."""

from pathlib import Path

import pytest
import torch

from longtake.core.video import write_mp4
from longtake.evaluation.vbench.probe import probe, unlike_the_rest


def noise(frames: int, side: int = 32) -> torch.Tensor:
    source = torch.Generator().manual_seed(frames)
    return torch.randint(0, 256, (frames, 3, side, side), generator=source).to(torch.uint8)


@pytest.mark.parametrize("frames", [1, 2, 9, 17])
def test_facts_of_a_file(tmp_path: Path, frames: int) -> None:
    found = probe(write_mp4(noise(frames), tmp_path / "a.mp4", 12.5))
    assert (found.frames, found.width, found.height, found.problem) == (frames, 32, 32, "")
    assert found.fps == pytest.approx(12.5)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.99])
def test_torn_files_have_a_problem(tmp_path: Path, share: float) -> None:
    data = write_mp4(noise(9), tmp_path / "a.mp4", 8.0).read_bytes()
    (tmp_path / "torn.mp4").write_bytes(data[: int(share * len(data))])
    assert probe(tmp_path / "torn.mp4").problem


def test_a_file_without_its_middle_has_a_problem(tmp_path: Path) -> None:
    data = bytearray(write_mp4(noise(9, 64), tmp_path / "a.mp4", 8.0).read_bytes())
    assert data.find(b"moov") > len(data) // 2  # the header stands at the end: it stays whole
    data[200 : len(data) // 2] = bytes(len(data) // 2 - 200)
    (tmp_path / "hole.mp4").write_bytes(data)
    assert probe(tmp_path / "hole.mp4").problem


def test_other_files_have_a_problem(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    assert probe(tmp_path / "text.mp4").problem
    assert probe(tmp_path / "absent.mp4").problem


def test_odd_files_are_named_with_what_is_odd(tmp_path: Path) -> None:
    made = {
        "usual a": write_mp4(noise(9), tmp_path / "a.mp4", 8.0),
        "usual b": write_mp4(noise(9), tmp_path / "b.mp4", 8.0),
        "slow": write_mp4(noise(9), tmp_path / "c.mp4", 4.0),
        "short": write_mp4(noise(5), tmp_path / "d.mp4", 8.0),
        "large": write_mp4(noise(9, 64), tmp_path / "e.mp4", 8.0),
        "gone": tmp_path / "absent.mp4",
    }
    facts = {name: probe(path) for name, path in made.items()}
    odd = unlike_the_rest(facts)
    assert set(odd) == {"slow", "short", "large", "gone"}
    assert odd["slow"] == "4 fps instead of 8"
    assert odd["short"] == "5 frames instead of 9"
    assert odd["large"] == "64x64 instead of 32x32"
    assert odd["gone"].startswith("unreadable")
    assert set(unlike_the_rest(facts, fps=4.0)) == set(made) - {"slow"}
    assert unlike_the_rest({}) == {}
