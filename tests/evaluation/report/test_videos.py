"""Videos: inline while they fit, linked when large, named when missing."""

import base64
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pandas as pd

from longtake.evaluation.report.build import ReportSettings, build_report
from longtake.evaluation.report.content import Video
from longtake.evaluation.report.inputs import Study
from longtake.evaluation.report.page import html_page
from longtake.evaluation.report.score_sets import ScoreSet, read_score_sets
from longtake.evaluation.report.videos import VideoSettings, VideoShelf, pick_prompts
from longtake.runtime.html import uri_length

MODELS = {"A": 3.8, "B": 3.2}


def score_set(folder: Path) -> ScoreSet:
    study = Study(samples=folder / "samples.csv", ratings=[folder / "ratings.jsonl"])
    (found,), _ = read_score_sets(study)
    return found


def shelved(folder: Path, page: Path, **limits: int) -> tuple[list[Video], VideoShelf]:
    scores = score_set(folder)
    assert scores.samples is not None
    shelf = VideoShelf(page, VideoSettings(**limits))
    rows = shelf.rows(scores.table, dict.fromkeys(MODELS, scores.samples), {m: m for m in MODELS})
    return [video for row in rows for video in row.videos], shelf


def test_small_videos_are_in_the_page(make_study: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_study(MODELS, videos=True)
    videos, shelf = shelved(folder, tmp_path / "r.html", prompts=4)
    assert len(videos) == 8 and not shelf.linked
    for video in videos:
        head, _, content = video.uri.partition(",")
        assert head == "data:video/mp4;base64"
        assert base64.b64decode(content) == Path(video.path).read_bytes()
        assert video.label.count("(n=") == 4


def test_the_budget_holds_and_the_rest_is_linked(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_study(MODELS, videos=True)
    first = folder / "videos" / "s00001.mp4"
    size = first.stat().st_size
    page = tmp_path / "pages" / "r.html"
    videos, shelf = shelved(folder, page, prompts=4, budget=3 * uri_length(first))
    assert sum(video.is_inline for video in videos) == 3
    assert shelf.linked == {"../study/videos"}
    for video in videos:
        if not video.is_inline:
            target = (page.parent / unquote(video.uri)).resolve()
            assert target == Path(video.path).resolve() and "linked" in video.problem
    too_large, _ = shelved(folder, page, prompts=4, max_bytes=size - 1)
    assert not any(video.is_inline for video in too_large)


def test_missing_empty_and_unplayable_videos_say_so(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_study(MODELS, videos=True)
    (folder / "videos" / "s00001.mp4").unlink()
    (folder / "videos" / "s00002.mp4").write_bytes(b"")
    listed = folder / "samples.csv"
    (folder / "videos" / "s00003.mp4").rename(folder / "videos" / "s00003.avi")
    listed.write_text(listed.read_text().replace("s00003.mp4", "s00003.avi"))
    videos, _ = shelved(folder, tmp_path / "r.html", prompts=24)
    by_name = {Path(video.path).stem: video for video in videos}
    assert not by_name["s00001"].uri and by_name["s00001"].problem.startswith("no video")
    assert not by_name["s00002"].uri and "empty" in by_name["s00002"].problem
    assert by_name["s00003"].uri and ".avi" in by_name["s00003"].problem
    assert all(v.is_inline for k, v in by_name.items() if k not in ("s00001", "s00002", "s00003"))


def test_links_and_their_folder_are_on_the_page(
    make_study: Callable[..., Path], settings: ReportSettings, tmp_path: Path
) -> None:
    folder = make_study(MODELS, name="odd #study", videos=True)
    limits = ReportSettings(comparison=settings.comparison, videos=VideoSettings(budget=0))
    page = html_page(build_report([folder], tmp_path / "r.html", limits))
    links = re.findall(r'<video [^>]*src="([^"]+)"', page)
    assert len(links) == 12
    assert all((tmp_path / unquote(link)).is_file() for link in links)
    assert "Keep these folders" in page and "odd #study/videos" in page


def test_prompts_with_the_largest_difference_come_first() -> None:
    rows = [
        {"dimension": "overall", "model": model, "prompt": f"p{i}", "score": score}
        for i in range(8)
        for model, score in (("A", 3.0), ("B", 3.0 + (2.0 if i == 5 else 0.1 * i)))
    ]
    chosen = pick_prompts(pd.DataFrame(rows), 4, seed=1)
    assert [name for name, _ in chosen[:2]] == ["p5", "p7"]
    assert "2.00" in chosen[0][1] and all(why == "drawn at random" for _, why in chosen[2:])
    assert len({name for name, _ in chosen}) == 4
    assert chosen == pick_prompts(pd.DataFrame(rows), 4, seed=1)
    alone = pd.DataFrame([row for row in rows if row["model"] == "A"])
    assert {why for _, why in pick_prompts(alone, 4, seed=1)} == {"drawn at random"}
