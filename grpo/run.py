"""One GRPO run from its settings to the report: set up, evaluate, train, evaluate, summarise.

The run directory is the only memory: whatever was finished in it is not done again on resume.
"""

import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from rich.console import Console

from longtake.core.checkpoint import check_complete, load_checkpoint
from longtake.core.lora import adapters_off, add_lora, save_lora
from longtake.core.video import to_uint8
from longtake.grpo.config import GRPOConfig
from longtake.grpo.figures import write_before_after, write_curves, write_groups, write_held_out
from longtake.grpo.held_out import HeldOut, HeldOutScores, Metric, compare
from longtake.grpo.plan import Ranks, read_prompts
from longtake.grpo.report import write_report
from longtake.grpo.trainer import (
    Counters,
    GRPOTrainer,
    NonFinite,
    Update,
    mean_rollout_evaluations,
)
from longtake.rewards.registry import check_sources, load_suite
from longtake.rewards.suite import RewardSuite
from longtake.runtime.config import config_to_yaml
from longtake.runtime.device import pick_device
from longtake.runtime.errors import ConfigError, UserError
from longtake.runtime.files import append_jsonl, explained
from longtake.runtime.progress import progress_bar, result_table
from longtake.runtime.provenance import collect
from longtake.runtime.run_directory import RunDirectory
from longtake.runtime.tracking import Trackers, check_trackers

RUNS = Path("runs")
_SHOWN_GROUPS = 4


class Interrupted(KeyboardInterrupt):
    """Raised at a safe point after a stop was requested; the command exits with 130."""


class StopRequest:
    """Context in which the first Ctrl-C or SIGTERM sets a flag; a second Ctrl-C ends at once.

    Work stops at the next safe point, where a state is saved.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.is_set = False
        self._previous: dict[signal.Signals, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_set = True

    def __enter__(self) -> Self:
        for number in self.SIGNALS:
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: the embedding program owns the signals
                break
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def run_grpo(
    config: GRPOConfig,
    *,
    output_dir: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    metrics: Mapping[str, Metric] | None = None,
    suite: RewardSuite | None = None,
) -> Path | None:
    """Align a model and measure held-out prompts before and after.

    Args:
        config: the settings.
        output_dir: run directory; a new one under ``runs/`` by default.
        resume: continue the run in ``output_dir``.
        dry_run: check what is cheap to check, print the plan and its cost, write nothing.
        metrics: held-out metrics that the configuration may name.
        suite: reward suite instead of the configured one.

    Returns:
        The run directory; None for a dry run. Interrupted is raised after Ctrl-C or SIGTERM, when
        the state is saved.
    """
    if resume and output_dir is None:
        raise UserError(
            "nothing to resume", received="--resume", expected="--output-dir DIR of the run"
        )
    metrics = _chosen_metrics(config, metrics or {})
    prompts, held_out = _read_prompts(config)
    if suite is None:
        check_sources(config.rewards.reward_weights, config.rewards.sources)
    check_complete(Path(config.checkpoint))
    # Everything that is wrong should be said before minutes of loading.
    check_trackers(config.trackers)
    if dry_run:
        Console(stderr=True).print(estimate(config), markup=False)
        return None
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    device = pick_device(config.device)
    if suite is None:
        rewards = config.rewards
        suite = load_suite(rewards.reward_weights, rewards.sources, device=str(device))
    ranks = Ranks.connect(device)
    path = ranks.gather(output_dir or RUNS / time.strftime("grpo-%Y%m%d-%H%M%S"))[0]
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        directory = None
        if ranks.is_main:
            yaml = config_to_yaml(config)
            directory = stack.enter_context(RunDirectory.create(path, yaml, resume=resume))
        dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        model = load_checkpoint(config.checkpoint, device, dtype)
        add_lora(model.dit, config.lora.rank, config.lora.alpha, config.seed)
        suite = suite.to(device)

        def check_stop() -> None:
            # Several ranks must leave together, so they stop between updates only.
            if stop.is_set and ranks.size == 1:
                raise Interrupted

        trainer = GRPOTrainer(model, suite, prompts, config, ranks, check_stop)
        evaluation = HeldOut(model, held_out, config, metrics, suite, ranks)
        _Run(trainer, evaluation, stop, directory, path).execute()
    return path


def _chosen_metrics(config: GRPOConfig, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    unknown = [name for name in config.evaluation.metrics if name not in metrics]
    if unknown:
        raise ConfigError(
            "evaluation.metrics names a metric that is not there",
            received=", ".join(unknown),
            expected=", ".join(metrics) or "no metric (the caller passed none)",
            remedy="set evaluation.metrics=[] or name one of these",
        )
    return {name: metrics[name] for name in config.evaluation.metrics}


def _read_prompts(config: GRPOConfig) -> tuple[list[str], list[str]]:
    """Training prompts and held-out prompts."""
    held_out, count = read_prompts(Path(config.evaluation.prompts)), config.evaluation.num_prompts
    if len(held_out) < count:
        raise UserError(
            "too few held-out prompts",
            received=f"{len(held_out)} in {config.evaluation.prompts}",
            expected=f"at least evaluation.num_prompts={count}",
            remedy="lower evaluation.num_prompts or add prompts",
        )
    return read_prompts(Path(config.prompts)), held_out[:count]


class _Run:
    """The phases of a run. ``directory`` is None on all ranks but the first, which alone writes."""

    def __init__(
        self,
        trainer: GRPOTrainer,
        held_out: HeldOut,
        stop: StopRequest,
        directory: RunDirectory | None,
        path: Path,
    ) -> None:
        self.trainer, self.held_out, self.stop = trainer, held_out, stop
        self.directory, self.path = directory, path
        self.config, self.model, self.ranks = trainer.config, trainer.model, trainer.ranks
        self.console = Console(stderr=True)
        self.start = time.perf_counter()
        self.stopped: str | None = None

    def execute(self) -> None:
        with ExitStack() as stack:
            trackers = None
            if self.directory is not None:
                self._write_provenance(self.directory)
                settings = self.config.model_dump()
                trackers = stack.enter_context(
                    Trackers(self.directory, self.config.trackers, settings)
                )
            self._restore()
            try:
                # The reference is the model without its adapter, whatever state was restored.
                with adapters_off(self.model.dit):
                    before = self._evaluate("before")
                self._train(trackers)
            except Interrupted:
                self._save()
                if self.directory is not None:
                    self._write_progress(self.directory)
                    self.console.print(
                        f"Stopped after {self.trainer.counters.updates} updates, all saved. "
                        f"Continue with --resume --output-dir {self.path}",
                        markup=False,
                    )
                raise
            # The average is what the run would ship, so it is what is measured.
            with self.trainer.averaged():
                after = self._evaluate("after")
            if self.directory is not None:
                self._finish(self.directory, before, after)

    def _write_provenance(self, directory: RunDirectory) -> None:
        record = collect(
            {
                "checkpoint": Path(self.config.checkpoint),
                "prompts": Path(self.config.prompts),
                "held_out_prompts": Path(self.config.evaluation.prompts),
            }
        )
        rewards = self.trainer.suite.fingerprint()
        directory.write_json("provenance.json", {**record, "rewards": rewards})

    def _restore(self) -> None:
        """Load the newest saved state, and forget metrics of updates that it does not hold."""
        latest = None if self.directory is None else self.directory.latest_checkpoint()
        latest = self.ranks.gather(latest)[0]  # only the first rank looks into the directory
        if latest is not None:
            self.trainer.load(latest)
        if self.directory is not None:
            self.directory.truncate_metrics(self.trainer.counters.updates)

    def _evaluate(self, name: str) -> HeldOutScores:
        """Evaluate, or read what an earlier process evaluated."""
        file = f"held_out_{name}"
        if self.ranks.gather((self.path / f"{file}.jsonl").exists())[0]:
            return HeldOutScores.read(self.path, file)
        total = len(self.held_out.samples)
        with progress_bar(f"held-out, {name}", total, console=self.console) as bar:

            def on_progress(done: int) -> None:
                self.trainer.check_stop()
                bar.update(done)

            scores = self.held_out.evaluate(on_progress)
        if self.directory is not None:
            scores.write(self.path, file)
        return scores

    def _train(self, trackers: Trackers | None) -> None:
        config, trainer = self.config, self.trainer
        done, total = trainer.counters.updates, config.num_updates
        with progress_bar("GRPO", total, completed=done, console=self.console) as bar:
            while trainer.counters.updates < total:
                if any(self.ranks.gather(self.stop.is_set)):
                    raise Interrupted
                try:
                    update = trainer.update()
                except NonFinite as error:
                    self.stopped = f"{error}; training ended with the weights before it"
                    break
                if self.directory is not None and trackers is not None:
                    self._log(self.directory, trackers, update)
                count = trainer.counters.updates
                bar.update(count, **_columns(update))
                if count % config.checkpoint_every == 0 or count == total:
                    self._save()
        if self.stopped:
            self._save()

    def _log(self, directory: RunDirectory, trackers: Trackers, update: Update) -> None:
        config, index = self.config, int(update.record["update"] or 0)
        trackers.log(update.record, step=index)
        # Apart from metrics.jsonl, which two runs of one seed write alike, byte by byte.
        append_jsonl(directory.path / "timing.jsonl", [{"update": index, **update.seconds}])
        every = config.log_samples_every
        is_last = index + 1 == config.num_updates
        if every and (index % every == 0 or is_last) and update.tasks:
            assert update.rewards is not None
            first = update.videos[0].shape
            # One picture has one size; groups of another size bucket are left out.
            same = [i for i, v in enumerate(update.videos) if v.shape == first][:_SHOWN_GROUPS]
            write_groups(
                directory.samples / f"update-{index:04d}.mp4",
                [update.tasks[i].prompt for i in same],
                torch.stack([to_uint8(update.videos[i]) for i in same]).cpu(),
                update.rewards[:, same],
                self.trainer.suite.names,
                config.rollout.fps,
                f"update {index}",
            )

    def _save(self) -> None:
        if self.directory is not None:
            count, keep = self.trainer.counters.updates, self.config.keep_checkpoints
            self.directory.save_checkpoint(count, self.trainer.save, keep)

    def _finish(self, directory: RunDirectory, before: HeldOutScores, after: HeldOutScores) -> None:
        # Two layouts: PEFT for Python, the published one for the public LongCat-Video code.
        with explained("write lora", directory.path / "lora"):
            save_lora(self.model.dit, directory.path / "lora", layout="peft")
            save_lora(self.model.dit, directory.path / "lora.safetensors", layout="longcat")
        summary = summarise(
            self.config,
            self.trainer.counters,
            compare(before.records, after.records, "metrics", self.config),
            compare(before.records, after.records, "rewards", self.config),
            wall_s=time.perf_counter() - self.start,
            stopped=self.stopped,
        )
        directory.write_json("summary.json", summary)
        write_held_out(summary, directory.path / "held_out.png")
        # Without held-out metrics the training rewards are all there is to show.
        group = "metrics" if before.records[0]["metrics"] else "rewards"
        write_before_after(
            directory.samples,
            before.clips,
            after.clips,
            [r["prompt"] for r in before.shown()],
            [r[group] for r in before.shown()],
            [r[group] for r in after.shown()],
            self.config.rollout.fps,
        )
        print_summary(summary, self._write_progress(directory))

    def _write_progress(self, directory: RunDirectory) -> Path:
        """Curves and report of what is there, finished or not."""
        title = f"GRPO, seed {self.config.seed}"
        write_curves(directory.read_metrics(), directory.path / "curves.png", title)
        return write_report(directory.path)


def _columns(update: Update) -> dict[str, float | None]:
    columns = {"reward": update.record.get("reward")}
    for key, value in update.record.items():
        if key.startswith("rewards/") and key.endswith("/mean"):
            columns[key.split("/")[1]] = value
    return columns


def summarise(
    config: GRPOConfig,
    counters: Counters,
    held_out: Mapping[str, Any],
    rewards: Mapping[str, Any],
    *,
    wall_s: float,
    stopped: str | None,
) -> dict[str, Any]:
    """The contents of summary.json."""
    counts = asdict(counters)
    return {
        "updates": counters.updates,
        "wall_s": round(wall_s, 1),
        "seed": config.seed,
        "stopped": stopped,
        "held_out": dict(held_out),
        "rewards": dict(rewards),
        "nfe": {
            key: counts[key]
            for key in ("rollout", "rollout_naive", "train_forwards", "train_forwards_naive")
        },
        "unscored": counters.unscored,
    }


def print_summary(summary: Mapping[str, Any], report: Path) -> None:
    """Print the before/after table, what it cost, and where the report is."""
    console = Console()
    rows: list[list[str | float | int | None]] = []
    for label, group in (("oracle", "held_out"), ("reward", "rewards")):
        for name, r in summary[group].items():
            interval = next((v for k, v in r.items() if k.startswith("ci")), None)
            text = "-" if interval is None else f"[{interval[0]:+.3f}, {interval[1]:+.3f}]"
            rows.append([f"{label} {name}", r["before"], r["after"], r["diff"], text, r["n"]])
    columns = ["held-out prompts", "before", "after", "change", "interval", "n"]
    title = (
        f"GRPO seed {summary['seed']}: {summary['updates']} updates in {summary['wall_s']:.0f} s"
    )
    console.print(result_table(title, columns, rows))
    nfe, unscored = summary["nfe"], sum(summary["unscored"].values())
    console.print(
        f"{nfe['rollout']:.0f} rollout evaluations (naive {nfe['rollout_naive']:.0f}), "
        f"{nfe['train_forwards']} training forwards (naive {nfe['train_forwards_naive']}), "
        f"{unscored} unscored samples",
        markup=False,
    )
    if summary["stopped"]:
        console.print(f"Stopped early: {summary['stopped']}", markup=False)
    console.print(f"Report: {report}", markup=False, soft_wrap=True)


def estimate(config: GRPOConfig) -> str:
    """What a run would do and cost, in words and counts."""
    rollout, size = config.rollout, config.num_generations
    per_prompt = mean_rollout_evaluations(config)
    prompts = config.num_updates * config.prompts_per_update
    forwards = (1 + (config.loss.beta > 0)) * config.num_iterations
    evaluation = 2 * config.evaluation.num_prompts * config.evaluation.samples_per_prompt
    rewards = ", ".join(f"{name} x{w:g}" for name, w in config.rewards.reward_weights.items())
    videos = f"({rollout.num_frames} frames, {rollout.height}x{rollout.width})"
    branches = 1 if rollout.cfg == "none" or rollout.guidance_scale == 1 else 2
    return "\n".join(
        [
            f"checkpoint  {config.checkpoint}",
            f"prompts     {config.prompts}",
            f"rewards     {rewards}",
            f"updates     {config.num_updates} of {config.prompts_per_update} prompts"
            f" x {size} videos {videos}",
            f"rollout     {prompts * per_prompt:,.0f} velocity evaluations expected"
            f" ({per_prompt:g} a prompt), each {branches} DiT samples",
            f"update      {prompts * forwards:,} training forwards (policy and reference)",
            f"decoding    {prompts * size:,} videos, each scored by every reward",
            f"held-out    {evaluation} videos, {evaluation * rollout.num_steps:,} evaluations",
        ]
    )
