"""Importers on small copies of the public layouts, with prompts of our own."""

import json
from pathlib import Path

import pytest

from longtake.evaluation.internal_benchmark import importers
from longtake.evaluation.internal_benchmark.importers import SUITES, UNSORTED, import_suite
from longtake.evaluation.internal_benchmark.schema import (
    TextPrompt,
    read_jsonl,
    read_taxonomy,
    write_jsonl,
)
from longtake.evaluation.internal_benchmark.validator import TextTargets, check_text_prompts
from longtake.runtime.errors import UserError

MOVIEGEN = (
    "prompt,concept,motion_level\r\n"
    '"A pot, boiling over.","physics - fluid dynamics,camera motion",high\r\n'
    'He said ""no"" twice,human - emotion,low\r\n'
    '"A ""quoted"" sign",scene,low\r\n'
    '"A pot, boiling over.",sequential motion,high\r\n'
)


def compbench(root: Path) -> Path:
    folder = root / "prompts"
    folder.mkdir(parents=True)
    (folder / "1_consistent_attr.txt").write_text("A red cup beside a blue jug\n\n")
    (folder / "7_numeracy.txt").write_text("Four  kites rise.\r\nFive kites rise.\r\n")
    (folder / "8_novel.txt").write_text("A kite sinks.")
    return root


def test_t2v_compbench_from_checkout_folder_or_file(tmp_path: Path) -> None:
    root = compbench(tmp_path / "T2V-CompBench")
    found = import_suite("t2v_compbench", root)
    assert [(p.id, p.prompt, p.categories) for p in found.prompts] == [
        ("t2v_compbench-0001", "A red cup beside a blue jug", ("attribute_binding",)),
        ("t2v_compbench-0002", "Four kites rise.", ("counting",)),
        ("t2v_compbench-0003", "Five kites rise.", ("counting",)),
        ("t2v_compbench-0004", "A kite sinks.", (UNSORTED,)),
    ]
    assert (found.rows, found.unsorted, dict(found.unmapped)) == (4, 1, {"novel": 1})
    assert import_suite("t2v_compbench", root / "prompts") == found
    one = import_suite("t2v_compbench", root / "prompts" / "7_numeracy.txt")
    assert [p.prompt for p in one.prompts] == ["Four kites rise.", "Five kites rise."]


def test_moviegen_joins_the_labels_of_repeated_prompts(tmp_path: Path) -> None:
    path = tmp_path / "MovieGenVideoBenchWithTag.csv"
    path.write_text(MOVIEGEN, encoding="utf-8", newline="")
    found = import_suite("moviegen", path)
    assert [(p.prompt, p.categories) for p in found.prompts] == [
        (
            "A pot, boiling over.",
            ("physical_simulation", "fluid_dynamics", "camera_movement", "event_sequence"),
        ),
        ('He said ""no"" twice', ("human_subject", "emotion")),
        ('A "quoted" sign', (UNSORTED,)),
    ]
    assert (found.rows, found.unsorted, dict(found.unmapped)) == (4, 1, {"scene": 1})


def test_moviegen_text_has_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "MovieGenVideoBench.txt"
    path.write_text("One.\n\nTwo, three.\n", encoding="utf-8")
    found = import_suite("moviegen", path)
    assert [p.prompt for p in found.prompts] == ["One.", "Two, three."]
    assert found.unsorted == 2 and not found.unmapped


def test_vbench_of_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "VBench_full_info.json"
    rows = [
        {"prompt_en": "a bear climbs ", "dimension": ["subject_consistency", "dynamic_degree"]},
        {"prompt_en": "a red bowl", "dimension": ["color"], "auxiliary_info": {"color": "red"}},
        {"prompt_en": "Garden, zoom in.", "dimension": ["Camera_Motion"]},
        {"prompt_en": "Garden, zoom in.", "dimension": ["Complex_Plot"]},
    ]
    path.write_text(json.dumps(rows))
    found = import_suite("vbench", path)
    assert [p.categories for p in found.prompts] == [
        (UNSORTED,),
        ("attribute_binding",),
        ("camera_movement", "event_sequence"),
    ]
    assert (found.rows, len(found.prompts), found.prompts[0].prompt) == (4, 3, "a bear climbs")
    assert dict(found.unmapped) == {"subject_consistency": 1, "dynamic_degree": 1}


def test_every_target_is_a_category_of_the_taxonomy() -> None:
    names = {category.name for category in read_taxonomy()}
    for _, table in SUITES.values():
        assert {name for categories in table.values() for name in categories} <= names
    assert importers.UNSORTED not in names


def test_imported_records_round_trip_and_unsorted_ones_fail_validation(tmp_path: Path) -> None:
    found = import_suite("t2v_compbench", compbench(tmp_path / "c"))
    path = write_jsonl(found.prompts, tmp_path / "out.jsonl")
    prompts = read_jsonl(path, TextPrompt)
    assert tuple(prompts) == found.prompts
    checks = check_text_prompts(prompts, read_taxonomy(), TextTargets(prompts=4))
    (known,) = [check for check in checks if check.rule == "known categories"]
    assert known.examples == ("t2v_compbench-0004",)


@pytest.mark.parametrize(
    ("suite", "name", "content", "word"),
    [
        ("moviegen", "x.csv", "text,tag\na,b\n", "columns"),
        ("moviegen", "x.csv", "prompt,concept\nonly a prompt\n", "incomplete"),
        ("moviegen", "x.txt", "\n \n", "no prompts"),
        ("vbench", "x.json", "{", "not JSON"),
        ("vbench", "x.json", '{"prompt_en": "a"}', "entry 0"),
        ("vbench", "x.json", '[{"prompt_en": "a", "dimension": "color"}]', "entry 0"),
        ("vbench", "x.json", "[]", "no prompts"),
    ],
)
def test_broken_files_are_refused(
    tmp_path: Path, suite: str, name: str, content: str, word: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=word):
        import_suite(suite, tmp_path / name)


@pytest.mark.parametrize("suite", SUITES)
def test_a_path_without_the_suite(tmp_path: Path, suite: str) -> None:
    with pytest.raises(UserError):
        import_suite(suite, tmp_path / "absent")
    with pytest.raises(UserError):
        import_suite(suite, tmp_path)
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError):
        import_suite(suite, tmp_path / "x.txt")


def test_an_unknown_suite_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="t2v_compbench, moviegen, vbench"):
        import_suite("evalcrafter", tmp_path)
