"""`eval mos`, `gsb`, `bench`, `rescore`, `power`: files in, tables and files out; light --help."""

import csv
import json
import subprocess
import sys
import typing

import pytest
import torch
import typer
from typer.testing import CliRunner

from longtake.commands import evaluate as commands
from longtake.commands.options import Commands
from longtake.core.video import write_mp4
from longtake.evaluation import benchmark
from longtake.evaluation.dimensions import TASKS
from longtake.evaluation.gsb_plan import read_key
from longtake.evaluation.ratings import (
    Rating,
    Sample,
    append_ratings,
    read_ratings,
    write_samples,
)
from longtake.sandbox.raters import SimulatedStudy, rater_pool, simulate_answers

app = typer.Typer(cls=Commands)
app.add_typer(commands.evaluate, name="eval")


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["eval", *map(str, arguments)], env={"COLUMNS": "250"})
    if result.exit_code != code and result.exception:
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def fill(sheet, cells):
    """Fill in a sheet; ``cells`` maps a row to the columns to set."""
    rows = list(csv.DictReader(sheet.read_text().splitlines()))
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | cells(row) for row in rows)


@pytest.fixture
def study(tmp_path):
    run("mos", "simulate", "--output-dir", tmp_path / "study", "--model", "A=4", "--model", "B=3",
        "--prompts", 20)  # fmt: skip
    return tmp_path / "study"


def report(study, *more, code=0):
    return run(
        "mos", "report", "--ratings", study / "ratings.jsonl", "--samples", study / "samples.csv",
        "--set", "comparison.resamples=500", *more, code=code,
    )  # fmt: skip


def test_mos_report_prints_and_writes(study, tmp_path):
    shown = report(study, "--output-dir", tmp_path / "out")
    for text in ("Mean opinion scores", "Differences", "Agreement", "Protocol", "Text-Alignment"):
        assert text in shown
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"mos.json", "mos.png", "mos_means.csv", "mos_raters.csv"} <= files
    assert "mos_findings.csv" not in files
    record = json.loads((tmp_path / "out" / "mos.json").read_text())
    assert record["kind"] == "mos" and record["models"] == ["A", "B"]
    assert all(len(d) == 64 for d in record["inputs"].values()) and len(record["inputs"]) == 2
    with (tmp_path / "out" / "mos_means.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and all(row["n_samples"] == "20" for row in rows)
    assert all(float(r["mean"]) == m["mean"] for r, m in zip(rows, record["means"], strict=True))
    record = json.loads(report(study, "--json", "--set", "comparison.confidence=0.9"))
    assert record["settings"]["comparison"]["confidence"] == 0.9
    assert {d["better"] for d in record["differences"]} == {"A"}


def test_findings_are_printed_and_written(study, tmp_path):
    with (study / "ratings.jsonl").open("a") as file:
        file.write('{"sample": "s99", "dimension": "overall", "rater": "x", "score": 3}\n')
    shown = report(study, "--output-dir", tmp_path / "out")
    assert "! sample that is not in the list (1" in shown
    assert "s99" in (tmp_path / "out" / "mos_findings.csv").read_text()


def judge_scores(path, **provenance):
    append_ratings(
        path,
        [
            Rating(sample=f"x{p}{m}", dimension=d, rater="judge@1", kind="automatic", model=m,
                   prompt=f"auto{p}", score=3.0 + 0.01 * p, provenance=provenance)
            for p in range(20) for m in "AB" for d in ("text_alignment", "visual_quality")
        ],
    )  # fmt: skip
    return path


def test_merging_a_judge(study, tmp_path):
    scores = judge_scores(tmp_path / "judge.jsonl", calibration="iso")
    record = json.loads(report(study, "--automatic", scores, "--json"))
    merged = {(m["dimension"], m["model"]): m for m in record["merged"]}
    cell = merged["text_alignment", "A"]
    assert cell["merged"] == pytest.approx((2 * cell["human"] + 3.095) / 3)
    assert merged["overall", "A"]["merged"] is None
    assert merged["overall", "A"]["refused"] == "no judge for this dimension"


def test_wrong_use_ends_with_code_2_and_says_what_to_do(study, tmp_path):
    scores = judge_scores(tmp_path / "judge.jsonl")
    absent = ("mos", "report", "--ratings", tmp_path / "absent.jsonl")
    for arguments, message in (
        (absent, "error: cannot read the records"),
        ((*absent, "--set", "protocol.threshold=0"), "threshold"),
        (("mos", "report", "--ratings", scores), "--automatic"),
        (("gsb", "report", tmp_path), "key.jsonl"),
        (("power", "gsb"), "one of size and effect"),
        (("bench", "list", "--category", "drama"), "no prompt of this category"),
    ):
        assert message in run(*arguments, code=2)
    assert "not calibrated" in report(study, "--automatic", scores, code=2)


def test_a_study_from_folders_of_videos(tmp_path):
    frames = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for model in ("wan", "veo"):
        for name in ("a cat", "a dog"):
            write_mp4(frames, tmp_path / "videos" / model / f"{name}.mp4", fps=8)
    raters = [part for name in ("ann", "bob", "cy") for part in ("--rater", name)]
    shown = run("mos", "assign", "--samples", tmp_path / "videos", *raters, "--output-dir",
                tmp_path / "r1")  # fmt: skip
    assert "4 waiting" in shown and "page-ann.html (videos inside)" in shown
    log = tmp_path / "log.jsonl"
    for name in ("ann", "bob", "cy"):
        sheet = tmp_path / "r1" / f"sheet-{name}.csv"
        assert not any(word in sheet.read_text() for word in ("wan", "veo"))
        fill(sheet, lambda row: dict.fromkeys(TASKS["t2v"], "3"))
        score = ("mos", "score", "--sheet", sheet, "--ratings", log)
        assert "16 ratings added" in run(*score)
        assert "0 ratings added" in run(*score)
    record = json.loads(run("mos", "report", "--ratings", log, "--samples", tmp_path / "videos",
                            "--json"))  # fmt: skip
    assert set(record["models"]) == {"wan", "veo"} and record["n_ratings"] == 48
    assert all(m["mean"] == 3.0 and m["n_prompts"] == 2 for m in record["means"])
    assert record["protocol"]["states"]["agreed"] == 4


def test_gsb_from_plan_to_report(tmp_path):
    samples = [
        Sample(sample=f"s{p * 2 + m + 1:05d}", model=name, prompt=f"p{p + 1:04d}")
        for p in range(30) for m, name in enumerate("AB")
    ]  # fmt: skip
    plan, own = tmp_path / "plan", ("--dimension", "overall")
    listed = write_samples(tmp_path / "samples.csv", samples)
    shown = run("gsb", "plan", "--samples", listed, "--reference", "A", "--output-dir", plan, *own)
    assert shown.startswith("30 pairs")
    study = SimulatedStudy(
        quality={"A": {"overall": 4.2}, "B": {"overall": 3.0}}, raters=rater_pool(6), num_prompts=30
    )
    words = {1.0: "left", 0.0: "same", -1.0: "right"}
    answers = {a.sample: words[a.score] for a in simulate_answers(study, read_key(plan))}
    fill(plan / "sheet.csv", lambda row: {"overall": answers[row["sample"]]})
    score = ("gsb", "score", plan, "--answers", plan / "sheet.csv", "--rater", "ann", *own)
    assert "30 answers added" in run(*score)
    assert "0 answers added" in run(*score)
    shown = run("gsb", "report", plan, *own, "--output-dir", tmp_path / "out")
    for text in ("A vs B", "better", "Bradley-Terry", "Position bias"):
        assert text in shown
    record = json.loads((tmp_path / "out" / "gsb.json").read_text())
    (count,) = record["counts"]
    assert count["good"] + count["same"] + count["bad"] == 30 and count["different"]
    assert (tmp_path / "out" / "gsb.png").stat().st_size > 5000
    assert json.loads(run("gsb", "report", plan, *own, "--json"))["counts"] == record["counts"]


def test_rescore(tmp_path):
    frames = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    write_mp4(frames, tmp_path / "v.mp4", fps=8)
    listed = write_samples(
        tmp_path / "s.csv", [Sample(sample="s", model="A", prompt="p", video="v.mp4")]
    )
    arguments = ("rescore", "--samples", listed, "--reward", "motion_quality", "--device", "cpu",
                 "--output", tmp_path / "log.jsonl")  # fmt: skip
    assert "1 scores added" in run(*arguments)
    assert "0 scores added" in run(*arguments)
    (rating,), _ = read_ratings([tmp_path / "log.jsonl"])
    assert rating.dimension == "motion_quality" and rating.kind == "automatic"
    (tmp_path / "v.mp4").unlink()
    assert "1 without a score" in run(*arguments, code=1)


def test_power():
    assert "503 prompts" in run("power", "mos", "--effect", 0.1)
    assert "win share of 56.2%" in run("power", "gsb", "-n", 500)


def test_bench_lists_and_samples():
    rows = [line.replace("│", " ").split() for line in run("bench", "list").splitlines()]
    assert ["t2v_human", "500"] in rows and ["t2v_auto", "728"] in rows and ["i2v", "400"] in rows
    assert any(row[:2] == ["entity_generation", "196"] for row in rows)
    listed = run("bench", "list", "--category", "inductive_reasoning").splitlines()
    assert listed and all(line.startswith("t2v-") for line in listed)
    plain = run("bench", "sample", 3, "--seed", 4).splitlines()
    full = map(json.loads, run("bench", "sample", 3, "--seed", 4, "--json").splitlines())
    assert plain == [record["prompt"] for record in full] and len(plain) == 3


def test_bench_renders_listed_images(tmp_path):
    lines = (benchmark.INTERNAL_SUITE / benchmark.IMAGES_FILE).read_text().splitlines()
    small = next(line for line in lines if '"720p"' in line)
    (tmp_path / benchmark.IMAGES_FILE).write_text(small + "\n")
    out = tmp_path / "out"
    arguments = ("bench", "render-images", "--out", out, "--dir", tmp_path)
    assert "1 images" in run(*arguments, "--resolution", "720p")
    assert (out / json.loads(small)["file"]).is_file()


def test_repeated_names_match_their_owners():
    def names(kind):
        return set(typing.get_args(kind))

    assert names(typing.get_args(commands.Task)[0]) == set(TASKS)
    assert names(commands.TextSet) == names(benchmark.TextSet)
    assert names(commands.Resolution) == {"listed", *names(benchmark.Resolution)}


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


def test_help_imports_nothing_heavy_and_aggregation_no_torch():
    code = (
        "from typer.testing import CliRunner\n"
        "from longtake.commands.evaluate import evaluate\n"
        "for a in (['mos'], ['mos', 'report'], ['gsb', 'plan'], ['bench', 'sample']):\n"
        "    r = CliRunner().invoke(evaluate, [*a, '--help']); assert r.exit_code == 0, r.output\n"
    )
    assert heavy_modules(code) == "HEAVY []"
    code = "import longtake.evaluation.mos, longtake.evaluation.gsb, longtake.evaluation.benchmark"
    assert "torch" not in heavy_modules(code)
