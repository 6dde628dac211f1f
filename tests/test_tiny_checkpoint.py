"""The shipped model and prompt lists: complete, small, recorded, and able to draw what is asked."""

import json
from pathlib import Path

import pytest
import torch

from longtake.core.checkpoint import Checkpoint, load_checkpoint
from longtake.core.sampler import generate
from longtake.sandbox.oracles import oracle_scores
from longtake.sandbox.splits import prompts

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "checkpoints" / "tiny"
LISTS = ROOT / "benchmarks_data" / "sandbox_prompts"


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return load_checkpoint(TINY, "cpu", torch.float32)


def test_files_are_small_and_their_digests_are_recorded() -> None:
    size = sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file())
    assert size <= 40 * 2**20
    record = json.loads((TINY / "provenance.json").read_text(encoding="utf-8"))
    from longtake.runtime.provenance import digest

    for part, recorded in record["digests"].items():
        assert digest(TINY / part) == recorded, part
    assert record["config"]["vae"] and record["config"]["base"] and record["seconds"]


def test_samples_of_held_out_prompts_show_what_was_asked(tiny: Checkpoint) -> None:
    asked = prompts("held_out", 12)
    video = generate(tiny, asked, 17, 64, 64, steps=16, guidance_scale=4.0, seed=3)
    matched = oracle_scores(video, asked)
    swapped = oracle_scores(video, asked[1:] + asked[:1])
    assert matched["alignment"].mean() > swapped["alignment"].mean() + 0.3
    # 0.79 on 96 prompts (README); twelve clips scatter by 0.06 around it.
    assert torch.stack(list(matched.values())).mean() > 0.6


@pytest.mark.parametrize("split, count", [("train", 1024), ("held_out", 256)])
def test_prompt_lists_are_those_of_the_splits(split: str, count: int) -> None:
    stored = (LISTS / f"{split}.txt").read_text(encoding="utf-8").splitlines()
    assert stored == prompts(split, count)  # type: ignore[arg-type]


def test_prompt_lists_are_disjoint() -> None:
    train, held_out = (
        set((LISTS / f"{s}.txt").read_text().splitlines()) for s in ("train", "held_out")
    )
    assert not train & held_out
