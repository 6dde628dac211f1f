"""Native scoring: resume, unreadable and missing videos, the static filter's folder."""

import shutil
from pathlib import Path

import pytest

from longtake.evaluation.vbench.flickering import temporal_flickering
from longtake.evaluation.vbench.native import SCORERS, score_natively
from longtake.evaluation.vbench.plan import Plan, make_plan
from longtake.evaluation.vbench.suite_data import PromptRow, SuiteData
from longtake.evaluation.vbench.suites import VBENCH1
from longtake.evaluation.vbench.video_files import find_videos

NAME = "temporal_flickering"


@pytest.fixture
def still_plan() -> Plan:
    rows = tuple(PromptRow(prompt=f"a still {x}", dimensions=(NAME,)) for x in ("cup", "hat"))
    return make_plan(SuiteData(suite=VBENCH1, rows=rows, source="", digest=""), samples=2)


@pytest.fixture
def folder(still_plan: Plan, clip: Path, tmp_path: Path) -> Path:
    for video in still_plan.videos:
        (tmp_path / "videos").mkdir(exist_ok=True)
        shutil.copy(clip, tmp_path / "videos" / video.name)
    return tmp_path / "videos"


def test_scores_and_origin(still_plan: Plan, folder: Path, clip: Path, tmp_path: Path) -> None:
    found = score_natively(still_plan, find_videos(still_plan, folder), NAME, tmp_path / "work")
    assert found.origin == "ours" and len(found.videos) == 4
    assert found.score == pytest.approx(temporal_flickering(clip))
    assert "without the static filter" in found.problems[0]


def test_filtered_videos_have_a_folder_of_their_own(
    still_plan: Plan, folder: Path, tmp_path: Path
) -> None:
    folder.rename(tmp_path / NAME)
    files = find_videos(still_plan, tmp_path)
    assert not score_natively(still_plan, files, NAME, tmp_path / "work").problems


def test_it_goes_on_where_it_stopped(
    still_plan: Plan, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []

    def stop_at_the_third(path: Path) -> float:
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(path.name)
        return 0.5

    files = find_videos(still_plan, folder)
    monkeypatch.setitem(SCORERS, NAME, stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        score_natively(still_plan, files, NAME, tmp_path / "work")
    records = tmp_path / "work" / "records.jsonl"
    records.write_bytes(records.read_bytes() + b'{"video_pa')  # a torn line
    monkeypatch.setitem(SCORERS, NAME, lambda path: 0.75)
    found = score_natively(still_plan, files, NAME, tmp_path / "work")
    assert [video.value for video in found.videos.values()] == [0.5, 0.5, 0.75, 0.75]


def test_what_cannot_be_scored_has_a_reason(still_plan: Plan, folder: Path, tmp_path: Path) -> None:
    lost, torn = (video.name for video in still_plan.videos[:2])
    (folder / lost).unlink()
    (folder / torn).write_text("no video")
    found = score_natively(still_plan, find_videos(still_plan, folder), NAME, tmp_path / "work")
    assert found.unscored[lost] == "the video is missing"
    assert "cannot decode" in found.unscored[torn] and len(found.videos) == 2
