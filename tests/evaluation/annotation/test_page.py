"""One page: whole, offline, blind, and its data are what went in."""

import json
import re
from html.parser import HTMLParser

import pytest

from longtake.evaluation.annotation.page import FORMAT, PageItem, script_json, write_page
from longtake.evaluation.dimensions import DIMENSIONS, TIER_WORDS
from longtake.runtime.errors import UserError


class Parsed(HTMLParser):
    """Tags, and the contents of the scripts."""

    def __init__(self, path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] += data

    @property
    def study(self):
        return json.loads(self.scripts[0])


def written(path, *arguments):
    write_page(path, *arguments)
    return Parsed(path)


def item(folder, name="a", **more):
    video = folder / "videos" / f"{name} #1.mp4"
    video.parent.mkdir(exist_ok=True)
    video.write_bytes(f"video {name}".encode())
    given = {"caption": "c", "dimensions": ("overall", "charm"), "videos": (video,)}
    return PageItem(id=name, **(given | more))


def test_the_page_holds_its_items_as_they_are(tmp_path, evil):
    items = [item(tmp_path, "a", caption=evil), item(tmp_path, "b")]
    page = written(tmp_path / "p.html", "mos", "st", evil, items)
    study = page.study
    assert (study["kind"], study["study"], study["format"]) == ("mos", "st", FORMAT)
    assert study["rater"] == study["items"][0]["caption"] == evil
    assert [entry["id"] for entry in study["items"]] == ["a", "b"]
    assert study["tiers"] == list(TIER_WORDS)
    known, own = study["dimensions"]
    assert known["tiers"] == list(DIMENSIONS["overall"].tiers)
    assert (own["title"], own["question"], own["tiers"]) == ("charm", "", [])
    # Nothing that was said became code: one block of data, one of ours, both whole.
    assert len(page.scripts) == 2 and "owned" not in page.scripts[1]
    assert page.scripts[1].rstrip().endswith("showStart();")
    assert page.source.count("</script>") == 2 and page.source.isascii()


def test_nothing_is_loaded_from_anywhere(tmp_path):
    page = written(tmp_path / "p.html", "mos", "st", "ann", [item(tmp_path)])
    assert not any(name in attrs for _, attrs in page.tags for name in ("src", "href"))
    assert not re.search(r"https?:|//[a-z]+\.|url\(|@import|fetch\(|XMLHttp|eval\(", page.source)
    assert "innerHTML" not in page.source  # texts are never read as HTML


def test_small_files_are_inside_and_large_ones_linked(tmp_path):
    items = [item(tmp_path, "a"), item(tmp_path, "b")]
    inside = written(tmp_path / "in.html", "mos", "st", "ann", items).study
    addresses = [entry["videos"][0] for entry in inside["items"]]
    assert all(address.startswith("data:video/mp4;base64,") for address in addresses)
    needed = sum(map(len, addresses))
    assert write_page(tmp_path / "in.html", "mos", "st", "ann", items, needed) is True
    assert write_page(tmp_path / "out.html", "mos", "st", "ann", items, needed - 1) is False
    again = written(tmp_path / "fit.html", "mos", "st", "ann", items, needed).study
    assert again["page"] == inside["page"]
    out = written(tmp_path / "out.html", "mos", "st", "ann", items, needed - 1).study
    assert [entry["videos"] for entry in out["items"]] == [
        ["videos/a%20%231.mp4"], ["videos/b%20%231.mp4"],
    ]  # fmt: skip
    assert out["page"] != inside["page"]


def test_a_page_in_use_is_not_replaced(tmp_path):
    path = tmp_path / "p.html"
    write_page(path, "mos", "st", "ann", [item(tmp_path)])
    write_page(path, "mos", "st", "ann", [item(tmp_path)])  # the same page
    with pytest.raises(UserError, match="may be in use"):
        write_page(path, "mos", "st", "ann", [item(tmp_path, caption="another")])
    with pytest.raises(UserError, match="cannot read a file"):
        gone = PageItem(id="x", caption="", dimensions=("overall",), videos=(tmp_path / "no.mp4",))
        write_page(tmp_path / "q.html", "mos", "st", "ann", [gone])


def test_json_cannot_leave_its_script():
    text = "</script><!--<script]]>\u2028\u2029\\u003cé"
    written = script_json({"a": text, text: 1})
    assert json.loads(written) == {"a": text, text: 1}
    assert written.isascii() and not set(written) & set("<>")
