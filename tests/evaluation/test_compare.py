"""Two score logs on one page: every kind of log, the numbers, and what the page may not hold."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from longtake.commands.evaluate import evaluate
from longtake.core.video import write_mp4
from longtake.evaluation.compare import (
    compare_logs,
    read_score_log,
    sentence,
    two_logs,
    write_comparison,
)
from longtake.evaluation.comparison import ComparisonSettings
from longtake.rewards.score_files import ScoreRow, write_table
from longtake.runtime.errors import UserError

EVIL = "A <script>alert('x')</script> & \"quoted\" prompt"
SETTINGS = ComparisonSettings(resamples=400)


def grpo_run(folder, quality, *, prompts=16, seed=0):
    """The held-out evaluation of a run: two samples of each prompt, clips of the first two."""
    rng = np.random.default_rng(seed)
    ease = np.random.default_rng(99).normal(0, 0.1, prompts)
    folder.mkdir(parents=True)
    records = []
    for i in range(prompts):
        for sample in range(2):
            scores = (quality + ease[i] + rng.normal(0, 0.05, 2)).tolist()
            reward = None if (i, sample) == (0, 1) else scores[1]
            records.append(
                {
                    "prompt_id": i,
                    "prompt": EVIL if i == 0 else f"prompt {i}",
                    "sample": sample,
                    "metrics": {"motion": scores[0]},
                    "rewards": {"videoalign_mq": reward},
                }
            )
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "held_out_after.jsonl").write_text(text)
    clips = torch.zeros(2, 3, 3, 16, 16, dtype=torch.uint8)
    save_file({"clips": clips}, folder / "held_out_after.safetensors")
    return folder


def compared(first, second):
    logs, _ = two_logs(str(first), str(second))
    rows, _ = compare_logs(*logs, SETTINGS)
    return {row.dimension: row for row in rows}


def test_two_grpo_runs(tmp_path):
    first, second = (
        grpo_run(tmp_path / name, quality, seed=seed)
        for name, quality, seed in (("tuned", 0.8, 1), ("base", 0.6, 2))
    )
    rows = compared(first, second)
    assert [rows["motion"].n_prompts, rows["motion"].n_samples] == [16, (32, 32)]
    assert rows["videoalign_mq"].n_samples == (31, 31)  # an unscored sample is no 0
    tables = [read_score_log([path]).table for path in (first, second)]
    means = [t[t["dimension"] == "motion"].groupby("prompt")["score"].mean() for t in tables]
    diff = means[0] - means[1]
    assert rows["motion"].diff == pytest.approx(diff.mean())
    error = diff.std(ddof=1) / 4  # the bootstrap's is smaller by sqrt(15 / 16)
    assert rows["motion"].high - rows["motion"].low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert rows["motion"].way == "first" and rows["motion"].p < 0.01
    back = compared(second, first)["motion"]
    assert back.way == "second" and back.diff == pytest.approx(-rows["motion"].diff)
    assert compared(first, first)["motion"].way == "none"


def test_few_prompts_are_too_few_to_tell(tmp_path):
    runs = [grpo_run(tmp_path / f"{q}", q, prompts=9, seed=1) for q in (0.9, 0.1)]
    rows = compared(*runs)
    assert {row.way for row in rows.values()} == {"few"}
    words = sentence(list(rows.values()), ("a", "b"))
    assert words == "Too few to tell: 9 shared prompts, 10 are the least."


def reward_table(path, scores):
    """As `rewards score` writes it."""
    name = "hpsv3_general"
    rows = [
        ScoreRow(
            path=f"clip{i}.mp4", prompt=f"prompt {i}", fps=8.0, frames=17, scores={name: score},
            unscored={name: "broken"} if score is None else {}, settings="x", digest="y",
        )
        for i, score in enumerate(scores)
    ]  # fmt: skip
    write_table(path, [name], rows)
    return path


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_tables_of_rewards(tmp_path, ending):
    values = np.random.default_rng(0).normal(5, 1, 20).tolist()
    first = reward_table(tmp_path / f"a.{ending}", [*values[:-1], None])
    second = reward_table(tmp_path / f"b.{ending}", [value + 1 for value in values])
    row = compared(first, second)["hpsv3_general"]
    assert row.n_prompts == 19 and row.diff == pytest.approx(-1.0) and row.way == "second"
    log = read_score_log([first])
    assert [finding.items for finding in log.findings] == [("1 of a, hpsv3_general",)]


@pytest.fixture
def study(tmp_path):
    """Ratings of two models with clips, and the scores of a judge."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "study"
    clip = write_mp4(torch.zeros(3, 3, 16, 16), folder / "videos" / "clip.mp4", 8.0)
    lines = ["sample,model,prompt,caption,video"]
    ratings, scores = [], []
    for i in range(12):
        for model, quality in (("A", 4), ("B", 2)):
            sample = f"{model}{i}"
            lines.append(f'{sample},{model},p{i},"caption {i}",videos/{sample}.mp4')
            (folder / "videos" / f"{sample}.mp4").write_bytes(clip.read_bytes())
            for rater in ("ann", "bob"):
                score = int(quality + rng.integers(0, 2))
                ratings.append(
                    {"sample": sample, "dimension": "overall", "rater": rater, "score": score}
                )
            judged = {"dimension": "motion_quality", "rater": "judge", "kind": "automatic"}
            scores.append({"sample": sample, **judged, "score": 10 * quality + i})
    (folder / "samples.csv").write_text("\n".join(lines) + "\n")
    for name, records in (("ratings", ratings), ("scores", scores)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def test_ratings_and_a_judge_of_one_study(study, tmp_path):
    page = tmp_path / "c.html"
    words = ["compare", "A", "B", "--output", str(page)]
    words += ["--inputs", str(study / "ratings.jsonl"), "--inputs", str(study / "samples.csv")]
    done = CliRunner(env={"COLUMNS": "120"}).invoke(evaluate, words)
    assert done.exit_code == 0, done.output
    assert "A is higher in Overall Quality." in done.output
    text = page.read_text()
    assert text.count("<video ") == 8 and "<h3>caption " in text  # four prompts, two models
    logs, names = two_logs("A", "B", [study])
    rows = {row.dimension: row for row in compare_logs(*logs, SETTINGS)[0]}
    assert names == ("A", "B")
    assert rows["motion_quality"].diff == 20 and rows["overall"].n_samples == (12, 12)


def test_the_page_is_one_file_without_foreign_code(tmp_path, tags_of):
    runs = [grpo_run(tmp_path / name, 0.5, seed=i) for i, name in enumerate(("A <b>", "B"))]
    logs, names = two_logs(*map(str, runs))
    write_comparison(*logs, names, tmp_path / "c.html", settings=SETTINGS)
    text = (tmp_path / "c.html").read_text()
    tags = tags_of(text)
    assert {name for name, _ in tags}.isdisjoint({"link", "iframe", "object", "b>"})
    assert [name for name, _ in tags].count("script") == 1  # ours: clips play together
    for _, attributes in tags:
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "<script>alert" not in text and "A &lt;b&gt;" in text
    assert [name for name, _ in tags].count("video") == 4  # two clips of each run


def test_what_cannot_be_compared(study, tmp_path):
    run = grpo_run(tmp_path / "run", 0.5)
    other = grpo_run(tmp_path / "other", 0.5)
    lines = (other / "held_out_after.jsonl").read_text().replace("prompt ", "another ")
    (other / "held_out_after.jsonl").write_text(lines.replace("A <", "B <"))
    table = reward_table(tmp_path / "t.csv", [1.0, 2.0])
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    reads = [
        (lambda: two_logs(str(run), "nobody"), "no such score log"),
        (lambda: two_logs(str(study), str(run)), "several models"),
        (lambda: two_logs(str(tmp_path / "notes.csv"), str(run)), "no score log"),
        (lambda: compared(run, other), "share no prompt"),
        (lambda: compared(run, table), "share no dimension"),
    ]
    for read, problem in reads:
        with pytest.raises(UserError, match=problem):
            read()
