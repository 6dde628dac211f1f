"""Train a judge on ratings: a run directory with a judge directory in it.

    RUN/  config.yaml  provenance.json  metrics.jsonl  summary.json  checkpoints/step-N/
          judge/            the trained, calibrated judge
          test.csv          list of the test samples: new prompts, known models
          test_new_models.csv, calibration.csv

Ctrl-C ends at once; ``resume`` continues from the last evaluation.
"""

import dataclasses
import pickle
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from longtake.evaluation.bootstrap import FloatArray
from longtake.evaluation.judge.calibrate import fit_curves
from longtake.evaluation.judge.calibration import Calibration
from longtake.evaluation.judge.coefficients import pearson, spearman
from longtake.evaluation.judge.judge_directory import (
    JudgeDirectory,
    set_calibration,
    write_judge,
)
from longtake.evaluation.judge.leakage import TrainingRecord
from longtake.evaluation.judge.qwen2vl_judge import TOKEN_OF, check_kind, judge_tokens
from longtake.evaluation.judge.rated_batches import ClipSource, TargetScale, points, target_scale
from longtake.evaluation.judge.rated_clips import RatedClips, read_rated_clips, with_paths_from
from longtake.evaluation.judge.regression import JudgeRegression
from longtake.evaluation.judge.split import PARTS, Part, split_clips
from longtake.evaluation.judge.train_config import JudgeTrainingConfig
from longtake.evaluation.samples import write_samples
from longtake.rewards.reward_directory import RewardDirectory, read_reward_directory
from longtake.rewards.reward_export import export_reward
from longtake.rewards.reward_spec import Normalization
from longtake.rewards.template import prompt_key
from longtake.runtime.config import config_to_yaml
from longtake.runtime.device import pick_device
from longtake.runtime.errors import CheckpointError, ConfigError, UserError
from longtake.runtime.progress import ProgressBar, progress_bar, result_table
from longtake.runtime.provenance import collect
from longtake.runtime.run_directory import RunDirectory, to_plain
from longtake.runtime.tracking import Trackers, check_trackers

JUDGE_FOLDER = "judge"
_STATE = "state.pt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgePlan:
    """What is trained on what."""

    source: RewardDirectory
    """The base."""
    clips: RatedClips
    """Everything that was rated."""
    parts: dict[Part, RatedClips]
    """Parts with clips."""
    scale: TargetScale
    """Of the targets."""

    def table(self) -> Table:
        """Clips, prompts, models and ratings of each part."""
        rows: list[list[str | float | int | None]] = []
        for name, part in self.parts.items():
            listed = part.samples.samples
            prompts = len({prompt_key(item.caption) for item in listed})
            models = len(part.samples.models)
            rows.append([name, len(listed), prompts, models, len(part.ratings)])
        columns = ["part", "clips", "prompts", "models", "ratings"]
        return result_table(f"judge of {', '.join(self.clips.dimensions)}", columns, rows)


def plan_judge(config: JudgeTrainingConfig) -> JudgePlan:
    """Read and check everything that a training needs besides the weights.

    Raises:
        UserError: data that cannot be used, or settings that do not fit them.
        CheckpointError: the base cannot be read.
    """
    check_trackers(config.trackers)
    for name, value in (("base", config.base), ("data.ratings", config.data.ratings)):
        if not value:
            raise ConfigError(
                f"{name} is not set",
                expected="a reward directory" if name == "base" else "files of ratings",
                remedy=f"pass it on the command line or with --set {name}=...",
            )
    judge_tokens(config.dimensions)  # checks the names
    source = read_reward_directory(config.base)
    check_kind(source)
    data = config.data
    clips = read_rated_clips(
        [Path(file) for file in data.ratings],
        Path(data.samples) if data.samples else None,
        config.dimensions,
        exclude_raters=data.exclude_raters,
    )
    fixed: list[str] = []
    if data.test_prompts:
        try:
            fixed = Path(data.test_prompts).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot read the test prompts: {error}", received=data.test_prompts
            ) from error
    names = split_clips(
        clips.samples.samples,
        calibration_share=data.calibration_share,
        test_share=data.test_share,
        held_out_models=data.held_out_models,
        test_prompts=fixed,
        seed=config.seed,
    )
    parts: dict[Part, RatedClips] = {n: clips.part(names[n]) for n in PARTS if names[n]}
    return JudgePlan(source=source, clips=clips, parts=parts, scale=target_scale(parts["train"]))


def train_judge(
    config: JudgeTrainingConfig,
    *,
    output_dir: Path,
    resume: bool = False,
    dry_run: bool = False,
    device: str = "auto",
) -> Path | None:
    """Train and calibrate a judge.

    Args:
        config: all settings.
        output_dir: run directory.
        resume: continue the run in ``output_dir``.
        dry_run: print the plan and write nothing.
        device: "auto", "cpu" or "cuda".

    Returns:
        The judge directory, ``output_dir/judge``; None for a dry run.

    Raises:
        UserError: unusable settings, data or run directory.
        CheckpointError: the base or a checkpoint cannot be read.
    """
    where = pick_device(device)
    plan = plan_judge(config)
    console = Console(stderr=True)
    console.print(plan.table())
    for finding in plan.clips.findings:
        console.print(f"! {finding}", markup=False, highlight=False, soft_wrap=True)
    if dry_run:
        return None
    with ExitStack() as stack:
        run = stack.enter_context(
            RunDirectory.create(output_dir, config_to_yaml(config), resume=resume)
        )
        trackers = stack.enter_context(Trackers(run, config.trackers, {"seed": config.seed}))
        return _Run(config, plan, run, trackers, where, console).execute()


class _Run:
    """One training from the plan to the summary."""

    def __init__(
        self,
        config: JudgeTrainingConfig,
        plan: JudgePlan,
        run: RunDirectory,
        trackers: Trackers,
        where: torch.device,
        console: Console,
    ) -> None:
        self.config, self.plan, self.run = config, plan, run
        self.trackers, self.where, self.console = trackers, where, console
        size = config.data.cache_mib * 2**20
        train, held = plan.parts["train"], plan.parts["calibration"]
        share = len(train.mean) / (len(train.mean) + len(held.mean))
        self.train = ClipSource(train, plan.source, plan.scale, int(size * share))
        self.held = ClipSource(held, plan.source, plan.scale, int(size * (1 - share)))

    def execute(self) -> Path:
        start = time.monotonic()
        self._write_lists()
        model = JudgeRegression(self.plan.source, self.config, self.where)
        step = self._restore(model)
        self.run.truncate_metrics(step)
        with progress_bar(
            "judge", self.config.updates, completed=step, console=self.console
        ) as bar:
            self._train(model, step, bar)
        model.use_best()
        scores = points(model.predict(self.held), self.plan.scale)
        judge, refused = self._export(model, scores)
        summary = {
            "updates": self.config.updates,
            "best_update": model.best_update,
            "wall_s": time.monotonic() - start,
            "seed": self.config.seed,
            "dimensions": list(self.config.dimensions),
            "clips": {name: len(part.mean) for name, part in self.plan.parts.items()},
            "calibration_part": self._agreement(scores),
            "calibrated": judge.calibration is not None,
            "not_calibrated": refused,
            "judge": judge.name,
        }
        self.run.write_json("summary.json", summary)
        self._print(summary)
        return judge.path

    def _train(self, model: JudgeRegression, step: int, bar: ProgressBar) -> None:
        updates, every = self.config.updates, self.config.eval_every
        if step == 0:
            error = model.evaluate(self.held, -1)
            self.trackers.log({"update": -1, "eval_loss": error}, step=0)
        for update, loss, norm in model.updates(self.train, step):
            record = {"update": update, "loss": loss, "grad_norm": norm}
            done = update + 1
            if done % every == 0 or done == updates:
                record["eval_loss"] = model.evaluate(self.held, update)
            self.trackers.log(record, step=done)
            if "eval_loss" in record:
                self.run.save_checkpoint(done, self._writer(model), keep=1)
            bar.update(done, loss=loss, eval_loss=record.get("eval_loss"))

    @staticmethod
    def _writer(model: JudgeRegression) -> Callable[[Path], None]:
        return lambda folder: torch.save(model.state(), folder / _STATE)

    def _restore(self, model: JudgeRegression) -> int:
        latest = self.run.latest_checkpoint()
        if latest is None:
            return 0
        try:
            state = torch.load(latest / _STATE, map_location="cpu", weights_only=True)
            model.load_state(state)
        except (OSError, KeyError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"the checkpoint of the judge cannot be read: {error}",
                received=str(latest),
                remedy="delete this folder and resume; the run starts again",
            ) from error
        return int(latest.name.removeprefix("step-"))

    def _agreement(self, scores: FloatArray) -> dict[str, dict[str, float]]:
        part = self.plan.parts["calibration"]
        found = {}
        for column, name in enumerate(part.dimensions):
            rated = part.count[:, column] > 0
            human, judge = part.mean[rated, column], scores[rated, column]
            found[name] = {
                "plcc": pearson(judge, human),
                "srcc": spearman(judge, human),
                "n": int(rated.sum()),
            }
        return found

    def _export(self, model: JudgeRegression, scores: FloatArray) -> tuple[JudgeDirectory, str]:
        config, plan, target = self.config, self.plan, self.run.path / JUDGE_FOLDER
        scale = plan.scale
        normalization = {
            # (raw - mean) / std of a reward directory, so that its scores are points.
            TOKEN_OF[name]: Normalization(mean=-mean / std, std=1 / std)
            for name, mean, std in zip(config.dimensions, scale.mean, scale.std, strict=True)
        }
        spec = dataclasses.replace(plan.source.spec, normalization=normalization)
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        trained_on = to_plain(
            {"trained_from": plan.source.fingerprint(), "best_update": model.best_update}
        )
        seen = [plan.parts[part] for part in ("train", "calibration")]
        with self.run.writing(JUDGE_FOLDER):
            shutil.rmtree(target, ignore_errors=True)  # of the same run, finished before
            judge = write_judge(
                target,
                lambda folder: export_reward(
                    model.reward, folder, plan.source, spec, dtype, trained_on
                ),
                backbone="qwen2vl",
                dimensions=config.dimensions,
                training=TrainingRecord(
                    prompts=_unique(item.caption for p in seen for item in p.samples.samples),
                    models=_unique(item.model for p in seen for item in p.samples.samples),
                ),
                provenance={**trained_on, "seed": config.seed},
            )
        try:
            curves = fit_curves(plan.parts["calibration"], scores, config.calibration)
        except UserError as error:
            return judge, f"{error.what}: {error.received}"
        return set_calibration(judge, Calibration(judge=judge.digest, curves=curves)), ""

    def _write_lists(self) -> None:
        record = collect({name: Path(name) for name in self._inputs()})
        self.run.write_json("provenance.json", {**record, "base": self.plan.source.fingerprint()})
        for name in ("calibration", "test", "test_new_models"):
            part = self.plan.parts.get(name)
            if part is not None:
                moved = with_paths_from(part.samples, self.run.path.absolute())
                write_samples(self.run.path / f"{name}.csv", moved)

    def _inputs(self) -> list[str]:
        data = self.config.data
        return [*data.ratings, *([data.samples] if data.samples else [])]

    def _print(self, summary: dict[str, Any]) -> None:
        rows: list[list[str | float | int | None]] = [
            [name, found["plcc"], found["srcc"], int(found["n"])]
            for name, found in summary["calibration_part"].items()
        ]
        title = f"{summary['judge']} on the calibration part (no claim: it chose the update)"
        columns = ["dimension", "PLCC", "SRCC", "n"]
        self.console.print(result_table(title, columns, rows))
        if summary["not_calibrated"]:
            text = f"! not calibrated: {summary['not_calibrated']}"
            self.console.print(text, markup=False, soft_wrap=True)


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
