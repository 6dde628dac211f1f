"""One GRPO run from the command line to the report: set up, evaluate, train, evaluate, summarise.

The run directory is the only memory: whatever was finished in it is not done again on resume.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from longtake.core.checkpoint import Checkpoint, load_checkpoint
from longtake.core.lora import adapters_off, add_lora, save_lora
from longtake.core.video import to_uint8
from longtake.grpo.config import GRPOConfig
from longtake.grpo.curves import write_curves, write_held_out
from longtake.grpo.gallery import before_after_mp4, before_after_png, write_groups
from longtake.grpo.held_out import (
    HeldOut,
    HeldOutScores,
    Metric,
    compare,
    read_records,
    write_records,
)
from longtake.grpo.interrupt import Interrupted, StopRequest
from longtake.grpo.plan import read_prompts
from longtake.grpo.presets import PRESETS
from longtake.grpo.ranks import Ranks, connect
from longtake.grpo.report import write_report
from longtake.grpo.state import load_state, save_state
from longtake.grpo.summary import estimate, print_summary, summarise
from longtake.grpo.trainer import GRPOTrainer, NonFinite, Update
from longtake.rewards.registry import load_suite
from longtake.rewards.suite import RewardSuite
from longtake.runtime.config import config_to_yaml, merge_config
from longtake.runtime.device import pick_device
from longtake.runtime.errors import ConfigError, UserError
from longtake.runtime.progress import progress_bar
from longtake.runtime.provenance import collect
from longtake.runtime.run_directory import RunDirectory
from longtake.runtime.tracking import Trackers, check_trackers

RUNS = Path("runs")
_SHOWN_GROUPS = 4


def run_grpo(
    *,
    preset: str = "tiny",
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    output_dir: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    prompts: Path | None = None,
    checkpoint: Path | None = None,
    device: str = "auto",
    metrics: Mapping[str, Metric] | None = None,
    suite: RewardSuite | None = None,
) -> Path | None:
    """Align a model and measure held-out prompts before and after.

    Args:
        preset: name in ``presets.PRESETS``.
        config_file: YAML laid over the preset.
        overrides: ``key=value`` settings laid over both.
        output_dir: run directory; a new one under ``runs/`` by default.
        resume: continue the run in ``output_dir``.
        dry_run: print the plan and its cost, write nothing.
        prompts: training prompts instead of the configured file.
        checkpoint: model directory instead of the configured one.
        device: torch device or "auto".
        metrics: held-out metrics that the configuration may name.
        suite: reward suite instead of the configured one.

    Returns:
        The run directory; None for a dry run.

    Raises:
        UserError: unusable configuration, checkpoint, prompts or run directory.
        Interrupted: stopped by Ctrl-C or SIGTERM; the state is saved.
    """
    if resume and output_dir is None:
        raise UserError(
            "nothing to resume", received="--resume", expected="--output-dir DIR of the run"
        )
    config = _configure(preset, config_file, overrides, prompts, checkpoint, device)
    console = Console(stderr=True)
    if dry_run:
        console.print(estimate(config), markup=False)
        return None
    chosen = _choose_metrics(config, metrics or {})
    check_trackers(config.trackers)
    train_prompts = read_prompts(Path(config.prompts))
    held_out_prompts = read_prompts(Path(config.evaluation.prompts))
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    where = pick_device(config.device)
    suite = suite or load_suite(
        config.rewards.reward_weights, config.rewards.sources, device=str(where)
    )
    ranks = connect(where)
    path = ranks.gather(output_dir or RUNS / time.strftime("grpo-%Y%m%d-%H%M%S"))[0]
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        run = None
        if ranks.is_main:
            yaml = config_to_yaml(config)
            run = stack.enter_context(RunDirectory.create(path, yaml, resume=resume))
        model = _load(config, where)
        setup = _Setup(config, model, suite.to(where), ranks, stop, run, path, console)
        _Run(setup, train_prompts, held_out_prompts, chosen).execute()
    return path


def _configure(
    preset: str,
    config_file: Path | None,
    overrides: Sequence[str],
    prompts: Path | None,
    checkpoint: Path | None,
    device: str,
) -> GRPOConfig:
    if preset not in PRESETS:
        raise ConfigError(
            "unknown preset", received=preset, expected=" | ".join(PRESETS), remedy="pick one"
        )
    config = merge_config(PRESETS[preset](), config_file, overrides)
    if prompts is not None:
        config = config.replace(prompts=str(prompts))
    if checkpoint is not None:
        config = config.replace(checkpoint=str(checkpoint))
    return config if device == "auto" else config.replace(device=device)


def _choose_metrics(config: GRPOConfig, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    unknown = [name for name in config.evaluation.metrics if name not in metrics]
    if unknown:
        raise ConfigError(
            "evaluation.metrics names a metric that is not there",
            received=", ".join(unknown),
            expected=", ".join(metrics) or "no metric (the caller passed none)",
            remedy="set evaluation.metrics=[] or name one of these",
        )
    return {name: metrics[name] for name in config.evaluation.metrics}


def _load(config: GRPOConfig, device: torch.device) -> Checkpoint:
    """The checkpoint with a fresh adapter; frozen weights in the configured type."""
    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    model = load_checkpoint(config.checkpoint, device, dtype)
    add_lora(model.dit, config.lora.rank, config.lora.alpha, config.seed)
    return model


@dataclass(frozen=True)
class _Setup:
    config: GRPOConfig
    model: Checkpoint
    suite: RewardSuite
    ranks: Ranks
    stop: StopRequest
    run: RunDirectory | None
    """None on all ranks but the first, which alone writes."""
    path: Path
    console: Console


class _Run:
    """The phases of a run."""

    def __init__(
        self,
        setup: _Setup,
        prompts: Sequence[str],
        held_out_prompts: Sequence[str],
        metrics: Mapping[str, Metric],
    ) -> None:
        self.setup, config = setup, setup.config
        self.start = time.perf_counter()
        self.stopped: str | None = None
        self.trainer = GRPOTrainer(
            setup.model, setup.suite, prompts, config, setup.ranks, self._check_alone
        )
        count = config.evaluation.num_prompts
        if len(held_out_prompts) < count:
            raise UserError(
                "too few held-out prompts",
                received=f"{len(held_out_prompts)} in {config.evaluation.prompts}",
                expected=f"at least evaluation.num_prompts={count}",
                remedy="lower evaluation.num_prompts or add prompts",
            )
        self.held_out = HeldOut(
            self.trainer.policy,
            setup.model.vae,
            self.trainer.sigmas,
            held_out_prompts[:count],
            config,
            metrics,
            setup.suite,
            setup.ranks,
        )

    def execute(self) -> None:
        setup = self.setup
        with ExitStack() as stack:
            trackers = None
            if setup.run is not None:
                self._write_provenance(setup.run)
                trackers = stack.enter_context(
                    Trackers(setup.run, setup.config.trackers, setup.config.model_dump())
                )
            self._restore()
            try:
                with adapters_off(setup.model.dit):
                    before = self._evaluate("before")
                self._train(trackers)
            except Interrupted:
                self._save()
                if setup.run is not None:
                    self._write_progress(setup.run)
                    setup.console.print(
                        f"Stopped after {self.trainer.counters.updates} updates, all saved. "
                        f"Continue with --resume --output-dir {setup.path}",
                        markup=False,
                    )
                raise
            after = self._evaluate_after()
            if setup.run is not None:
                self._finish(setup.run, before, after)

    def _write_provenance(self, run: RunDirectory) -> None:
        config = self.setup.config
        record = collect(
            {
                "checkpoint": Path(config.checkpoint),
                "prompts": Path(config.prompts),
                "held_out_prompts": Path(config.evaluation.prompts),
            }
        )
        run.write_json("provenance.json", {**record, "rewards": self.setup.suite.fingerprint()})

    def _restore(self) -> None:
        """Load the newest saved state, and forget metrics of updates that it does not hold."""
        latest = None
        if self.setup.run is not None:
            latest = self.setup.run.latest_checkpoint()
        latest = self.setup.ranks.gather(latest)[0]
        if latest is not None:
            t = self.trainer
            t.counters = load_state(latest, self.setup.model.dit, t.optimizer, t.average)
        if self.setup.run is not None:
            self.setup.run.truncate_metrics(self.trainer.counters.updates)

    def _evaluate(self, name: str) -> HeldOutScores:
        """Evaluate, or read what an earlier process evaluated."""
        path, ranks = self.setup.path, self.setup.ranks
        records, clips = path / f"held_out_{name}.jsonl", path / f"held_out_{name}.safetensors"
        if ranks.gather(records.exists() and clips.exists())[0]:
            return HeldOutScores(records=read_records(records), clips=load_file(clips)["clips"])
        total = len(ranks.mine(self.held_out.samples))
        with progress_bar(f"held-out, {name}", total, console=self.setup.console) as bar:

            def on_progress(done: int) -> None:
                self._check_alone()
                bar.update(done)

            scores = self.held_out.evaluate(on_progress)
        if self.setup.run is not None:
            with self.setup.run.writing(records.name):
                save_file({"clips": scores.clips}, clips)
                write_records(records, scores.records)
        return scores

    def _check_alone(self) -> None:
        """Stop between groups. Several ranks must leave together: see :meth:`_check_together`."""
        if self.setup.ranks.size == 1:
            self.setup.stop.check()

    def _check_together(self) -> None:
        """Stop between updates, on all ranks if a stop was requested on any."""
        if self.setup.ranks.any(self.setup.stop.is_set):
            raise Interrupted

    def _train(self, trackers: Trackers | None) -> None:
        config, trainer = self.setup.config, self.trainer
        done, total = trainer.counters.updates, config.num_updates
        with progress_bar("GRPO", total, completed=done, console=self.setup.console) as bar:
            while trainer.counters.updates < total:
                self._check_together()
                try:
                    update = trainer.update()
                except NonFinite as error:
                    self.stopped = f"{error}; training ended with the weights before it"
                    break
                if trackers is not None:
                    self._log(trackers, update)
                bar.update(trainer.counters.updates, **_columns(update))
                count = trainer.counters.updates
                if count % config.checkpoint_every == 0 or count == total:
                    self._save()
        if self.stopped:
            self._save()

    def _log(self, trackers: Trackers, update: Update) -> None:
        run, config = self.setup.run, self.setup.config
        assert run is not None
        index = int(update.record["update"] or 0)
        trackers.log(update.record, step=index)
        timing = run.path / "timing.jsonl"
        with run.writing(timing.name), timing.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"update": index, **update.seconds}) + "\n")
        every = config.log_samples_every
        is_last = index + 1 == config.num_updates
        if every and (index % every == 0 or is_last) and update.tasks:
            shown = slice(0, _SHOWN_GROUPS)
            assert update.rewards is not None
            first = update.videos[0].shape
            same = [i for i, v in enumerate(update.videos) if v.shape == first][shown]
            write_groups(
                run.samples,
                index,
                [update.tasks[i].prompt for i in same],
                torch.stack([to_uint8(update.videos[i]) for i in same]).cpu(),
                update.rewards[:, same],
                self.setup.suite.names,
                config.rollout.fps,
            )

    def _save(self) -> None:
        if self.setup.run is None:
            return
        t = self.trainer

        def write(folder: Path) -> None:
            save_state(folder, self.setup.model.dit, t.optimizer, t.counters, t.average)

        keep = self.setup.config.keep_checkpoints
        self.setup.run.save_checkpoint(t.counters.updates, write, keep)

    def _evaluate_after(self) -> HeldOutScores:
        average = self.trainer.average
        if average is None:
            return self._evaluate("after")
        kept = {name: p.detach().clone() for name, p in self.trainer.parameters.items()}
        _assign(self.trainer.parameters, average.mean)
        try:
            return self._evaluate("after")
        finally:
            _assign(self.trainer.parameters, kept)

    def _finish(self, run: RunDirectory, before: HeldOutScores, after: HeldOutScores) -> None:
        setup = self.setup
        with run.writing("lora"):
            save_lora(setup.model.dit, run.path / "lora", layout="peft")
            save_lora(setup.model.dit, run.path / "lora.safetensors", layout="longcat")
        summary = summarise(
            setup.config,
            self.trainer.counters,
            compare(before.records, after.records, "metrics", setup.config),
            compare(before.records, after.records, "rewards", setup.config),
            wall_s=time.perf_counter() - self.start,
            stopped=self.stopped,
        )
        run.write_json("summary.json", summary)
        write_held_out(summary, run.path / "held_out.png")
        self._write_pictures(run, before, after)
        print_summary(summary, self._write_progress(run))

    def _write_progress(self, run: RunDirectory) -> Path:
        """Curves and report of what is there, finished or not."""
        title = f"GRPO, seed {self.setup.config.seed}"
        write_curves(run.read_metrics(), run.path / "curves.png", title)
        return write_report(run.path)

    def _write_pictures(
        self, run: RunDirectory, before: HeldOutScores, after: HeldOutScores
    ) -> None:
        def shown(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
            return [r for r in records if r["sample"] == 0][: len(before.clips)]

        rows_before, rows_after = shown(before.records), shown(after.records)
        group = "metrics" if before.records[0]["metrics"] else "rewards"
        args: tuple[Tensor, Tensor, list[str], list[Any], list[Any]] = (
            before.clips,
            after.clips,
            [r["prompt"] for r in rows_before],
            [r[group] for r in rows_before],
            [r[group] for r in rows_after],
        )
        before_after_png(*args, run.samples / "before_after.png")
        before_after_mp4(*args, run.samples / "before_after.mp4", fps=self.setup.config.rollout.fps)


def _columns(update: Update) -> dict[str, float | None]:
    columns = {"reward": update.record.get("reward")}
    for key, value in update.record.items():
        if key.startswith("rewards/") and key.endswith("/mean"):
            columns[key.split("/")[1]] = value
    return columns


@torch.no_grad()
def _assign(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, p in parameters.items():
        p.copy_(values[name])
