"""The how-tos are run as they are printed, and stay short."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(("page", "word"), [("how_to_preset", "8 videos"), ("how_to_metric", "")])
def test_the_how_to_works(
    page: str,
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.S)
    code = "".join(blocks)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page, "exec"), {})
    plan = capsys.readouterr().err
    assert "updates     24 of 8 prompts" in plan and word in plan
    if page == "how_to_preset":
        assert "learning_rate: 0.0003" in (tmp_path / "sharp.yaml").read_text()


def test_the_table_of_algorithm_1_names_code_that_is_there() -> None:
    table = (
        (DOCS / "grpo.md").read_text().partition("| line of Algorithm 1")[2].partition("\n\n")[0]
    )
    named = re.findall(r"`(\w+\.py)::([\w.]+)`", table)
    assert len(named) >= 14
    for file, name in named:
        source = (DOCS.parent / "grpo" / file).read_text()
        assert re.search(rf"(def|class) {name.rpartition('.')[2]}\b", source), (file, name)
