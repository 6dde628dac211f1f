import shutil
from pathlib import Path

import pytest

from longtake.evaluation.internal_benchmark.schema import INTERNAL_SUITE
from longtake.evaluation.internal_benchmark.suite import (
    check_suite,
    of_category,
    read_text_set,
    sample_prompts,
)
from longtake.runtime.errors import UserError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(INTERNAL_SUITE, tmp_path / "suite"))


def test_the_shipped_suite_passes_as_a_whole() -> None:
    checks = check_suite()
    assert list(checks) == ["t2v_human", "t2v_auto", "i2v", "t2v_human and t2v_auto"]
    assert [c.rule for found in checks.values() for c in found if not c.passed] == []


def test_one_set_can_be_checked_without_the_others(copy: Path) -> None:
    (copy / "t2v_auto.jsonl").unlink()
    assert list(check_suite(copy, ["t2v_human"])) == ["t2v_human"]
    with pytest.raises(UserError, match=r"t2v_auto\.jsonl"):
        check_suite(copy)


def test_an_unknown_set_is_refused() -> None:
    with pytest.raises(UserError, match="t2v_robot"):
        check_suite(sets=["t2v_human", "t2v_robot"])
    with pytest.raises(UserError, match="i2v"):
        read_text_set("i2v")


def test_the_image_folder_is_checked_by_its_own_manifest(copy: Path) -> None:
    # The manifest without its pictures: all of them are missing.
    found = check_suite(copy, ["t2v_human"], copy)["image files"]
    assert found[0].found == "100" and not found[0].passed


def test_samples_are_named_by_the_seed() -> None:
    prompts = read_text_set("t2v_human")
    chosen = [sample_prompts(prompts, 20, seed) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len({prompt.id for prompt in chosen[0]}) == 20
    assert chosen[0] == sorted(chosen[0], key=lambda prompt: prompt.id)


def test_samples_cover_the_set_evenly() -> None:
    prompts = read_text_set("t2v_human")
    drawn = [prompt.id for seed in range(400) for prompt in sample_prompts(prompts, 50, seed)]
    counts = [drawn.count(prompt.id) for prompt in prompts[::25]]
    # Binomial, 400 draws with p = 0.1: mean 40, standard deviation 6; five of them either side.
    assert min(counts) > 10 and max(counts) < 70


def test_prompts_of_a_category() -> None:
    prompts = read_text_set("t2v_human")
    chosen = of_category(prompts, "inductive_reasoning")
    others = [prompt for prompt in prompts if prompt not in chosen]
    assert chosen and not any("inductive_reasoning" in prompt.categories for prompt in others)
    with pytest.raises(UserError, match="drama") as caught:
        of_category(prompts, "drama")
    assert "inductive_reasoning" in str(caught.value)


@pytest.mark.parametrize("count", [0, 501])
def test_impossible_samples(count: int) -> None:
    with pytest.raises(UserError, match="1 to 500"):
        sample_prompts(read_text_set("t2v_human"), count, 0)
