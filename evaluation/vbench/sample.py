"""A small round trip without any download: plan, generate, score what needs no weights, tell.

The prompts are those of the sandbox, which checkpoints/tiny understands, so the scores say that
the chain works and nothing about VBench.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from longtake.evaluation.vbench.aggregate import Scores, aggregate
from longtake.evaluation.vbench.generate import generate_videos
from longtake.evaluation.vbench.native import score_natively
from longtake.evaluation.vbench.plan import Plan, make_plan
from longtake.evaluation.vbench.plan_file import write_plan
from longtake.evaluation.vbench.requirements import NATIVE
from longtake.evaluation.vbench.result_files import RESULTS_FOLDER, read_results, write_results
from longtake.evaluation.vbench.suite_data import PromptRow, SuiteData, read_suite
from longtake.evaluation.vbench.suites import VBENCH1, Suite
from longtake.evaluation.vbench.video_files import find_videos

SANDBOX_PROMPTS = (
    Path(__file__).resolve().parents[2] / "benchmarks_data" / "sandbox_prompts" / "held_out.txt"
)


@dataclass(frozen=True, kw_only=True)
class SampleRun:
    """What the round trip made."""

    plan: Plan
    scores: Scores
    folder: Path
    """Holds ``plan.json``, ``videos/`` and ``results/``."""


def sandbox_data(suite: Suite = VBENCH1) -> SuiteData:
    """The sandbox's held-out prompts as a suite that tests only what needs no weights."""
    content = SANDBOX_PROMPTS.read_bytes()
    rows = tuple(
        PromptRow(prompt=line, dimensions=NATIVE[suite.name])
        for line in content.decode("utf-8").splitlines()
    )
    return SuiteData(
        suite=suite,
        rows=rows,
        source=str(SANDBOX_PROMPTS),
        digest=hashlib.sha256(content).hexdigest(),
        remarks=(f"prompts of the sandbox, not of {suite.title}",),
    )


def run_sample(
    folder: Path,
    *,
    prompts: int = 4,
    samples: int = 2,
    source: Path | None = None,
    checkpoint: Path | None = None,
    overrides: tuple[str, ...] = (),
    device: str = "auto",
    seed: int = 0,
) -> SampleRun:
    """Plan, generate, score; started again on the same folder, it goes on.

    Args:
        folder: where everything goes.
        prompts: how many.
        samples: videos per prompt.
        source: the user's copy of VBench 1.0, for its own prompts; None takes the sandbox's.
        checkpoint: model directory; None takes checkpoints/tiny.
        overrides: ``key=value`` of the generation.
        device: see :func:`longtake.runtime.device.pick_device`.
        seed: base of the videos' seeds.

    Raises:
        UserError: wrong input.
    """
    data = sandbox_data() if source is None else read_suite(VBENCH1, source)
    plan = make_plan(
        data,
        seed=seed,
        dimensions=NATIVE[VBENCH1.name],
        prompts_per_dimension=prompts,
        samples=samples,
    )
    write_plan(plan, folder / "plan.json")
    videos = folder / "videos"
    generate_videos(plan, videos, checkpoint=checkpoint, overrides=overrides, device=device)
    files = find_videos(plan, videos)
    for name in plan.dimensions:
        results = score_natively(plan, files, name, folder / "work" / name)
        write_results(folder / RESULTS_FOLDER, results, {"suite_sha256": plan.digest})
    scores = aggregate(read_results(VBENCH1, folder), plan, allow_incomplete=True)
    return SampleRun(plan=plan, scores=scores, folder=folder)
