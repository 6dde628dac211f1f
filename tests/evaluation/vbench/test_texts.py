"""Texts that run in parallel with the prompts they stand for."""

from pathlib import Path

import pytest

from longtake.evaluation.vbench.plan import make_plan
from longtake.evaluation.vbench.suite_data import SuiteData
from longtake.evaluation.vbench.texts import read_texts
from longtake.runtime.errors import UserError


def test_augmented_texts_leave_names_alone(data: SuiteData, tmp_path: Path) -> None:
    prompts = [row.prompt for row in data.rows]
    (tmp_path / "short.txt").write_text("\n".join(prompts) + "\n")
    (tmp_path / "long.txt").write_text("\n".join(f"{p} In golden light." for p in prompts) + "\n")
    texts = read_texts(tmp_path / "long.txt", tmp_path / "short.txt")
    plan, usual = make_plan(data, texts=texts), make_plan(data)
    assert all(video.text == f"{video.prompt} In golden light." for video in plan.videos)
    assert [v.name for v in plan.videos] == [v.name for v in usual.videos]
    assert "other texts" in plan.remarks[-1]
    assert read_texts(None, None) == {}


def test_texts_that_do_not_fit_are_refused(data: SuiteData, tmp_path: Path) -> None:
    for name, content in (("a", "x\ny\n"), ("b", "x\n"), ("c", "x\n \n")):
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="parallel"):
        read_texts(tmp_path / "b", tmp_path / "a")
    with pytest.raises(UserError, match=r"(?s)empty.*line 2"):
        read_texts(tmp_path / "c", tmp_path / "a")
    with pytest.raises(UserError, match="belong together"):
        read_texts(tmp_path / "a", None)
    with pytest.raises(UserError, match="cannot be read"):
        read_texts(tmp_path / "a", tmp_path / "absent")
    with pytest.raises(UserError, match="have no text"):
        make_plan(data, texts={"x": "y"})
