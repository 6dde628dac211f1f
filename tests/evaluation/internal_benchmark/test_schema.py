import json
from dataclasses import replace
from pathlib import Path

import pytest

from longtake.evaluation.internal_benchmark.schema import (
    INTERNAL_SUITE,
    T2V_HUMAN_FILE,
    Category,
    ImagePrompt,
    ReferenceImage,
    TextPrompt,
    count_words,
    parse_record,
    read_jsonl,
    read_taxonomy,
    write_jsonl,
)
from longtake.runtime.errors import RunDirectoryError, UserError

ROW = {
    "id": "t2v-h-001",
    "prompt": "Zoë lässt “Äpfel” fallen \u2028 - 苹果",
    "categories": ["action", "food_and_drink"],
    "words": 6,
    "language": "en",
    "source": "longtake",
}
IMAGE = ReferenceImage(
    id="i2v-001",
    file="a.png",
    sha256="0" * 64,
    caption="a dot",
    style="sketch",
    content=("abstract", "plant"),
    quality="high",
    aspect="16:9",
    resolution="1080p",
    origin="sandbox:1:2",
)


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_records_survive_a_round_trip(tmp_path: Path) -> None:
    text = parse_record(ROW, TextPrompt)
    assert text.categories == ("action", "food_and_drink")
    prompt = ImagePrompt(
        id="i", image="x", prompt_type="empty", prompt="", words=0, language="en", source="s"
    )
    for records in ([text, text], [prompt], [IMAGE]):
        path = write_jsonl(records, tmp_path / "records.jsonl")
        assert read_jsonl(path, type(records[0])) == records


def test_the_shipped_file_is_what_would_be_written(tmp_path: Path) -> None:
    shipped = INTERNAL_SUITE / T2V_HUMAN_FILE
    again = write_jsonl(read_jsonl(shipped, TextPrompt), tmp_path / "again.jsonl")
    assert again.read_bytes() == shipped.read_bytes()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"words": "6"}, "words is '6', not a whole number"),
        ({"words": True}, "words is True"),
        ({"words": 6.0}, "words is 6.0"),
        ({"prompt": None}, "prompt is None, not a text"),
        ({"categories": []}, "categories is []"),
        ({"categories": "action"}, "categories is 'action'"),
        ({"categories": ["action", 3]}, "categories is 3"),
        ({"categories": ["action", "action"]}, "repeats an entry"),
        ({"weight": 1}, "unknown weight"),
    ],
)
def test_a_wrong_value_names_its_line_and_field(
    tmp_path: Path, change: dict[str, object], word: str
) -> None:
    path = lines(tmp_path / "f.jsonl", ROW, {**ROW, **change}, ROW)
    with pytest.raises(UserError) as caught:
        read_jsonl(path, TextPrompt)
    assert "line 2: " in str(caught.value) and word in str(caught.value)
    assert "line 1" not in str(caught.value) and "line 3" not in str(caught.value)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    short = {key: value for key, value in ROW.items() if key not in ("words", "source")}
    with pytest.raises(UserError, match="line 1: missing source, words"):
        read_jsonl(lines(tmp_path / "f.jsonl", short), TextPrompt)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "f.jsonl", ROW, ROW)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="line 2: not JSON"):
        read_jsonl(path, TextPrompt)


def test_many_bad_lines_are_counted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 5: list instead of an object; and 4 more lines"):
        read_jsonl(lines(tmp_path / "f.jsonl", *[[]] * 9), TextPrompt)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"])
def test_files_without_text_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.jsonl").write_bytes(content)
    with pytest.raises(UserError):
        read_jsonl(tmp_path / "f.jsonl", TextPrompt)
    with pytest.raises(UserError, match=r"absent\.jsonl"):
        read_jsonl(tmp_path / "absent.jsonl", TextPrompt)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunDirectoryError, match="cannot write"):
        write_jsonl([IMAGE], tmp_path / "file" / "x.jsonl")


def test_the_shipped_taxonomy() -> None:
    taxonomy = read_taxonomy()
    named = [category.name for category in taxonomy if category.source == "report"]
    # Section 5.1: "Entity Generation and Action ... Physical Simulation and Inductive Reasoning".
    assert named == ["entity_generation", "action", "physical_simulation", "inductive_reasoning"]
    assert len(taxonomy) == 48 and {c.source for c in taxonomy} == {"report", "ours"}
    for category in taxonomy:
        assert category.definition.endswith(".") and category.definition.count(". ") == 0


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"categories": [{"name": "a"}]}', '{"categories": 3}']
)
def test_a_broken_taxonomy_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "taxonomy.json"
    path.write_text(content)
    with pytest.raises(UserError, match="taxonomy"):
        read_taxonomy(path)


def test_a_category_may_stand_there_once(tmp_path: Path) -> None:
    entry = {"name": "a", "definition": "b.", "source": "ours"}
    path = tmp_path / "taxonomy.json"
    path.write_text(json.dumps({"categories": [entry, entry]}))
    with pytest.raises(UserError, match="twice"):
        read_taxonomy(path)
    assert parse_record(entry, Category).name == "a"


def test_words_are_split_at_white_space() -> None:
    assert count_words("  one-two three's\n4 — five ") == 5
    assert count_words("") == 0


@pytest.mark.parametrize(
    ("aspect", "resolution", "size"),
    [
        ("1:1", "720p", (720, 720)),
        ("16:9", "720p", (1280, 720)),
        ("9:16", "1080p", (1080, 1920)),
        ("16:9", "2K", (2560, 1440)),
    ],
)
def test_sizes(aspect: str, resolution: str, size: tuple[int, int]) -> None:
    assert replace(IMAGE, aspect=aspect, resolution=resolution).size() == size
