"""Pages: everything plain is escaped, tables keep their shape, files inside keep their budget."""

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import ChoiceLoader, DictLoader, UndefinedError

from longtake.runtime import html
from longtake.runtime.html import MEDIA, Embedder, data_uri, render_page, uri_length

EVIL = '</script><b onclick="x">\'&'
PAGE = """{% extends "runtime/page.html.j2" %}
{% from "runtime/parts.html.j2" import table, media, figure %}
{% block body %}{{ table(["a", evil], [[evil, 2], evil], ["", "num"], evil) }}
{{ media(uri, evil) }}{{ figure("x%20y.gif", evil) }}{% endblock %}
{% block script %}<script>let a = {{ evil | tojson }}</script>{% endblock %}"""


class Tags(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.seen)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> str:
    loaders = [DictLoader({"test": PAGE}), html._TEMPLATES.loader]
    monkeypatch.setattr(html._TEMPLATES, "loader", ChoiceLoader(loaders))
    return render_page("test", title=EVIL, evil=EVIL, uri="a.mp4")


def test_plain_texts_are_escaped_everywhere(page: str) -> None:
    tags = Tags(page)
    assert tags.count("b") == 0 and tags.count("script") == 1
    assert tags.words.count(EVIL) == 6  # title, caption, heading, cell, row, figure
    assert ("video", EVIL) in [(tag, attrs.get("aria-label")) for tag, attrs in tags.seen]


def test_a_page_is_one_file_with_its_tables(page: str) -> None:
    tags = Tags(page)
    assert (tags.count("th"), tags.count("td"), tags.count("tr")) == (2, 3, 3)
    assert [a.get("class") for tag, a in tags.seen if tag == "td"] == ["", "num", None]
    assert "url(" not in page and "@import" not in page and tags.count("link") == 0
    assert [tag for tag, _ in tags.seen][:5] == ["html", "head", "meta", "meta", "title"]


@pytest.mark.parametrize(
    ("uri", "tag"),
    [("data:video/mp4;base64,AA", "video"), ("data:image/gif;base64,AA", "img"), ("x.mp4", "video"),
     ("x%20y.GIF", "img"), ("x.webm?v=1", "video"), ("x.avi", "video")],
)  # fmt: skip
def test_pictures_and_players_are_told_apart(uri: str, tag: str) -> None:
    source = '{% from "runtime/parts.html.j2" import media %}{{ media(uri, "a & b") }}'
    (((name, attrs),)) = Tags(html._TEMPLATES.from_string(source).render(uri=uri)).seen
    assert (name, attrs["src"]) == (tag, uri)


def test_a_forgotten_value_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="title"):
        render_page("runtime/page.html.j2")


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 1001])
def test_the_length_is_known_before_the_file_is_read(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.MP4"
    path.write_bytes(bytes(i % 251 for i in range(size)))
    uri = data_uri(path.read_bytes(), path.suffix)
    assert uri.startswith("data:video/mp4;base64,") and len(uri) == uri_length(path)
    assert base64.b64decode(uri.partition(",")[2]) == path.read_bytes()


def test_embedder_keeps_its_budget(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"twenty bytes of media")
    exact = Embedder(uri_length(path))
    uri = exact.uri(path)
    assert uri == data_uri(path.read_bytes(), ".png") and exact.uri(path) is None
    assert Embedder(uri_length(path) - 1).uri(path) is None
    assert ".avi" not in MEDIA
