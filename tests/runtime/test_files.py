"""Files: whole or absent, logs that lose one line at most, digests of contents."""

import json
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest

from longtake.runtime.errors import RunDirectoryError, UserError
from longtake.runtime.files import (
    append_jsonl,
    digest,
    read_jsonl,
    replacing,
    to_plain,
    write_json,
    write_jsonl,
)


def test_the_whole_new_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    target = tmp_path / "new folder" / "a.txt"
    for text in ("first", "second"):
        with replacing(target) as temporary:
            temporary.write_text(text)
            assert not target.exists() or target.read_text() == "first"
        assert target.read_text() == text
    assert os.listdir(target.parent) == ["a.txt"]


def test_a_replaced_file_and_its_folder_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda d: synced.append(os.readlink(f"/proc/self/fd/{d}")))
    write_json(tmp_path / "a.json", {})
    append_jsonl(tmp_path / "log.jsonl", [{}])
    assert [Path(path).name.split("-")[-1] for path in synced] == [
        "a.json",
        tmp_path.name.split("-")[-1],
        "log.jsonl",
    ]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_block_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), replacing(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_file_in_the_way_of_the_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="remedy"):
        write_json(tmp_path / "file" / "a.json", {})


def test_records_come_back_and_logs_go_on(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    append_jsonl(path, [{"a": 1.5, "b": "\u00e4\n"}, {"c": None}])
    append_jsonl(path, [])
    append_jsonl(path, [{"d": [1, 2], "nan": float("nan"), "inf": float("inf")}])
    records = [{"a": 1.5, "b": "\u00e4\n"}, {"c": None}, {"d": [1, 2], "nan": None, "inf": None}]
    assert read_jsonl(path) == records
    assert write_jsonl(tmp_path / "copy.jsonl", records).read_bytes() == path.read_bytes()


def test_every_cut_loses_at_most_the_last_record_and_the_log_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_jsonl(path, [{"n": i, "text": "\u00e9"} for i in range(3)])
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for cut in range(last + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.warns(UserWarning, match="torn"):
            assert [r["n"] for r in read_jsonl(path)] == [0, 1]
        append_jsonl(path, [{"n": 9}])
        assert [r["n"] for r in read_jsonl(path)] == [0, 1, 9]
    path.write_bytes(whole[:-1])  # only the newline is missing: the record is complete
    append_jsonl(path, [{"n": 9}])
    assert [r["n"] for r in read_jsonl(path)] == [0, 1, 2, 9]


@pytest.mark.parametrize("line", [b"[1]", b"3", b"nonsense", b'"x"', b"\xff\xfe"])
def test_lines_that_are_no_objects_are_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"n": 1}\n\n' + line + b'\n{"n": 2}\n')
    with pytest.raises(UserError, match=r"line 3"):
        read_jsonl(path)
    path.write_bytes(line)  # a file of another kind is not a log with a torn line
    with pytest.raises(UserError, match=r"line 1"):
        read_jsonl(path)
    with pytest.raises(UserError, match="check the path"):
        read_jsonl(tmp_path / "absent.jsonl")


def _write_limited(path: Path, size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        append_jsonl(path, [{"text": "x" * 5000}])
    except RunDirectoryError as error:
        raise SystemExit(0 if "file size limit" in str(error) else 3) from error
    raise SystemExit(4)


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_jsonl(path, [{"n": 1}])
    before = path.read_bytes()
    child = multiprocessing.get_context("fork").Process(target=_write_limited, args=(path, 1000))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert path.read_bytes() == before


def _write_many(path: Path, name: str) -> None:
    for i in range(40):
        append_jsonl(path, [{"who": name, "n": i, "pad": "x" * 3000}])


def test_several_writers_do_not_mix_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_write_many, args=(path, n)) for n in "ab"]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for name in "ab":
        assert [line["n"] for line in lines if line["who"] == name] == list(range(40))


def test_what_has_no_json_form_is_a_bug() -> None:
    with pytest.raises(TypeError, match="object"):
        to_plain({"a": object()})


def make(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_directory_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    base = {"dit/config.json": "{}", "dit/w": "1"}
    reference = digest(make(tmp_path / "a", base))
    assert digest(make(tmp_path / "moved", base)) == reference
    assert digest(make(tmp_path / "hidden", {**base, ".lock": "", ".c/x": "1"})) == reference
    others = (
        {**base, "dit/w": "2"},
        {"dit/config.json": "{}", "dit/v": "1"},
        {**base, "dit/extra": ""},
        {"dit/config.json": "1", "dit/w": "{}"},
    )
    for number, other in enumerate(others):
        assert digest(make(tmp_path / f"other{number}", other)) != reference
    with pytest.raises(FileNotFoundError, match="absent"):
        digest(tmp_path / "absent")
