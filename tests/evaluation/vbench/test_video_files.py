"""Which planned videos are there, in both layouts; links for the public code."""

import os
import shutil
from pathlib import Path

import pytest

from longtake.evaluation.vbench.plan import Plan, make_plan
from longtake.evaluation.vbench.suite_data import PromptRow, SuiteData
from longtake.evaluation.vbench.suites import VBENCH1, VBENCH2
from longtake.evaluation.vbench.video_files import find_videos, link_view
from longtake.runtime.errors import RunDirectoryError, UserError


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
    found = find_videos(plan, videos)
    assert found.missing == tuple((d, lost.name) for d in lost.dimensions)
    assert found.missing_names == [lost.name]
    assert {path.name for path in found.extra} == {"nobody asked-0.mp4", f"{lost.name} copy.mp4"}


def test_a_space_before_the_number_counts(clip: Path, tmp_path: Path) -> None:
    row = PromptRow(prompt="w" * 179 + " and more", dimensions=("Material",))
    data = SuiteData(suite=VBENCH2, rows=(row,), source="", digest="")
    for index in range(3):
        shutil.copy(clip, tmp_path / f"{'w' * 179}-{index}.mp4")  # stripped: another name
    found = find_videos(make_plan(data), tmp_path)
    assert len(found.missing) == 3 and len(found.extra) == 3


def test_raw_material_of_the_static_filter_is_not_missing(clip: Path, tmp_path: Path) -> None:
    row = PromptRow(prompt="a still cup", dimensions=("temporal_flickering",))
    data = SuiteData(suite=VBENCH1, rows=(row,), source="", digest="")
    for index in range(5):
        shutil.copy(clip, tmp_path / f"a still cup-{index}.mp4")
    found = find_videos(make_plan(data), tmp_path)
    assert not found.missing and not found.extra and len(found.paths) == 5


def test_no_folder_is_an_error(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        find_videos(plan, tmp_path / "absent")


def test_a_view_holds_links_of_one_dimension_only(plan: Plan, videos: Path, tmp_path: Path) -> None:
    files = find_videos(plan, videos)
    view = tmp_path / "views" / "model"
    (view / "Diversity").mkdir(parents=True)
    (view / "Diversity" / "old-0.mp4").write_text("left over")
    for _ in range(2):  # again, on what is there
        links = link_view(files.paths, "Diversity", view)
        assert set(os.listdir(view / "Diversity")) == set(links)
        assert set(links) == {video.name for video in plan.of_dimension("Diversity")}
        assert all(path.resolve() == videos / name for name, path in links.items())
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot link"):
        link_view(files.paths, "Diversity", tmp_path / "file")
