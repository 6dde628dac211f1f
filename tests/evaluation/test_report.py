"""The page holds the tables of the aggregations, names what was set aside, and escapes."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from longtake.commands.evaluate import evaluate
from longtake.evaluation.comparison import ComparisonSettings
from longtake.evaluation.gsb_plan import plan_pairs, write_plan
from longtake.evaluation.mos import MosSettings, mos_from_files, mos_tables
from longtake.evaluation.ratings import SampleList, append_ratings
from longtake.evaluation.report import write_report
from longtake.evaluation.vbench.results import parse_dimension, write_results
from longtake.evaluation.vbench.suites import VBENCH2
from longtake.runtime.errors import UserError
from longtake.sandbox.raters import (
    SimulatedStudy,
    rater_pool,
    simulate_answers,
    simulated_samples,
    write_study,
)

SETTINGS = ComparisonSettings(resamples=400)
DIMENSIONS = ("text_alignment", "overall")


@pytest.fixture
def folders(tmp_path):
    """A study, blind pairs and VBench results of models with an evil name."""
    truth = {"A <b>": 3.9, "B": 3.1}
    quality = {name: dict.fromkeys(DIMENSIONS, value) for name, value in truth.items()}
    study = SimulatedStudy(quality=quality, raters=rater_pool(8, 0), num_prompts=16)
    write_study(study, tmp_path / "study")
    listed = SampleList(samples=tuple(simulated_samples(study)), folder=tmp_path)
    pairs, _ = plan_pairs(listed, reference="B")
    write_plan(tmp_path / "pairs", pairs, listed, DIMENSIONS)
    append_ratings(tmp_path / "pairs" / "answers.jsonl", simulate_answers(study, pairs))
    values = np.random.default_rng(0).random(12)
    entries = [{"video_path": f"/x/p{i}-0.mp4", "video_results": v} for i, v in enumerate(values)]
    results = parse_dimension(VBENCH2.dimensions["Material"], None, entries)
    write_results(tmp_path / "vbench", results, {})
    return [tmp_path / "study", tmp_path / "pairs", tmp_path / "vbench"]


def test_one_page_of_everything(folders, tmp_path, tags_of):
    study = folders[0]
    with (study / "ratings.jsonl").open("a") as log:
        log.write('{"sample": "nowhere", "dimension": "overall", "rater": "r", "score": 3}\n')
    sections = write_report(folders, tmp_path / "r.html", settings=SETTINGS, title="<i>Mine</i>")
    text = (tmp_path / "r.html").read_text()
    assert [section.title.split(":")[0] for section in sections] == [
        "Mean opinion scores",
        "Good - same - bad",
        "VBench 2.0",
    ]
    mos = mos_from_files(
        [study / "ratings.jsonl"],
        MosSettings(dimensions=DIMENSIONS, comparison=SETTINGS),
        samples=study / "samples.csv",
    )
    for row in mos_tables(mos)[0].frame.itertuples(index=False):
        for cell in row[1:]:
            assert str(cell) in text
    assert "sample that is not in the list (1): set aside" in text
    tags = tags_of(text)
    names = {name for name, _ in tags}
    assert names.isdisjoint({"script", "link", "iframe", "b", "i"}) and "A &lt;b&gt;" in text
    loaded = [str(given[name]) for _, given in tags for name in ("src", "href") if name in given]
    assert len(loaded) == 2  # the figures
    assert all(address.startswith("data:image/png") for address in loaded)


def test_the_command_takes_files_of_one_study(folders, tmp_path):
    words = ["report", "--output", str(tmp_path / "r.html"), "--resamples", "200"]
    for name in ("ratings.jsonl", "samples.csv"):
        words += ["--inputs", str(folders[0] / name)]
    done = CliRunner().invoke(evaluate, words)
    assert done.exit_code == 0, done.output
    assert "Mean opinion scores" in (tmp_path / "r.html").read_text()
    with pytest.raises(UserError, match="no such input"):
        write_report([tmp_path / "absent"], tmp_path / "x.html", settings=SETTINGS, title="x")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "x.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(UserError, match="no VBench results"):
        write_report([tmp_path / "foreign"], tmp_path / "x.html", settings=SETTINGS, title="x")
    assert not (tmp_path / "x.html").exists()
