"""The pages in a real Chromium, answered with keys; run by `make test-slow` where it is installed.

What is saved must equal the files in tests/data, which the tests of the import stand on. Where a
change of the page is meant to change them, copy the new ones: the failure names them.
"""

import json
from pathlib import Path

import pytest

from longtake.evaluation.annotation.study_pages import write_gsb_pages, write_mos_pages
from longtake.evaluation.gsb_plan import plan_pairs, write_plan
from longtake.evaluation.protocol import ProtocolConfig, write_assignments

DATA = Path(__file__).parents[2] / "data"
DIMENSIONS = ("text_alignment", "overall")
WATCHED = "view && view.answer.watched"
VARYING = ("page", "longtake", "seconds", "viewport")

pytestmark = pytest.mark.slow


def mos_page(listed, folder, embed_bytes=0):
    raters = ["ann", "bob", "cy"]
    made = write_assignments(listed, [], DIMENSIONS, ProtocolConfig(), raters, folder)
    report = write_mos_pages(folder, listed, made.assignments, made.files, embed_bytes)
    assert report.findings == () and bool(report.linking) == (embed_bytes == 0)
    return report.pages[0]


def gsb_page(listed, folder):
    pairs, _ = plan_pairs(listed, reference="wan", seed=0)
    write_plan(folder, pairs, listed, DIMENSIONS)
    report = write_gsb_pages(folder, listed, pairs, DIMENSIONS)
    assert report.findings == () == report.linking
    return report.pages[0]


def begin(browser, page):
    browser.open(page)
    browser.click("form button")


def say_why(browser, reason):
    browser.value(
        "(box => { box.value = "
        + json.dumps(reason)
        + "; box.dispatchEvent(new Event('input')); box.blur(); })(document.activeElement)"
    )


def stable(record):
    """A record without what differs from run to run."""
    kept = {k: v for k, v in record["provenance"].items() if k not in VARYING}
    assert record["time"].endswith("Z") and record["provenance"]["seconds"] > 0
    return {**record, "time": "", "provenance": {**kept, "plays": kept["plays"] > 0}}


def same_as_recorded(browser, name):
    recorded = [json.loads(line) for line in (DATA / name).read_text().splitlines()]
    new = [json.loads(line) for line in browser.file.read_text().splitlines()]
    assert list(map(stable, new)) == list(map(stable, recorded)), browser.file


def test_scores_with_keys_survive_a_closed_tab(browser, make_list, tmp_path):
    page = mos_page(make_list(image=True), tmp_path / "round")
    begin(browser, page)
    assert browser.value("window.owned === undefined && study.items.length === 4")
    browser.press("4")  # not yet: nothing was played
    assert browser.value("Object.keys(view.answer.marks).length") == 0
    browser.wait(WATCHED)
    browser.press("4", "5", "Enter")
    browser.wait(WATCHED)
    browser.press("0")
    browser.press("5")  # goes into the reason, which has the focus
    assert browser.value("view.answer.marks.text_alignment.score") is None
    say_why(browser, "caf\u00e9 </script>")
    browser.press("ArrowDown", "2", "Enter")
    browser.wait(WATCHED)
    browser.press("3", "Enter")  # one question is left: Enter stays
    assert browser.value("view.item === study.items[2]")
    begin(browser, page)  # the tab was closed in between
    assert browser.value("state.place") == 2
    browser.wait(WATCHED)
    browser.press("3")
    browser.value("(c => { c.value = 'slow'; c.dispatchEvent(new Event('input')); })"
                  "(document.querySelector('textarea'))")  # fmt: skip
    browser.press("ArrowLeft", "ArrowLeft")
    browser.press("ArrowUp", "ArrowUp", "2")  # a correction
    assert browser.value("countDone()") == 3
    assert len(browser.saved()) == 6
    same_as_recorded(browser, "saved_mos.jsonl")
    assert browser.errors == []


def test_pairs_play_in_step_and_are_answered(browser, make_list, tmp_path):
    browser.open(gsb_page(make_list(), tmp_path / "plan"))
    browser.value("document.querySelector('#name').value = 'dee'")
    browser.click("form button")
    browser.wait(WATCHED)
    browser.value("view.player.replay()")
    browser.wait("view.player.leader.currentTime > 0.2")
    apart = "Math.abs(view.player.videos[0].currentTime - view.player.videos[1].currentTime)"
    assert browser.value(apart) < 0.2
    browser.press("a", "b", "Enter")
    browser.wait(WATCHED)
    browser.press("s", "0")
    say_why(browser, "both black")
    browser.press("Enter")
    assert browser.value("document.querySelector('h1').textContent").startswith("All answered")
    assert [record["score"] for record in browser.saved()] == [1, -1, 0, None]
    same_as_recorded(browser, "saved_gsb.jsonl")
    assert browser.errors == []


def test_a_clip_that_does_not_play_can_only_be_declined(browser, make_list, tmp_path):
    page = mos_page(make_list(), tmp_path / "round")
    for video in (tmp_path / "round" / "videos").iterdir():
        video.unlink()
        video.write_bytes(b"no video")
    begin(browser, page)
    browser.wait("view && view.player.broken")
    browser.press("3", "0")
    (record,) = browser.saved()
    assert record["score"] is None and record["reason"] == "the clip does not play"


def test_a_skipped_clip_is_not_watched_and_a_second_tab_takes_over(browser, make_list, tmp_path):
    begin(browser, mos_page(make_list(), tmp_path / "round", 20_000_000))
    browser.wait("view.player.length > 0")
    browser.value("view.player.pause(); view.player.seek(0.45); view.player.play()")
    browser.wait("view.player.videos.every(v => v.ended)")
    assert browser.value("view.answer.watched") is False
    browser.wait(WATCHED)  # the second round is a whole one
    browser.press("4")
    browser.value("dispatchEvent(new StorageEvent('storage', { key: memory.key(rater) }))")
    assert browser.value("state === null && document.body.textContent.includes('another tab')")
    assert browser.value("Object.values(memory.load(rater).answers)[0].marks.text_alignment.score")


def test_a_browser_that_keeps_nothing_says_so_and_still_saves(browser, make_list, tmp_path):
    browser.open(mos_page(make_list(), tmp_path / "round"))
    browser.value("Storage.prototype.setItem = () => { throw new DOMException('full'); }")
    browser.click("form button")
    assert "keeps nothing" in browser.value("document.querySelector('.warning').textContent")
    browser.wait(WATCHED)
    browser.press("4", "5")
    assert [record["score"] for record in browser.saved()] == [4, 5]
    assert browser.errors == []
