"""Plans of pairs: balanced, blind, repeatable; the key survives or is refused."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from longtake.evaluation.gsb_plan import plan_pairs, read_key, write_plan
from longtake.evaluation.ratings import Sample, SampleList, read_samples, write_samples
from longtake.runtime.errors import UserError


def listed(prompts=21, models="ABC", folder=Path("/nowhere"), **fields):
    return SampleList(
        samples=tuple(
            Sample(sample=f"{m}-{p}", model=m, prompt=f"p{p}", **fields)
            for m in models for p in range(prompts)
        ),
        folder=folder,
    )  # fmt: skip


def test_sides_are_balanced_for_every_two_models():
    pairs, findings = plan_pairs(listed(), seed=0)
    assert len(pairs) == 63 and findings == ()
    left = Counter((pair.reference, pair.rival, pair.left_model) for pair in pairs)
    for a, b in ("AB", "AC", "BC"):
        assert sorted((left[a, b, a], left[a, b, b])) == [10, 11]
    for pair in pairs:
        assert pair.left == f"{pair.left_model}-{pair.prompt[1:]}"
        assert pair.right == f"{pair.right_model}-{pair.prompt[1:]}"
        assert {pair.left_model, pair.right_model} == {pair.reference, pair.rival}


def test_the_order_hides_the_models_and_the_seed_fixes_it():
    pairs, _ = plan_pairs(listed(), seed=3)
    assert [pair.pair for pair in pairs] == [f"p{i:05d}" for i in range(1, 64)]
    assert plan_pairs(listed(), seed=3)[0] == pairs
    assert plan_pairs(listed(), seed=4)[0] != pairs
    rivals = [f"{pair.reference}{pair.rival}" for pair in pairs]
    assert rivals != sorted(rivals)
    # An odd pair is not always on the same side.
    first = [sum(p.left_model == "A" for p in plan_pairs(listed(1, "AB"), seed=s)[0])
             for s in range(30)]  # fmt: skip
    assert 5 < sum(first) < 25


def test_videos_without_partner_and_missing_files_are_reported(tmp_path):
    samples = list(listed(3, "AB", video="").samples)
    samples = [*samples[:5], Sample(sample="A-x", model="A", prompt="p0")]
    samples[1] = Sample(sample="A-1", model="A", prompt="p1", video="gone.mp4")
    pairs, findings = plan_pairs(SampleList(samples=tuple(samples), folder=tmp_path))
    assert [pair.prompt for pair in pairs] == ["p0"]
    assert {f.kind: len(f.items) for f in findings} == {
        "missing video": 1, "video without a partner": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [({"reference": "Z"}, "unknown model"), ({"rivals": ["Z"]}, "unknown model"),
     ({"rivals": ["A"]}, "no two models")],
)  # fmt: skip
def test_plans_that_cannot_be_made_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        plan_pairs(listed(), **options)


@pytest.fixture
def study(tmp_path):
    (tmp_path / "wan").mkdir()
    samples = []
    for model in ("wan", "veo"):
        for p in range(4):
            name = f"wan/{model}-{p}.mp4"
            (tmp_path / name).write_bytes(f"{model}{p}".encode())
            samples.append(
                Sample(sample=f"{model}-{p}", model=model, prompt=f"p{p}", caption="c,", video=name)
            )
    return read_samples(write_samples(tmp_path / "samples.csv", samples))


def test_what_raters_get_names_no_model(tmp_path, study):
    pairs, _ = plan_pairs(study)
    sheet = write_plan(tmp_path / "plan", pairs, study, ("overall",))
    text = sheet.read_text()
    names = [path.name for path in (tmp_path / "plan" / "videos").iterdir()]
    for secret in ("wan", "veo"):
        assert secret not in text and not any(secret in name for name in names)
    assert len(names) == 8
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["sample"] for row in rows] == [pair.pair for pair in pairs]
    by_pair = {pair.pair: pair for pair in read_key(tmp_path / "plan")}
    for row in rows:
        pair = by_pair[row["sample"]]
        for side, model in (("left", pair.left_model), ("right", pair.right_model)):
            shown = (tmp_path / "plan" / row[side]).read_bytes()
            assert shown == f"{model}{pair.prompt[1:]}".encode()
        assert (row["caption"], row["overall"], row["rater"]) == ("c,", "", "")


def test_planning_again_keeps_the_filled_sheet_and_another_plan_is_refused(tmp_path, study):
    pairs, _ = plan_pairs(study)
    sheet = write_plan(tmp_path / "plan", pairs, study, ("overall",))
    sheet.write_text("filled in")
    write_plan(tmp_path / "plan", pairs, study, ("overall",))
    assert sheet.read_text() == "filled in"
    with pytest.raises(UserError, match="holds another plan"):
        write_plan(tmp_path / "plan", plan_pairs(study, seed=9)[0], study, ("overall",))


def test_the_key_round_trips_and_damage_is_refused(tmp_path, study):
    pairs, _ = plan_pairs(study)
    write_plan(tmp_path / "plan", pairs, study, ("overall",))
    assert read_key(tmp_path / "plan") == pairs
    key = tmp_path / "plan" / "key.jsonl"
    whole = key.read_text()
    for damaged in (whole[:-20], whole.replace('"left_model"', '"lm"', 1), ""):
        key.write_text(damaged)
        with pytest.raises(UserError, match="missing or damaged"):
            read_key(tmp_path / "plan")
    with pytest.raises(UserError, match="missing or damaged"):
        read_key(tmp_path / "elsewhere")
