"""Videos on disk: which are there, in both layouts; torn and odd ones; temporal flickering."""

import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from longtake.core.video import read_video, write_mp4
from longtake.evaluation.vbench.plan import Plan, PromptRow, SuiteData, make_plan
from longtake.evaluation.vbench.suites import VBENCH1, Suite
from longtake.evaluation.vbench.videos import (
    find_videos,
    link_view,
    probe,
    temporal_flickering,
)
from longtake.runtime.errors import RunDirectoryError, UserError


def one_prompt(suite: Suite, prompt: str, dimension: str) -> Plan:
    row = PromptRow(prompt=prompt, dimensions=(dimension,))
    return make_plan(SuiteData(suite=suite, rows=(row,), source="", digest=""))


def noise(frames: int, side: int = 32) -> torch.Tensor:
    source = torch.Generator().manual_seed(frames)
    return torch.randint(0, 256, (frames, 3, side, side), generator=source).to(torch.uint8)


def test_flat_and_official_layout(plan: Plan, videos: Path) -> None:
    flat = find_videos(plan, videos)
    assert not flat.missing and not flat.extra
    assert len(flat.paths) == plan.copies
    for video in plan.videos:
        for dimension in video.dimensions:
            (videos / dimension).mkdir(exist_ok=True)
            shutil.copy(videos / video.name, videos / dimension / video.name)
    nested = find_videos(plan, videos)
    assert not nested.missing and not nested.extra
    assert {path.parent.name for path in nested.paths.values()} == set(plan.dimensions)


def test_missing_and_extra_are_listed(plan: Plan, videos: Path) -> None:
    lost = plan.videos[0]
    (videos / lost.name).rename(videos / f"{lost.name} copy.mp4")
    (videos / "Human_Anatomy").mkdir()
    (videos / "Human_Anatomy" / "nobody asked-0.mp4").write_text("")
    (videos / "notes.txt").write_text("")
    files = find_videos(plan, videos)
    assert files.missing == tuple((d, lost.name) for d in lost.dimensions)
    assert files.missing_names == [lost.name]
    assert {path.name for path in files.extra} == {"nobody asked-0.mp4", f"{lost.name} copy.mp4"}
    with pytest.raises(UserError, match="does not exist"):
        find_videos(plan, videos / "absent")


def test_raw_material_of_the_static_filter_is_not_missing(clip: Path, tmp_path: Path) -> None:
    for index in range(5):
        shutil.copy(clip, tmp_path / f"a still cup-{index}.mp4")
    files = find_videos(one_prompt(VBENCH1, "a still cup", "temporal_flickering"), tmp_path)
    assert not files.missing and not files.extra and len(files.paths) == 5


def test_a_view_holds_links_of_one_dimension_only(plan: Plan, videos: Path, tmp_path: Path) -> None:
    files = find_videos(plan, videos)
    view = tmp_path / "views" / "model"
    (view / "Diversity").mkdir(parents=True)
    (view / "Diversity" / "old-0.mp4").write_text("left over")
    for _ in range(2):  # again, on what is there
        links = link_view(files, "Diversity", view)
        assert set(os.listdir(view / "Diversity")) == set(links)
        assert set(links) == {video.name for video in plan.of_dimension("Diversity")}
        assert all(path.resolve() == videos / name for name, path in links.items())
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot link"):
        link_view(files, "Diversity", tmp_path / "file")


@pytest.mark.parametrize("frames", [1, 17])
def test_facts_of_a_file(tmp_path: Path, frames: int) -> None:
    facts = probe(write_mp4(noise(frames), tmp_path / "a.mp4", 12.5))
    assert (facts.frames, facts.problem) == (frames, "")
    assert facts.fps == pytest.approx(12.5)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.99])
def test_torn_files_have_a_problem(tmp_path: Path, share: float) -> None:
    content = write_mp4(noise(9), tmp_path / "a.mp4", 8.0).read_bytes()
    (tmp_path / "torn.mp4").write_bytes(content[: int(share * len(content))])
    assert probe(tmp_path / "torn.mp4").problem


def test_a_file_without_its_middle_has_a_problem(tmp_path: Path) -> None:
    content = bytearray(write_mp4(noise(9, 64), tmp_path / "a.mp4", 8.0).read_bytes())
    assert content.find(b"moov") > len(content) // 2  # the header stands at the end: it stays whole
    content[200 : len(content) // 2] = bytes(len(content) // 2 - 200)
    (tmp_path / "hole.mp4").write_bytes(content)
    assert probe(tmp_path / "hole.mp4").problem


@pytest.mark.parametrize("lossless", [True, False])
def test_flickering_equals_its_definition(tmp_path: Path, lossless: bool) -> None:
    video = torch.randint(0, 256, (7, 3, 24, 40), generator=torch.Generator().manual_seed(1))
    path = write_mp4(video.to(torch.uint8), tmp_path / "clip.mp4", 8.0, lossless=lossless)
    frames = read_video(path)[0].numpy().astype(np.float64)
    per_pair = [np.abs(b - a).mean() for a, b in pairwise(frames)]
    assert temporal_flickering(path) == pytest.approx((255 - np.mean(per_pair)) / 255, abs=1e-12)


def test_flickering_at_its_ends(tmp_path: Path) -> None:
    def score(video: torch.Tensor, *, lossless: bool = True) -> float:
        return temporal_flickering(write_mp4(video, tmp_path / "clip.mp4", 8.0, lossless=lossless))

    picture = torch.arange(3 * 32 * 32).reshape(1, 3, 32, 32).remainder(256).to(torch.uint8)
    assert score(picture.expand(6, -1, -1, -1)) == 1.0
    assert score(torch.full((6, 3, 32, 32), 128, dtype=torch.uint8), lossless=False) == 1.0
    blinking = torch.zeros(6, 3, 16, 16, dtype=torch.uint8)
    blinking[1::2] = 255
    assert score(blinking) == 0.0
    with pytest.raises(UserError, match="one frame"):
        score(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
