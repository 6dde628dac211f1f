"""Files that pages saved in a real browser (by test_browser.py): into logs and results."""

import json
from pathlib import Path

import pytest

from longtake.evaluation.comparison import ComparisonSettings
from longtake.evaluation.gsb import GsbSettings, gsb_from_files, read_answer
from longtake.evaluation.gsb_plan import plan_pairs, plan_study, write_plan
from longtake.evaluation.mos import MosSettings, mos_from_files
from longtake.evaluation.ratings import import_ratings, read_ratings
from longtake.runtime.errors import UserError

DATA = Path(__file__).parents[2] / "data"
MOS, GSB = DATA / "saved_mos.jsonl", DATA / "saved_gsb.jsonl"
DIMENSIONS = ("text_alignment", "overall")
SETTINGS = MosSettings(dimensions=DIMENSIONS, comparison=ComparisonSettings(resamples=100))


def kinds(findings):
    return {finding.kind: finding.items for finding in findings}


def test_a_half_filled_page_comes_in_with_its_provenance(tmp_path):
    log = tmp_path / "ratings.jsonl"
    report = import_ratings(MOS, log, DIMENSIONS)
    assert (report.added, report.present) == (6, 0)
    (half,) = kinds(report.findings)["page that is not finished"]
    assert half.startswith("ann: 6 of 8 answers (page ")
    given, findings = read_ratings([log])
    assert findings == () and [r.score for r in given] == [2, 5, None, 2, 3, 3]
    assert given[2].reason == "café </script>"
    for rating in given:
        assert rating.time.endswith("Z") and rating.provenance["seconds"] > 0
        assert rating.provenance["plays"] >= 1 and rating.provenance["format"] == 1
    assert [r.provenance["position"] for r in given] == [1, 1, 2, 2, 3, 3]
    assert given[0].provenance["revision"] == 1 and given[4].provenance["comment"] == "slow"
    again = import_ratings(MOS, log, DIMENSIONS)
    assert (again.added, again.present) == (0, 6)


def test_opaque_ids_find_their_samples(make_list, tmp_path):
    listed = make_list()
    result = mos_from_files([MOS], SETTINGS, samples=tmp_path / "samples.csv")
    assert result.n_ratings == 5 and set(result.models) == {"wan", "veo"}
    assert "sample that is not in the list" not in kinds(result.findings)
    given, _ = read_ratings([MOS])
    real = [listed.real_names[rating.sample] for rating in given]
    unrated = {item.sample for item in listed.samples} - set(real)
    assert len(unrated) == 1  # the clip that was skipped
    assert any(unrated.pop() in text for text in kinds(result.findings)["sample without a rating"])


def test_a_damaged_or_edited_file_says_what_is_wrong(make_list, tmp_path):
    make_list()
    lines = MOS.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    records[0]["score"] = 7
    records[1]["score"] = "great"
    records[3]["dimension"] = "charm"
    records[4]["sample"] = "0123456789ab"
    edited = tmp_path / "edited.jsonl"
    text = "".join(json.dumps(record) + "\n" for record in (*records, records[5]))
    edited.write_text(text + lines[5][:40])
    with pytest.warns(UserWarning, match="torn last line"):
        report = import_ratings(edited, tmp_path / "log.jsonl", DIMENSIONS)
    assert set(kinds(report.findings)) == {
        "record that is not a rating", "page that is not finished",
    }  # fmt: skip
    assert (report.added, report.present) == (5, 1)
    with pytest.warns(UserWarning, match="torn last line"):
        result = mos_from_files([edited], SETTINGS, samples=tmp_path / "samples.csv")
    found = kinds(result.findings)
    for kind in (
        "score that is not a whole number from 1 to 5", "unknown dimension",
        "sample that is not in the list", "duplicate rating", "rating without a score",
    ):  # fmt: skip
        assert len(found[kind]) == 1, kind
    assert result.n_ratings == 1


def test_a_correction_and_a_new_comment_are_kept(tmp_path):
    log, later = tmp_path / "log.jsonl", tmp_path / "later.jsonl"
    import_ratings(MOS, log, DIMENSIONS)
    records = [json.loads(line) for line in MOS.read_text().splitlines()]
    records[1]["score"] = 1
    records[3]["provenance"]["comment"] = "a comment"
    later.write_text("".join(json.dumps(record) + "\n" for record in records))
    report = import_ratings(later, log, DIMENSIONS)
    assert (report.added, report.present) == (2, 4)
    (changed,) = kinds(report.findings)["rating that contradicts the log"]
    assert changed.endswith("1.0, before 5.0")
    assert "a comment" in log.read_text()


def test_an_older_file_of_a_page_does_not_undo_corrections(tmp_path):
    log, later = tmp_path / "log.jsonl", tmp_path / "later.jsonl"
    records = [json.loads(line) for line in MOS.read_text().splitlines()]
    records[1] |= {"score": 1, "time": "2099-01-01T00:00:00.000Z"}
    later.write_text("".join(json.dumps(record) + "\n" for record in records))
    import_ratings(later, log, DIMENSIONS)
    report = import_ratings(MOS, log, DIMENSIONS)
    assert (report.added, report.present) == (0, 5)
    (item,) = kinds(report.findings)["answer corrected since on its page"]
    assert item.endswith("5.0, since then 1.0")
    assert read_ratings([log])[0][1].score == 1


@pytest.fixture
def plan(make_list, tmp_path):
    listed = make_list()
    pairs, _ = plan_pairs(listed, reference="wan", seed=0)
    write_plan(tmp_path / "plan", pairs, listed, DIMENSIONS)
    return tmp_path / "plan"


def test_answers_to_pairs_come_in(plan, tmp_path):
    result = gsb_from_files(plan, [GSB], DIMENSIONS, GsbSettings(resamples=100))
    assert result.n_answers == 3 and "rating without a score" in kinds(result.findings)
    position = result.position.set_index("dimension")[["left", "same", "right"]]
    assert position.loc["text_alignment"].tolist() == [1, 1, 0]
    assert position.loc["overall", "right"] == 1


def test_answers_to_another_plan_are_left_out(make_list, plan, tmp_path):
    pairs, _ = plan_pairs(make_list(), reference="wan", seed=1)  # the same ids, other sides
    log = tmp_path / "log.jsonl"
    report = import_ratings(GSB, log, DIMENSIONS, read_cell=read_answer, study=plan_study(pairs))
    assert report.added == 0 and not log.exists()
    assert len(kinds(report.findings)["answer from a page of another study"]) == 4
    other = tmp_path / "other"
    write_plan(other, pairs, make_list(), DIMENSIONS)
    with pytest.raises(UserError, match="page of another study"):
        gsb_from_files(other, [GSB], DIMENSIONS, GsbSettings(resamples=100))
    own, _ = plan_pairs(make_list(), reference="wan", seed=0)
    assert import_ratings(GSB, log, DIMENSIONS, study=plan_study(own)).added == 4
