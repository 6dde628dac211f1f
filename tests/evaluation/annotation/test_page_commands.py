"""The commands write pages beside the sheets and bring in what pages save."""

import json
from pathlib import Path

from typer.testing import CliRunner

from longtake.commands.evaluate import evaluate

DATA = Path(__file__).parents[2] / "data"
DIMENSIONS = ("--dimension", "text_alignment", "--dimension", "overall")


def run(*arguments):
    result = CliRunner().invoke(evaluate, [str(a) for a in arguments], env={"COLUMNS": "250"})
    assert result.exit_code == 0, result.output
    return result.output


def test_a_round_of_scores(make_list, tmp_path):
    make_list()
    listed, round1 = tmp_path / "samples.csv", tmp_path / "round1"
    raters = ("--rater", "ann", "--rater", "bob", "--rater", "c/y")
    shown = run("mos", "assign", "--samples", listed, *raters, *DIMENSIONS, "--output-dir", round1)
    assert shown.count("(videos inside)") == 3 and "page-c_y.html" in shown
    log = tmp_path / "ratings.jsonl"
    saved = DATA / "saved_mos.jsonl"
    shown = run("mos", "score", "--sheet", saved, "--ratings", log, *DIMENSIONS)
    assert "6 ratings added" in shown and "ann: 6 of 8 answers" in shown
    # The next round asks for what is left, and not again for what the page gave.
    again = tmp_path / "round2"
    run("mos", "assign", "--samples", listed, "--ratings", log, "--rater", "ann", *DIMENSIONS,
        "--output-dir", again, "--embed-mb", 0)  # fmt: skip
    data = (again / "page-ann.html").read_text().partition('id="study">')[2]
    study = json.loads(data.partition("</script>")[0])
    given = [json.loads(line) for line in saved.read_text().splitlines()]
    complete = {given[0]["sample"], given[4]["sample"]}
    left = {entry["id"] for entry in study["items"]}
    assert len(left) == 2 and not left & complete
    assert study["items"][0]["videos"][0].startswith("videos/")
    off = tmp_path / "sheets"
    run("mos", "assign", "--samples", listed, *raters, "--output-dir", off, "--no-page")
    assert not list(off.glob("*.html"))


def test_a_plan_of_pairs(make_list, tmp_path):
    make_list()
    plan = tmp_path / "plan"
    planned = ("gsb", "plan", "--samples", tmp_path / "samples.csv", "--reference", "wan",
               *DIMENSIONS, "--output-dir", plan)  # fmt: skip
    assert "page.html (videos inside)" in run(*planned)
    shown = run(*planned, "--rater", "ann", "--embed-mb", 0)
    assert "page-ann.html (send it with the folders beside it)" in shown
    shown = run("gsb", "score", plan, "--answers", DATA / "saved_gsb.jsonl", *DIMENSIONS)
    assert "4 answers added" in shown and "another study" not in shown
    other = tmp_path / "other"
    run(*planned[:-1], other, "--seed", 1)
    shown = run("gsb", "score", other, "--answers", DATA / "saved_gsb.jsonl", *DIMENSIONS)
    assert "0 answers added" in shown and "answer from a page of another study (4" in shown
