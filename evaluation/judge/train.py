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
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from rich.console import Console

from longtake.evaluation.judge.calibrate import fit_curves
from longtake.evaluation.judge.calibration import Calibration
from longtake.evaluation.judge.judge_directory import (
    JudgeDirectory,
    set_calibration,
    write_judge,
)
from longtake.evaluation.judge.qwen2vl_judge import TOKEN_OF, check_kind, judge_tokens
from longtake.evaluation.judge.rated_batches import ClipSource, TargetScale, points, target_scale
from longtake.evaluation.judge.regression import JudgeRegression
from longtake.evaluation.judge.train_config import JudgeTrainingConfig
from longtake.evaluation.judge.training_parts import (
    TrainingParts,
    agreement,
    check_given,
    print_agreement,
    record_inputs,
    training_parts,
)
from longtake.rewards.reward_directory import RewardDirectory, read_reward_directory
from longtake.rewards.reward_export import export_reward
from longtake.rewards.reward_spec import Normalization
from longtake.runtime.config import config_to_yaml
from longtake.runtime.device import pick_device, refuse_launcher
from longtake.runtime.errors import CheckpointError, UserError
from longtake.runtime.files import to_plain
from longtake.runtime.progress import ProgressBar, progress_bar
from longtake.runtime.run_directory import RunDirectory
from longtake.runtime.statistics import FloatArray
from longtake.runtime.tracking import Trackers, check_trackers

JUDGE_FOLDER = "judge"
_STATE = "state.pt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgePlan:
    """What is trained on what."""

    source: RewardDirectory
    """The base."""
    data: TrainingParts
    """The ratings."""
    scale: TargetScale
    """Of the targets."""


def plan_judge(config: JudgeTrainingConfig) -> JudgePlan:
    """Read and check everything that a training needs besides the weights.

    Raises:
        UserError: data that cannot be used, or settings that do not fit them.
        CheckpointError: the base cannot be read.
    """
    check_trackers(config.trackers)
    check_given(**{"base": config.base, "data.ratings": config.data.ratings})
    judge_tokens(config.dimensions)  # checks the names
    source = read_reward_directory(config.base)
    check_kind(source)
    data = training_parts(config.data, config.dimensions, config.seed)
    return JudgePlan(source=source, data=data, scale=target_scale(data.parts["train"]))


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
    refuse_launcher("judges are trained")
    where = pick_device(device)
    plan = plan_judge(config)
    console = Console(stderr=True)
    plan.data.show(console)
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
        train, held = plan.data.parts["train"], plan.data.parts["calibration"]
        share = len(train.mean) / (len(train.mean) + len(held.mean))
        self.train = ClipSource(train, plan.source, plan.scale, int(size * share))
        self.held = ClipSource(held, plan.source, plan.scale, int(size * (1 - share)))

    def execute(self) -> Path:
        start = time.monotonic()
        config, plan = self.config, self.plan
        record_inputs(self.run, config.data, plan.data, plan.source.fingerprint())
        model = JudgeRegression(plan.source, config, self.where)
        step = self._restore(model)
        self.run.truncate_metrics(step)
        with progress_bar(
            "judge", self.config.updates, completed=step, console=self.console
        ) as bar:
            self._train(model, step, bar)
        model.use_best()
        scores = points(model.predict(self.held), plan.scale)
        judge, refused = self._export(model, scores)
        summary = {
            "updates": config.updates,
            "best_update": model.best_update,
            "wall_s": time.monotonic() - start,
            "seed": config.seed,
            "dimensions": list(config.dimensions),
            "clips": {name: len(part.mean) for name, part in plan.data.parts.items()},
            "calibration_part": agreement(plan.data.parts["calibration"], scores),
            "calibrated": judge.calibration is not None,
            "not_calibrated": refused,
            "judge": judge.name,
        }
        self.run.write_json("summary.json", summary)
        print_agreement(self.console, summary)
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
        with self.run.writing(JUDGE_FOLDER):
            shutil.rmtree(target, ignore_errors=True)  # of the same run, finished before
            judge = write_judge(
                target,
                lambda folder: export_reward(
                    model.reward, folder, plan.source, spec, dtype, trained_on
                ),
                backbone="qwen2vl",
                dimensions=config.dimensions,
                training=plan.data.seen(),
                provenance={**trained_on, "seed": config.seed},
            )
        try:
            curves = fit_curves(plan.data.parts["calibration"], scores, config.calibration)
        except UserError as error:
            return judge, f"{error.what}: {error.received}"
        return set_calibration(judge, Calibration(judge=judge.digest, curves=curves)), ""
