"""The frame of the pages: everything plain is escaped, tables keep their shape."""

from html.parser import HTMLParser

import pytest

from longtake.runtime.html_page import details, figure, media, page, table, text

EVIL = '</script><b onclick="x">\'&'


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


def test_plain_texts_are_escaped_everywhere() -> None:
    shown = page(EVIL, table((EVIL,), [EVIL], caption=EVIL) + media("a.mp4", EVIL))
    tags = Tags(shown)
    assert tags.count("b") == tags.count("script") == 0
    assert tags.words.count(EVIL) == 4
    assert ("video", EVIL) in [(tag, attrs.get("aria-label")) for tag, attrs in tags.seen]


def test_a_table_has_its_columns_headings_and_classes() -> None:
    shown = table(("a", "b"), [("<i>1</i>", "2"), "part"], classes=("", "num"), note="<i>n</i>")
    tags = Tags(shown)
    assert (tags.count("th"), tags.count("td"), tags.count("tr"), tags.count("i")) == (2, 3, 3, 2)
    assert [attrs for tag, attrs in tags.seen if tag == "td"] == [
        {}, {"class": "num"}, {"colspan": "2"},
    ]  # fmt: skip
    with pytest.raises(ValueError):
        table(("a", "b"), [("1",)])


@pytest.mark.parametrize(
    ("uri", "tag"),
    [("data:video/mp4;base64,AA", "video"), ("data:image/gif;base64,AA", "img"), ("x.mp4", "video"),
     ("x%20y.gif", "img"), ("x.webm?v=1", "video"), ("x.avi", "video")],
)  # fmt: skip
def test_pictures_and_players_are_told_apart(uri: str, tag: str) -> None:
    ((found, attrs),) = Tags(media(uri, "a & b")).seen
    assert (found, attrs["src"]) == (tag, uri)


def test_a_page_is_one_file_without_foreign_parts() -> None:
    shown = page("t", details(text("a<b"), "<p>c</p>") + figure("<i></i>", "d"), "i{}", "let a=1")
    tags = Tags(shown)
    assert not any(k in attrs for _, attrs in tags.seen for k in ("src", "href"))
    assert "url(" not in shown and "@import" not in shown
    assert [tag for tag, _ in tags.seen][:5] == ["html", "head", "meta", "meta", "title"]
    assert tags.count("script") == 1 and shown.index("</main>") < shown.index("let a=1")
