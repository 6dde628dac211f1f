"""Prompts from the user's copy, in each of its forms; what cannot be used is named."""

import json
import zipfile
from pathlib import Path

import pytest

from longtake.evaluation.vbench.suite_data import SuiteData, read_suite
from longtake.evaluation.vbench.suites import VBENCH1, VBENCH2
from longtake.runtime.errors import UserError


def test_json_checkout_and_wheel_give_the_same(data: SuiteData, tmp_path: Path) -> None:
    content = Path(data.source).read_bytes()
    inner = Path("VBench-2.0") / "vbench2" / "VBench2_full_info.json"
    (tmp_path / "VBench" / inner).parent.mkdir(parents=True)
    (tmp_path / "VBench" / inner).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "vbench2.whl", "w") as wheel:
        wheel.writestr("vbench2/VBench2_full_info.json", content)
        wheel.writestr("vbench2/__init__.py", "raise RuntimeError('imported')")
    places = ["VBench", "VBench/VBench-2.0", "VBench/VBench-2.0/vbench2", "vbench2.whl"]
    for place in places:
        other = read_suite(VBENCH2, tmp_path / place)
        assert (other.rows, other.digest) == (data.rows, data.digest), place


def test_what_the_scorer_needs_is_kept(data: SuiteData) -> None:
    last = data.rows[-1]
    assert last.as_upstream("Thermotics", ["/v.mp4"]) == {
        "prompt_en": last.prompt,
        "dimension": ["Thermotics"],
        "video_list": ["/v.mp4"],
        "auxiliary_info": ["Is there a lighthouse? (yes or no)"],
    }
    assert "auxiliary_info" not in data.rows[0].as_upstream("Composition", [])
    assert data.remarks == ("an unknown version of VBench 2.0",)


def test_a_repeated_row_is_used_once_and_told(suite_json: Path) -> None:
    records = json.loads(suite_json.read_text())
    suite_json.write_text(json.dumps([*records, records[3]]))
    found = read_suite(VBENCH2, suite_json)
    assert len(found.rows) == len(records)
    assert records[3]["prompt_en"] in found.remarks[1]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[{", "not JSON"),
        ("{}", "not a list"),
        ("[]", "not a list"),
        ('["a prompt"]', "row 0 is no object"),
        ('[{"prompt_en": "", "dimension": ["Material"]}]', "row 0 has no prompt"),
        ('[{"prompt_en": "a/b", "dimension": ["Material"]}]', "can name a file"),
        ('[{"prompt_en": "a", "dimension": ["Matter"]}]', "unknown dimensions: \\['Matter'\\]"),
        ('[{"prompt_en": "a", "dimension": []}]', "unknown dimensions"),
        ('[{"prompt_en": "a", "dimension": "Material"}]', "unknown dimensions"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=problem):
        read_suite(VBENCH2, tmp_path / "x.json")


def test_the_other_suite_or_nothing_is_refused(data: SuiteData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"VBench 1.0.*unknown dimensions"):
        read_suite(VBENCH1, Path(data.source))
    for nothing in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="there is none"):
            read_suite(VBENCH1, nothing)
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
        wheel.writestr("other.py", "")
    with pytest.raises(UserError, match="cannot be read"):
        read_suite(VBENCH1, tmp_path / "other.whl")
