"""Sheets for raters: blind, complete, never overwritten; a study from sheets to result."""

import csv

import pytest

from longtake.evaluation.model_comparison import ComparisonSettings
from longtake.evaluation.mos import MosSettings
from longtake.evaluation.mos_assign import write_assignments
from longtake.evaluation.mos_files import mos_from_files
from longtake.evaluation.mos_protocol import ProtocolConfig
from longtake.evaluation.rating_import import import_ratings
from longtake.evaluation.samples import Sample, read_samples, write_samples
from longtake.runtime.errors import UserError

RATERS = ["ann", "bob", "cy", "dee", "eve", "flo"]


@pytest.fixture
def study(tmp_path):
    samples = []
    for p in range(6):
        for model in ("wan", "veo"):
            name = f"{model}-{p}.mp4"
            (tmp_path / name).write_bytes(name.encode())
            samples.append(
                Sample(
                    sample=f"s{p}{model[0]}",
                    model=model,
                    prompt=f"p{p}",
                    caption=f"caption {p}",
                    video=name,
                )
            )
    return write_samples(tmp_path / "samples.csv", samples)


def settings(scope="video"):
    return MosSettings(
        dimensions=("overall", "motion_quality"),
        protocol=ProtocolConfig(scope=scope),
        comparison=ComparisonSettings(resamples=200),
    )


def fill(sheet, score):
    """Fill in a sheet; `score` maps (sample, rater, dimension) to a number."""
    rows = list(csv.DictReader(sheet.read_text().splitlines()))
    for row in rows:
        if "score" in row:
            row["score"] = score(row["sample"], row["rater"], row["dimension"])
        else:
            for dimension in ("overall", "motion_quality"):
                row[dimension] = score(row["sample"], row["rater"], dimension)
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return rows


def score(sample, rater, dimension):
    base = 4 if sample.endswith("v") else 2  # veo is better
    disputed = sample == "s3w" and dimension == "overall"
    return base + (2 if disputed and rater in ("ann", "bob", "cy", "dee") else 0)


@pytest.mark.parametrize("scope", ["video", "dimension"])
def test_a_study_from_sheets_to_result(tmp_path, study, scope):
    log = tmp_path / "ratings.jsonl"
    samples = read_samples(study)
    rounds = 0
    while True:
        report = write_assignments(
            samples, [log] if log.exists() else [], settings(scope), RATERS,
            tmp_path / f"round{rounds}",
        )  # fmt: skip
        if not report.sheets:
            break
        rounds += 1
        for sheet in report.sheets:
            rows = fill(sheet, score)
            for row in rows:
                assert "wan" not in row["video"] and "veo" not in row["video"]
                video = (sheet.parent / row["video"]).read_bytes().decode()
                assert video[0] == row["sample"][-1] and row["caption"].startswith("caption")
            imported = import_ratings(sheet, log, settings().dimensions)
            assert imported.known == 0 and imported.findings == ()
            again = import_ratings(sheet, log, settings().dimensions)
            assert (again.added, again.known) == (0, imported.added)
    assert rounds == 2 and report.status.still_needed == 0
    assert report.status.escalated == 1
    result = mos_from_files([log], settings(scope), samples=study)
    # These raters follow a rule, so some fit without any error.
    assert {f.kind for f in result.findings} <= {"rater biases that did not settle"}
    extra = 2 * (2 if scope == "video" else 1)
    assert result.n_ratings == 12 * 3 * 2 + extra
    assert result.comparison.mean_of("motion_quality", "veo").mean == 4.0
    assert all(d.better == "veo" for d in result.comparison.differences)


def test_sheets_are_never_overwritten(tmp_path, study):
    samples = read_samples(study)
    write_assignments(samples, [], settings(), RATERS, tmp_path / "round")
    with pytest.raises(UserError, match="may be filled in"):
        write_assignments(samples, [], settings(), RATERS, tmp_path / "round")


def test_missing_videos_and_lacking_raters_are_reported(tmp_path, study):
    (tmp_path / "wan-0.mp4").unlink()
    report = write_assignments(
        read_samples(study), [], settings(), ["ann", "bob"], tmp_path / "round"
    )
    assert {f.kind: f.count for f in report.findings} == {"missing video": 1, "too few raters": 11}
    assert report.rows == 2 * 11
    assert report.status.states["waiting"] == 12


@pytest.mark.parametrize("raters", [[], ["ann", "ann"]])
def test_raters_without_sense_are_refused(tmp_path, study, raters):
    with pytest.raises(UserError, match="raters cannot be used"):
        write_assignments(read_samples(study), [], settings(), raters, tmp_path / "round")


def test_a_correction_is_appended_and_reported(tmp_path, study):
    log, sheet = tmp_path / "log.jsonl", tmp_path / "s.csv"
    sheet.write_text("sample,rater,overall\ns0w,ann,2\ns0v,ann,4\n")
    import_ratings(sheet, log, ("overall",))
    sheet.write_text("sample,rater,overall\ns0w,ann,3\ns0v,ann,4\n")
    report = import_ratings(sheet, log, ("overall",))
    assert (report.added, report.known) == (1, 1)
    assert report.findings[0].items == ("ann on overall of s0w: 3.0, before 2.0",)
    result = mos_from_files([log], settings(), samples=study)
    assert result.comparison.mean_of("overall", "wan").mean == 3.0
    assert "contradictory ratings" in {f.kind for f in result.findings}


def test_a_file_without_an_answer_is_reported(tmp_path):
    saved = tmp_path / "saved.jsonl"
    saved.write_bytes(b"")
    report = import_ratings(saved, tmp_path / "log.jsonl", ("overall",))
    assert report.added == 0
    assert [finding.kind for finding in report.findings] == ["file without an answer"]
