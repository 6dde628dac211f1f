"""The log: round trip, torn and broken lines, full disks, several writers."""

import json
import multiprocessing
import resource
import signal

import pytest

from longtake.evaluation.jsonl import append_jsonl, read_jsonl
from longtake.runtime.errors import UserError


def records_of(path):
    return [record for _, record in read_jsonl(path)[0]]


def test_round_trip_and_continuation(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    assert append_jsonl(path, [{"a": 1.5, "b": "ä\n"}, {"c": None}]) == 2
    assert append_jsonl(path, []) == 0
    append_jsonl(path, [{"d": [1, 2]}])
    records, findings = read_jsonl(path)
    assert records == [(1, {"a": 1.5, "b": "ä\n"}), (2, {"c": None}), (3, {"d": [1, 2]})]
    assert findings == ()


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path):
    append_jsonl(tmp_path / "l.jsonl", [{"x": float("nan"), "y": float("inf")}])
    assert records_of(tmp_path / "l.jsonl") == [{"x": None, "y": None}]


def test_every_cut_loses_at_most_the_last_record_and_says_so(tmp_path):
    path = tmp_path / "log.jsonl"
    append_jsonl(path, [{"n": i, "text": "é"} for i in range(3)])
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for cut in range(last + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        records, findings = read_jsonl(path)
        assert [r["n"] for _, r in records] == [0, 1]
        assert [(f.kind, f.count) for f in findings] == [("torn last line", 1)]
    path.write_bytes(whole[:-1])  # only the newline is missing: the record is complete
    assert [r["n"] for r in records_of(path)] == [0, 1, 2]


def test_a_torn_line_does_not_swallow_the_next_record(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2, "te')
    append_jsonl(path, [{"n": 3}])
    records, findings = read_jsonl(path)
    assert [r["n"] for _, r in records] == [1, 3]
    assert findings[0].kind == "line that is not a JSON object"
    assert "log.jsonl:2" in findings[0].items[0]


@pytest.mark.parametrize("line", [b"[1]", b"3", b"nonsense", b'"x"', b"\xff\xfe"])
def test_lines_that_are_no_objects_are_reported(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"n": 1}\n' + line + b'\n\n{"n": 2}\n')
    records, findings = read_jsonl(path)
    assert [number for number, _ in records] == [1, 4]
    assert findings[0].count == 1 and findings[0].effect == "not a record"


def test_a_file_of_another_kind_and_a_missing_one_are_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text("sample,rater\n1,2\n")
    with pytest.raises(UserError, match="no line of the file is a JSON object"):
        read_jsonl(tmp_path / "t.jsonl")
    with pytest.raises(UserError, match="check the path"):
        read_jsonl(tmp_path / "absent.jsonl")


def _write_limited(path, size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        append_jsonl(path, [{"text": "x" * 5000}])
    except UserError as error:
        raise SystemExit(0 if "the log is as it was" in str(error) else 3) from error
    raise SystemExit(4)


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path):
    path = tmp_path / "log.jsonl"
    append_jsonl(path, [{"n": 1}])
    before = path.read_bytes()
    child = multiprocessing.get_context("fork").Process(target=_write_limited, args=(path, 1000))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert path.read_bytes() == before


def _write_many(path, name):
    for i in range(40):
        append_jsonl(path, [{"who": name, "n": i, "pad": "x" * 3000}])


def test_several_writers_do_not_mix_lines(tmp_path):
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
