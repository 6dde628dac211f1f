"""Reading and averaging ratings, and the split by prompt and model."""

import dataclasses

import pytest

from longtake.evaluation.judge.data import (
    PARTS,
    read_rated_clips,
    split_clips,
    with_paths_from,
)
from longtake.evaluation.ratings import (
    Rating,
    Sample,
    append_ratings,
    read_samples,
    write_samples,
)
from longtake.runtime.errors import UserError
from longtake.runtime.files import prompt_key


def test_log_and_list(study, tmp_path):
    clips = read_rated_clips([study.ratings], study.samples)
    assert clips.mean.shape == (60, 3) and (clips.count == 3).all() and not clips.findings
    by_hand = [
        float(row["score"]) for row in clips.ratings.to_dict("records") if row["sample"] == "s004B"
        and row["dimension"] == "visual_quality"
    ]  # fmt: skip
    row = [item.sample for item in clips.samples.samples].index("s004B")
    assert clips.mean[row, 1] == pytest.approx(sum(by_hand) / 3)
    # Ratings of other dimensions and of other lists are expected; unknown dimensions are not.
    log = tmp_path / "more.jsonl"
    append_ratings(
        log,
        [
            Rating(sample="s000A", dimension="overall", rater="r0", score=3.0),
            Rating(sample="s000A", dimension="charm", rater="r0", score=3.0),
            Rating(sample="elsewhere", dimension="visual_quality", rater="r0", score=3.0),
            Rating(sample="elsewhere", dimension="visual_quality", rater="r1", score=3.0),
        ],
    )
    found = read_rated_clips([study.ratings, log], study.samples).findings
    assert [finding.kind for finding in found] == ["unknown dimension"]
    silent, *others = read_samples(study.samples).samples
    write_samples(study.folder / "some.csv", [dataclasses.replace(silent, caption=""), *others])
    fewer = read_rated_clips([study.ratings], study.folder / "some.csv")
    assert silent.sample not in fewer.samples.by_id and len(fewer.mean) == 59
    assert [finding.kind for finding in fewer.findings] == [
        "rated sample without a caption or a video in the list"
    ]
    part = clips.part(["s004B", "s000A"])
    assert [item.sample for item in part.samples.samples] == ["s000A", "s004B"]
    assert part.mean[1, 1] == clips.mean[row, 1] and len(part.ratings) == 18


def test_moved_lists_still_find_their_videos(study, tmp_path):
    clips = read_rated_clips([study.ratings], study.samples)
    moved = with_paths_from(clips.samples, tmp_path)
    assert all((tmp_path / item.video).is_file() for item in moved)


def samples(num_prompts=200, models="ABC"):
    return [
        Sample(sample=f"{p}{m}", model=m, prompt=f"p{p}", caption=f"Prompt number {p}")
        for p in range(num_prompts)
        for m in models
    ]


def test_split_holds_out_prompts_and_models():
    listed = samples()
    parts = split_clips(listed, calibration_share=0.1, test_share=0.2, held_out_models=["C"])
    assert set(parts) == set(PARTS)
    by_id = {item.sample: item for item in listed}
    assert sorted(name for names in parts.values() for name in names) == sorted(by_id)
    prompts = {part: {by_id[n].prompt for n in names} for part, names in parts.items()}
    models = {part: {by_id[n].model for n in names} for part, names in parts.items()}
    assert models["train"] == models["calibration"] == models["test"] == {"A", "B"}
    assert models["test_new_models"] == models["unused"] == {"C"}
    assert prompts["test"] == prompts["test_new_models"]
    assert not prompts["test"] & (prompts["train"] | prompts["calibration"])
    assert not prompts["train"] & prompts["calibration"]
    assert 25 <= len(prompts["test"]) <= 55 and 10 <= len(prompts["calibration"]) <= 32


def test_split_follows_the_text_alone():
    few = split_clips(samples(60), calibration_share=0.2, test_share=0.2)
    many = split_clips(samples(200), calibration_share=0.2, test_share=0.2)
    assert all(set(few[part]) <= set(many[part]) for part in PARTS)
    other = split_clips(samples(60), calibration_share=0.2, test_share=0.2, seed=1)
    assert other["test"] != few["test"]


def test_named_test_prompts_and_refusals():
    listed = samples(40)
    parts = split_clips(
        listed, calibration_share=0.3, test_share=0.0, test_prompts=["PROMPT  number 7"]
    )
    assert parts["test"] == ["7A", "7B", "7C"]
    assert prompt_key("PROMPT  number 7") == "prompt number 7"
    with pytest.raises(UserError, match="held-out model"):
        split_clips(listed, calibration_share=0.1, test_share=0.1, held_out_models=["Z"])
    with pytest.raises(UserError, match="shares"):
        split_clips(listed, calibration_share=0.5, test_share=0.5)
    with pytest.raises(UserError, match="empty"):
        split_clips(listed, calibration_share=0.1, test_share=0.0)
    with pytest.raises(UserError, match="empty"):
        split_clips(samples(1), calibration_share=0.1, test_share=0.5)
