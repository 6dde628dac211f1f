"""`eval report` and `eval compare` as typed."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from longtake.commands.evaluate_report import compare_command, report_command
from longtake.evaluation.dimensions import dimension_names
from longtake.evaluation.simulated_raters import SimulatedStudy, rater_pool, write_study
from longtake.runtime.errors import UserError

app = typer.Typer()
app.command("report")(report_command)
app.command("compare")(compare_command)


def study(folder: Path) -> Path:
    dimensions = dimension_names("t2v", ["overall"])
    truth = {name: dict.fromkeys(dimensions, value) for name, value in (("A", 4.2), ("B", 2.4))}
    made = SimulatedStudy(quality=truth, raters=rater_pool(8, 0), num_prompts=20)
    write_study(made, folder / "study")
    (folder / "study" / "odd.xyz").write_text("?")
    return folder / "study"


def test_report_writes_and_names_its_files(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    options = ["--inputs", str(study(tmp_path)), "--output", str(page), "--resamples", "200"]
    result = CliRunner().invoke(app, ["report", *options, "--title", "Mine"])
    assert result.exit_code == 0, result.output
    for name in ("page.html", "page.md", "page.json", "page_figures/mos-1.png"):
        assert (tmp_path / name).is_file()
    assert "<title>Mine</title>" in page.read_text()
    assert "file of unknown kind" in result.output and "odd.xyz" in result.output


def test_compare_answers_on_the_screen(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    options = ["--inputs", str(study(tmp_path)), "--output", str(page), "--resamples", "200"]
    result = CliRunner().invoke(app, ["compare", "A", "B", *options])
    assert result.exit_code == 0, result.output
    sentence = result.output.splitlines()[0]
    assert sentence == "A is better than B on overall (people)."
    assert f"<strong>{sentence}</strong>" in page.read_text()


def test_wrong_input_leaves_no_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["compare", "A", "B", "--output", str(page)])
    assert isinstance(result.exception, UserError)
    with pytest.raises(UserError, match=r"ends in \.html"):
        CliRunner().invoke(
            app,
            ["compare", "A", "B", "--output", str(tmp_path / "page.txt")],
            catch_exceptions=False,
        )
    assert not list(tmp_path.iterdir())
