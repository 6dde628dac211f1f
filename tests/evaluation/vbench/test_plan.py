"""From the user's copy of a suite to the plan: exact names, seeds of (prompt, index), counts."""

import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest

from longtake.evaluation.vbench.plan import (
    Plan,
    PromptRow,
    SuiteData,
    make_plan,
    read_plan,
    read_suite,
    read_texts,
    write_plan,
)
from longtake.evaluation.vbench.suites import VBENCH1, VBENCH2, Suite
from longtake.runtime.errors import UserError


def of_rows(suite: Suite, *rows: tuple[str, str]) -> SuiteData:
    made = tuple(PromptRow(prompt=prompt, dimensions=(dimension,)) for prompt, dimension in rows)
    return SuiteData(suite=suite, rows=made, source="test", digest="0")


def test_json_checkout_and_wheel_give_the_same(data: SuiteData, tmp_path: Path) -> None:
    content = Path(data.source).read_bytes()
    inner = tmp_path / "VBench" / "VBench-2.0" / "vbench2" / "VBench2_full_info.json"
    inner.parent.mkdir(parents=True)
    inner.write_bytes(content)
    with zipfile.ZipFile(tmp_path / "vbench2.whl", "w") as wheel:
        wheel.writestr("vbench2/VBench2_full_info.json", content)
        wheel.writestr("vbench2/__init__.py", "raise RuntimeError('imported')")
    for place in ("VBench", "VBench/VBench-2.0", "VBench/VBench-2.0/vbench2", "vbench2.whl"):
        other = read_suite(VBENCH2, tmp_path / place)
        assert (other.rows, other.digest) == (data.rows, data.digest), place
    assert data.remarks == ()


def test_what_the_scorer_needs_is_kept(data: SuiteData) -> None:
    last = data.rows[-1]
    assert last.as_upstream("Thermotics", ["/v.mp4"]) == {
        "prompt_en": last.prompt,
        "dimension": ["Thermotics"],
        "video_list": ["/v.mp4"],
        "auxiliary_info": ["Is there a lighthouse? (yes or no)"],
    }
    assert "auxiliary_info" not in data.rows[0].as_upstream("Composition", [])


def test_a_repeated_row_is_used_once_and_told(suite_json: Path) -> None:
    records = json.loads(suite_json.read_text())
    suite_json.write_text(json.dumps([*records, records[3]]))
    read = read_suite(VBENCH2, suite_json)
    assert [row.prompt for row in read.rows] == [record["prompt_en"] for record in records]
    assert records[3]["prompt_en"] in read.remarks[0]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[{", "Invalid JSON"),
        ("{}", "valid array"),
        ('["a prompt"]', "row 0"),
        ('[{"prompt_en": "a/b", "dimension": ["Material"]}]', "row 0, prompt_en"),
        ('[{"prompt_en": "a", "dimension": ["Matter"]}]', "unknown dimensions: Matter"),
        ('[{"prompt_en": "a", "dimension": "Material"}]', "row 0, dimension"),
        (None, "there is none"),
    ],
)
def test_suites_that_cannot_be_used(tmp_path: Path, content: str | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=problem):
        read_suite(VBENCH2, tmp_path / "x.json")


def test_names_are_exact() -> None:
    cut = "x" * 179 + " " + "rest of a long prompt"  # the cut falls behind a space: it stays
    plan = make_plan(of_rows(VBENCH2, (cut, "Material"), ("é b.", "Mechanics")))
    names = [video.name for video in plan.videos]
    assert names == [f"{'x' * 179} -{i}.mp4" for i in range(3)] + [
        f"é b.-{i}.mp4" for i in range(3)
    ]
    (video, *_) = make_plan(of_rows(VBENCH1, ("y" * 200, "scene"))).videos
    assert video.name == f"{'y' * 200}-0.mp4"


@pytest.mark.parametrize("prompts", [("z" * 180 + "one", "z" * 180 + "two"), ("ü" * 180,)])
def test_names_that_files_cannot_have_are_refused(prompts: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"share a file name"):
        _ = make_plan(of_rows(VBENCH2, *((prompt, "Material") for prompt in prompts))).videos


def test_shared_prompts_are_one_video_and_diversity_has_twenty(data: SuiteData) -> None:
    plan = make_plan(data)
    assert len({video.name for video in plan.videos}) == len(plan.videos)
    # 18 dimensions x 2 prompts x 3 (Diversity: 20); the first three videos of one are shared.
    assert plan.copies == 17 * 2 * 3 + 2 * 20
    assert len(plan.videos) == plan.copies - 3
    shared = [video for video in plan.videos if video.prompt == "A shared kettle sings."]
    assert [video.dimensions for video in shared[:3]] == [("Composition", "Diversity")] * 3
    assert [video.dimensions for video in shared[3:]] == [("Diversity",)] * 17
    firsts = [v.name for v in plan.of_dimension("Diversity") if v.index == 0]
    assert list(plan.results_of("Diversity")) == firsts and len(firsts) == 2


def test_flickering_samples_25_and_scores_5() -> None:
    plan = make_plan(of_rows(VBENCH1, ("a still cup", "temporal_flickering")))
    assert len(plan.videos) == 25
    assert len(plan.results_of("temporal_flickering")) == 5


def test_seeds_belong_to_prompt_and_index(data: SuiteData) -> None:
    whole, part = make_plan(data, seed=3), make_plan(data, seed=3, dimensions=["Thermotics"])
    seeds = {video.name: video.seed for video in whole.videos}
    assert all(seeds[video.name] == video.seed for video in part.videos)
    assert len(set(seeds.values())) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds.values())
    assert not set(seeds.values()) & {video.seed for video in make_plan(data, seed=4).videos}
    # Numbers that people have already sampled with do not move.
    assert make_plan(of_rows(VBENCH2, ("a cup", "Material"))).videos[1].seed == 681961189


def test_parts_say_that_they_are_not_comparable(data: SuiteData) -> None:
    plan = make_plan(data, dimensions=["Human Anatomy"], prompts_per_dimension=1, samples=2)
    assert [video.index for video in plan.videos] == [0, 1]
    assert plan.dimensions == ("Human_Anatomy",)
    assert sum("not comparable" in remark for remark in plan.remarks) == 2
    assert make_plan(data).remarks == data.remarks
    with pytest.raises(UserError, match="unknown dimension"):
        make_plan(data, dimensions=["Human_Hair"])


def test_augmented_texts_leave_names_alone(data: SuiteData, tmp_path: Path) -> None:
    prompts = [row.prompt for row in data.rows]
    (tmp_path / "short.txt").write_text("\n".join(prompts) + "\n")
    (tmp_path / "long.txt").write_text("\n".join(f"{p} In golden light." for p in prompts) + "\n")
    texts = read_texts(tmp_path / "long.txt", tmp_path / "short.txt")
    plan, usual = make_plan(data, texts=texts), make_plan(data)
    assert all(video.text == f"{video.prompt} In golden light." for video in plan.videos)
    assert [v.name for v in plan.videos] == [v.name for v in usual.videos]
    assert "other texts" in plan.remarks[-1]
    assert read_texts(None, None) == {}


def test_texts_that_do_not_fit_are_refused(data: SuiteData, tmp_path: Path) -> None:
    for name, content in (("a", "x\ny\n"), ("b", "x\n"), ("c", "x\n \n")):
        (tmp_path / name).write_text(content)
    for texts, prompts in (("b", "a"), ("c", "a"), ("a", "absent")):
        with pytest.raises(UserError, match="texts cannot be used"):
            read_texts(tmp_path / texts, tmp_path / prompts)
    with pytest.raises(UserError, match="have no text"):
        make_plan(data, texts={"x": "y"})


def test_the_file_gives_the_plan_back(data: SuiteData, tmp_path: Path) -> None:
    texts = {row.prompt: f"{row.prompt} slowly" for row in data.rows}
    for options in ({}, {"seed": 9, "samples": 2}, {"texts": texts, "dimensions": ["Diversity"]}):
        plan = make_plan(data, **options)  # type: ignore[arg-type]
        path = write_plan(plan, tmp_path / "plan.json")
        again = read_plan(path)
        assert (again.videos, again.rows, again.remarks) == (plan.videos, plan.rows, plan.remarks)
        assert json.loads(path.read_text())["counts"]["videos"] == len(plan.videos)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "something else"),
        ("suite", "vbench3"),
        ("seed", "x"),
        ("rows", [["p", ["Nothing"], None]]),
        ("videos", []),
        ("seed", 1),
        (None, None),
    ],
)
def test_edited_and_torn_plans_are_refused(
    data: SuiteData, tmp_path: Path, key: str | None, value: object
) -> None:
    path = write_plan(make_plan(data), tmp_path / "plan.json")
    text = path.read_text()
    path.write_text(json.dumps({**json.loads(text), key: value}) if key else text[:-100])
    with pytest.raises(UserError, match="the plan cannot be used"):
        read_plan(path)


def test_official_numbers() -> None:
    dimensions = VBENCH2.dimensions.values()
    assert sum(d.prompts for d in dimensions) == 1230
    assert sum(d.prompts * d.samples for d in dimensions) == 3860
    assert len(dimensions) == 18 and len(VBENCH1.dimensions) == 16


SUITES_FOLDER = os.environ.get("LONGTAKE_VBENCH_SUITES", "")


@pytest.mark.suites
@pytest.mark.parametrize(
    ("suite", "source", "counts", "digest"),
    [
        # One prompt stands twice in the wheel; commit 45e79ec has 1,230 rows.
        (
            VBENCH2,
            "vbench2-0.1.1-py3-none-any.whl",
            (1229, 3206, 3857),
            "bd9a45abb99f12a6bb11f93250dc8acc532fe9bf25b803b8cc8f18079c93b792",
        ),
        (
            VBENCH2,
            "VBench",
            (1230, 3209, 3860),
            "76dff9f3e4583341c4d41927d244f5a2ebd418dd5a31e1b0bb4dc310d11d4345",
        ),
        (
            VBENCH1,
            "vbench-0.1.5-py3-none-any.whl",
            (946, 6220, 8310),
            "52b3694f5848d3666193dc66c5fd16d9c08ba3503627f0a6a1568aff24a997ff",
        ),
    ],
)
def test_the_public_suites_byte_by_byte(
    suite: Suite, source: str, counts: tuple[int, int, int], digest: str
) -> None:
    """Counts, and the digest of the sorted file names, of the user's copies. See conftest.py."""
    plan: Plan = make_plan(read_suite(suite, Path(SUITES_FOLDER) / source))
    assert (len(plan.rows), len(plan.videos), plan.copies) == counts
    names = sorted(video.name for video in plan.videos)
    assert hashlib.sha256("\n".join(names).encode()).hexdigest() == digest
