"""The commands: from files to tables, figures and JSON; errors by exit code; light --help."""

import csv
import json
import subprocess
import sys
import typing

import pytest
import torch
import typer
from typer.testing import CliRunner

from longtake.commands import evaluate_gsb, evaluate_mos, evaluate_ratings, rating_options
from longtake.commands.options import Commands
from longtake.core.video import write_mp4
from longtake.evaluation import dimensions, mos_protocol, rating_checks
from longtake.evaluation.gsb_plan import read_key
from longtake.evaluation.records import append_ratings, read_log
from longtake.evaluation.samples import Sample, write_samples
from longtake.evaluation.simulated_raters import SimulatedStudy, rater_pool, simulate_answers

app = typer.Typer(cls=Commands)
app.add_typer(evaluate_mos.mos, name="mos")
app.add_typer(evaluate_gsb.gsb, name="gsb")
for name in ("rescore", "power"):
    app.command(name)(getattr(evaluate_ratings, f"{name}_command"))


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "250"})
    if result.exit_code != code and result.exception:
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def study(tmp_path):
    run("mos", "simulate", "--output-dir", tmp_path / "study", "--model", "A=4", "--model", "B=3",
        "--prompts", 20)  # fmt: skip
    return tmp_path / "study"


def report(study, *more, code=0):
    return run(
        "mos", "report", "--ratings", study / "ratings.jsonl", "--samples", study / "samples.csv",
        "--resamples", 500, *more, code=code,
    )  # fmt: skip


def test_mos_report_prints_and_writes(study, tmp_path):
    shown = report(study, "--output-dir", tmp_path / "out", "--title", "Study")
    for text in ("Mean opinion scores", "Differences", "Agreement", "Protocol",
                 "a. escalation_threshold", "g. prompt_length", "Text-Alignment"):  # fmt: skip
        assert text in shown
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"mos.json", "mos.png", "mos_means.csv", "mos_raters.csv", "mos_options.csv"} <= files
    assert "mos_findings.csv" not in files
    record = json.loads((tmp_path / "out" / "mos.json").read_text())
    assert record["kind"] == "mos" and record["models"] == ["A", "B"]
    assert all(len(d) == 64 for d in record["inputs"].values()) and len(record["inputs"]) == 2
    with (tmp_path / "out" / "mos_means.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and all(row["n_videos"] == "20" for row in rows)
    assert all(float(r["mean"]) == m["mean"] for r, m in zip(rows, record["means"], strict=True))


def test_mos_report_as_json_only(study):
    record = json.loads(report(study, "--json", "--confidence", "0.9"))
    assert record["settings"]["comparison"]["confidence"] == 0.9
    better = {d["better"] for d in record["differences"]}
    assert better == {"A"}


def test_findings_are_printed_and_written(study, tmp_path):
    log = study / "ratings.jsonl"
    with log.open("a") as file:
        file.write('{"sample": "s99", "dimension": "overall", "rater": "x", "score": 3}\n{"sam')
    shown = report(study, "--output-dir", tmp_path / "out")
    assert "! torn last line (1" in shown and "! sample that is not in the list (1" in shown
    assert "s99" in (tmp_path / "out" / "mos_findings.csv").read_text()


def test_merging_a_judge(study, tmp_path):
    from longtake.evaluation.records import Rating

    scores = tmp_path / "judge.jsonl"
    append_ratings(
        scores,
        [
            Rating(sample=f"x{p}{m}", dimension=d, rater="judge@1", kind="automatic", model=m,
                   prompt=f"auto{p}", score=3.0 + 0.01 * p, provenance={"calibration": "iso"})
            for p in range(20) for m in "AB" for d in ("text_alignment", "visual_quality")
        ],
    )  # fmt: skip
    record = json.loads(report(study, "--automatic", scores, "--json"))
    merged = {(m["dimension"], m["model"]): m for m in record["merged"]}
    cell = merged["text_alignment", "A"]
    assert cell["merged"] == pytest.approx((2 * cell["human"] + 3.095) / 3)
    assert merged["overall", "A"]["merged"] is None
    assert merged["overall", "A"]["refused"] == "no judge for this dimension"
    assert merged["motion_quality", "A"]["refused"] == "no judge for this dimension"


def test_an_uncalibrated_judge_and_mixed_files_are_refused(study, tmp_path):
    from longtake.evaluation.records import Rating

    scores = tmp_path / "judge.jsonl"
    append_ratings(scores, [Rating(sample="x", dimension="overall", rater="j", kind="automatic",
                                   model="A", prompt="p", score=3.0)])  # fmt: skip
    assert "not calibrated" in report(study, "--automatic", scores, code=2)
    shown = run("mos", "report", "--ratings", scores, code=2)
    assert "--automatic" in shown


def test_errors_have_no_traceback(tmp_path):
    shown = run("mos", "report", "--ratings", tmp_path / "absent.jsonl", code=2)
    assert "error: cannot read the records" in shown
    shown = run("mos", "report", "--ratings", tmp_path / "absent.jsonl", "--threshold", 0, code=2)
    assert "protocol cannot be used" in shown


def test_assign_and_score(tmp_path, study):
    shown = run("mos", "assign", "--samples", study / "samples.csv", "--rater", "ann", "--rater",
                "bob", "--rater", "cy", "--output-dir", tmp_path / "r1")  # fmt: skip
    assert "40 waiting" in shown and "sheet-ann.csv" in shown
    sheet = tmp_path / "r1" / "sheet-ann.csv"
    rows = list(csv.DictReader(sheet.read_text().splitlines()))
    for row in rows:
        row |= dict.fromkeys(dimensions.TASKS["t2v"], "3")
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    arguments = ("mos", "score", "--sheet", sheet, "--ratings", tmp_path / "log.jsonl")
    assert "160 ratings added" in run(*arguments)
    assert "0 ratings added" in run(*arguments) and "160 were there already" in run(*arguments)
    shown = run("mos", "report", "--ratings", tmp_path / "log.jsonl", "--samples",
                study / "samples.csv", "--resamples", 200)  # fmt: skip
    assert "rater with one answer only (4" in shown
    assert "video with fewer raters than the protocol asks (40" in shown


@pytest.fixture
def plan(tmp_path):
    samples = [
        Sample(sample=f"s{p * 2 + m + 1:05d}", model=name, prompt=f"p{p + 1:04d}")
        for p in range(30) for m, name in enumerate("AB")
    ]  # fmt: skip
    listed = write_samples(tmp_path / "samples.csv", samples)
    shown = run("gsb", "plan", "--samples", listed, "--reference", "A", "--output-dir",
                tmp_path / "plan", "--dimension", "overall")  # fmt: skip
    assert shown.startswith("30 pairs")
    return tmp_path / "plan"


def test_gsb_from_plan_to_report(plan, tmp_path):
    study = SimulatedStudy(
        quality={"A": {"overall": 4.2}, "B": {"overall": 3.0}}, raters=rater_pool(6), num_prompts=30
    )
    words = {1.0: "left", 0.0: "same", -1.0: "right"}
    answers = {a.sample: words[a.score] for a in simulate_answers(study, read_key(plan))}
    sheet = plan / "sheet.csv"
    rows = list(csv.DictReader(sheet.read_text().splitlines()))
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"overall": answers[row["sample"]]} for row in rows)
    score = ("gsb", "score", plan, "--answers", sheet, "--rater", "ann", "--dimension", "overall")
    assert "30 answers added" in run(*score)
    assert "0 answers added" in run(*score)
    shown = run("gsb", "report", plan, "--dimension", "overall", "--output-dir", tmp_path / "out")
    for text in ("A vs B", "better", "Bradley-Terry", "Position bias", "f. gsb_formula"):
        assert text in shown
    record = json.loads((tmp_path / "out" / "gsb.json").read_text())
    (count,) = record["counts"]
    assert count["good"] + count["same"] + count["bad"] == 30 and count["different"]
    assert (tmp_path / "out" / "gsb.png").stat().st_size > 5000
    by_json = json.loads(run("gsb", "report", plan, "--dimension", "overall", "--json"))
    assert by_json["counts"] == record["counts"]


def test_gsb_without_key_or_answers_is_refused(plan, tmp_path):
    assert "cannot read the records" in run("gsb", "report", plan, code=2)
    (tmp_path / "s.csv").write_text("sample,rater,overall\np1,a,left\n")
    shown = run("gsb", "score", tmp_path, "--answers", tmp_path / "s.csv", code=2)
    assert "key.jsonl" in shown and not (tmp_path / "answers.jsonl").exists()


def test_rescore_command(tmp_path):
    frames = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    write_mp4(frames, tmp_path / "v.mp4", fps=8)
    listed = write_samples(
        tmp_path / "s.csv", [Sample(sample="s", model="A", prompt="p", video="v.mp4")]
    )
    arguments = ("rescore", "--samples", listed, "--reward", "motion_quality", "--device", "cpu",
                 "--output", tmp_path / "log.jsonl")  # fmt: skip
    assert "1 scores added" in run(*arguments)
    assert "0 scores added" in run(*arguments)
    (rating,), _ = read_log(tmp_path / "log.jsonl")
    assert rating.dimension == "motion_quality" and rating.kind == "automatic"
    (tmp_path / "v.mp4").unlink()
    assert "1 without a score" in run(*arguments, code=1)


def test_power_command():
    assert "503 prompts" in run("power", "mos", "--effect", 0.1)
    assert "win share of 56.2%" in run("power", "gsb", "-n", 500)
    assert "one of size and effect" in run("power", "gsb", code=2)


def test_repeated_names_match_their_owners():
    assert set(typing.get_args(rating_options.Task)) == set(dimensions.TASKS)
    assert typing.get_args(rating_options.Scope) == typing.get_args(mos_protocol.Scope)
    assert typing.get_args(rating_options.Contradictions) == typing.get_args(
        rating_checks.Contradictions
    )


def heavy_modules(code):
    script = (
        f"import sys\n{code}\n"
        "heavy = {'torch', 'numpy', 'pandas', 'scipy', 'matplotlib', 'evalica'}\n"
        "print('HEAVY', sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_help_imports_nothing_heavy():
    code = (
        "import typer\nfrom typer.testing import CliRunner\n"
        "from longtake.commands import evaluate_ratings\n"
        "from longtake.commands.evaluate_gsb import gsb\n"
        "from longtake.commands.evaluate_mos import mos\n"
        "app = typer.Typer(); app.add_typer(mos, name='mos'); app.add_typer(gsb, name='gsb')\n"
        "for a in (['mos'], ['mos', 'report'], ['gsb', 'plan']):\n"
        "    r = CliRunner().invoke(app, [*a, '--help']); assert r.exit_code == 0, r.output\n"
    )
    assert heavy_modules(code) == "HEAVY []"


def test_aggregation_needs_no_torch_and_mos_no_scipy():
    assert "torch" not in heavy_modules("import longtake.evaluation.gsb_files")
    assert heavy_modules("import longtake.evaluation.mos_files") == "HEAVY ['numpy', 'pandas']"
