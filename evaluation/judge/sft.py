"""Train a judge that answers in text: supervised fine-tuning of a vision-language model.

    RUN/  config.yaml  provenance.json  metrics.jsonl  summary.json  checkpoints/step-N/
          judge/            the trained, calibrated judge, its LoRA merged
          calibration/      its raw scores of the calibration part
          test.csv          list of the test samples: new prompts, known models
          test_new_models.csv, calibration.csv

The update with the lowest loss on the calibration part is exported. Ctrl-C ends at once; ``resume``
continues from the last evaluation.
"""

import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from longtake.core.weights import read_json
from longtake.evaluation.judge.answer import judge_prompt
from longtake.evaluation.judge.calibrate import fit_curves, raw_scores
from longtake.evaluation.judge.calibration import Calibration
from longtake.evaluation.judge.generative_directory import GenerativeSpec, write_generative
from longtake.evaluation.judge.generative_inputs import ClipQuestions, ShownClip, shown_clip
from longtake.evaluation.judge.judge_directory import JudgeDirectory, set_calibration, write_judge
from longtake.evaluation.judge.rated_batches import ClipCache, target_scale
from longtake.evaluation.judge.sft_config import GenerativeTrainingConfig
from longtake.evaluation.judge.sft_examples import (
    AnswerCollator,
    RatingDraws,
    held_out_examples,
    training_examples,
)
from longtake.evaluation.judge.split import Part
from longtake.evaluation.judge.train import JUDGE_FOLDER
from longtake.evaluation.judge.training_parts import (
    TrainingParts,
    agreement,
    check_given,
    print_agreement,
    record_inputs,
    training_parts,
)
from longtake.evaluation.judge.vlm_checkpoint import check_checkpoint, load_processor, load_vlm
from longtake.rewards.frames import FrameSampler
from longtake.runtime.config import config_to_yaml
from longtake.runtime.device import pick_device, refuse_launcher
from longtake.runtime.errors import CheckpointError, UserError
from longtake.runtime.files import digest, to_plain
from longtake.runtime.progress import ProgressBar, progress_bar
from longtake.runtime.run_directory import RunDirectory
from longtake.runtime.statistics import FloatArray
from longtake.runtime.tracking import Trackers, check_trackers

_STATE_FILE = "trainer_state.json"  # of a checkpoint; the trainer writes it
_TRAINER_FOLDER = "trainer"  # where the trainer writes a checkpoint before it gets its place
_HELD_OUT_DRAWS = 2  # of the ratings of each clip of the calibration part


def train_generative(
    config: GenerativeTrainingConfig,
    *,
    output_dir: Path,
    resume: bool = False,
    dry_run: bool = False,
    device: str = "auto",
) -> Path | None:
    """Train, export and calibrate a judge.

    Args:
        config: all settings.
        output_dir: run directory.
        resume: continue the run in ``output_dir``.
        dry_run: print the plan and write nothing.
        device: "auto", "cpu" or "cuda".

    Returns:
        The judge directory, ``output_dir/judge``; None for a dry run.

    Raises:
        UserError: unusable settings, data or run directory, or an optional package is missing.
        CheckpointError: the base or a checkpoint cannot be read.
    """
    where = pick_device(device)
    _check_environment()
    check_trackers(config.trackers)
    check_given(**{"base": config.base, "data.ratings": config.data.ratings})
    base = Path(config.base)
    check_checkpoint(base)
    data = training_parts(config.data, config.dimensions, config.seed)
    target_scale(data.parts["train"])  # refuses dimensions without ratings that differ
    spec = GenerativeSpec(
        prompt=judge_prompt(config.dimensions),
        sampler=FrameSampler(target_fps=config.target_fps, max_frames=config.max_frames),
        max_frame_pixels=config.max_frame_pixels,
    )
    console = Console(stderr=True)
    data.show(console)
    if dry_run:
        return None
    with ExitStack() as stack:
        run = stack.enter_context(
            RunDirectory.create(output_dir, config_to_yaml(config), resume=resume)
        )
        trackers = stack.enter_context(Trackers(run, config.trackers, {"seed": config.seed}))
        return _Run(config, data, spec, run, trackers, where, console).execute()


def _check_environment() -> None:
    for name in ("trl", "peft"):
        if find_spec(name) is None:
            raise UserError(
                f"fine-tuning a judge needs the package `{name}`",
                received="not installed",
                remedy="pip install 'longtake[judge]', or train the other kind of judge: "
                "--kind regression",
            )
    refuse_launcher("judges are trained", "micro_batch and gradient_checkpointing save memory")


class _Run:
    """One training from the checkpoint to the summary."""

    def __init__(
        self,
        config: GenerativeTrainingConfig,
        data: TrainingParts,
        spec: GenerativeSpec,
        run: RunDirectory,
        trackers: Trackers,
        where: torch.device,
        console: Console,
    ) -> None:
        self.config, self.data, self.spec, self.run = config, data, spec, run
        self.trackers, self.where, self.console = trackers, where, console
        self.base = Path(config.base)
        self.processor = load_processor(self.base)
        self.questions = ClipQuestions(self.processor, spec, config.dimensions)

    def execute(self) -> Path:
        start, config = time.monotonic(), self.config
        base = {"checkpoint": config.base, "sha256": digest(self.base)}
        record_inputs(self.run, config.data, self.data, base)
        step = self._latest()
        self.run.truncate_metrics(step)
        if step < config.updates:
            self._train(step)
        best = _best(self._checkpoint(config.updates))
        judge = self._export(best, base)
        part = self.data.parts["calibration"]
        scores = self._raw_scores(judge)
        judge, refused = self._calibrate(judge, scores)
        summary = {
            "updates": config.updates,
            "best_update": best - 1,
            "wall_s": time.monotonic() - start,
            "seed": config.seed,
            "dimensions": list(config.dimensions),
            "clips": {name: len(one.mean) for name, one in self.data.parts.items()},
            "calibration_part": agreement(part, scores),
            "unscored": int(np.isnan(scores).any(1).sum()),
            "calibrated": judge.calibration is not None,
            "not_calibrated": refused,
            "judge": judge.name,
        }
        self.run.write_json("summary.json", summary)
        print_agreement(self.console, summary)
        return judge.path

    def _train(self, step: int) -> None:
        from longtake.evaluation.judge.sft_trainer import run_trainer

        config = self.config
        precise = config.method == "full" or config.precision == "float32"
        model = load_vlm(
            self.base, torch.device("cpu"), torch.float32 if precise else torch.bfloat16
        )
        sizes = {name: len(self.data.parts[name].mean) for name in ("train", "calibration")}
        total = sum(sizes.values())
        train = training_examples(sizes["train"], config.batch_clips, config.updates, config.seed)
        held = held_out_examples(sizes["calibration"], _HELD_OUT_DRAWS)
        folder = self.run.path / _TRAINER_FOLDER
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed while it saved
        with progress_bar("judge", config.updates, completed=step, console=self.console) as bar:
            run_trainer(
                model,
                self.processor,
                config,
                folder,
                train=(train, self._collator("train", sizes["train"] / total)),
                held=(held, self._collator("calibration", sizes["calibration"] / total)),
                device=self.where,
                resume=self._checkpoint(step) if step else None,
                log=lambda done, record: self._log(bar, done, record),
                saved=self._saved,
            )
        shutil.rmtree(folder, ignore_errors=True)

    def _collator(self, name: Part, share: float) -> AnswerCollator:
        """Batches of a part, which gets this share of the memory for clips."""
        part, config = self.data.parts[name], self.config
        # Every worker process keeps clips of its own.
        cache = int(config.data.cache_mib * 2**20 * share) // config.workers
        clips: ClipCache[ShownClip] = ClipCache(
            part,
            lambda video, fps: shown_clip(video, fps, self.spec),
            self.questions.problem,
            cache,
        )
        return AnswerCollator(clips, self.questions, RatingDraws(part, config.seed))

    def _log(self, bar: ProgressBar, done: int, record: Mapping[str, float]) -> None:
        self.trackers.log({"update": done - 1, **record}, step=done)
        bar.update(done, **record)

    def _saved(self, step: int, folder: Path, best: int) -> None:
        """Give a checkpoint of the trainer its place; the newest and the best one stay."""

        def move(target: Path) -> None:
            for item in folder.iterdir():
                shutil.move(item, target / item.name)

        self.run.save_checkpoint(step, move, keep=0)
        folder.rmdir()
        for old in self.run.checkpoints.glob("step-*"):
            if old not in (self._checkpoint(step), self._checkpoint(best)):
                shutil.rmtree(old)

    def _checkpoint(self, step: int) -> Path:
        return self.run.checkpoints / f"step-{step}"

    def _latest(self) -> int:
        """Updates that are done."""
        latest = self.run.latest_checkpoint()
        if latest is None:
            return 0
        _best(latest)  # refuses a torn one
        return int(latest.name.removeprefix("step-"))

    def _export(self, best: int, base: Mapping[str, Any]) -> JudgeDirectory:
        config, target = self.config, self.run.path / JUDGE_FOLDER
        model = _trained(self.base, self._checkpoint(best), config)
        trained_on = to_plain({"trained_from": base, "best_update": best - 1})

        def write(folder: Path) -> None:
            model.save_pretrained(folder)
            self.processor.save_pretrained(folder)

        with self.run.writing(JUDGE_FOLDER):
            shutil.rmtree(target, ignore_errors=True)  # of the same run, finished before
            return write_judge(
                target,
                lambda folder: write_generative(folder, self.spec, write),
                backbone="generative",
                dimensions=config.dimensions,
                training=self.data.seen(),
                provenance={**trained_on, "seed": config.seed},
            )

    def _raw_scores(self, judge: JudgeDirectory) -> FloatArray:
        part = self.data.parts["calibration"]
        with progress_bar("raw scores", len(part.mean), console=self.console) as bar:
            return raw_scores(
                judge,
                part,
                self.run.path / "calibration",
                device=self.where,
                on_progress=bar.update,
            )

    def _calibrate(self, judge: JudgeDirectory, scores: FloatArray) -> tuple[JudgeDirectory, str]:
        try:
            curves = fit_curves(self.data.parts["calibration"], scores, self.config.calibration)
        except UserError as error:
            return judge, f"{error.what}: {error.received}"
        return set_calibration(judge, Calibration(judge=judge.digest, curves=curves)), ""


def _best(checkpoint: Path) -> int:
    """Updates with the lowest loss so far, from a checkpoint of the trainer.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    state = read_json(checkpoint / _STATE_FILE)
    best = state.get("best_global_step")
    if not isinstance(best, int):
        raise CheckpointError(
            "the checkpoint of the judge cannot be read",
            received=str(checkpoint),
            remedy="delete this folder and resume; the run starts again",
        )
    return best


def _trained(base: Path, checkpoint: Path, config: GenerativeTrainingConfig) -> Any:
    """The trained model without LoRA, in the precision in which it is kept."""
    cpu = torch.device("cpu")
    if config.method == "lora":
        from peft import PeftModel

        # Merged in float32: a small update would be lost in bfloat16 twice.
        model = PeftModel.from_pretrained(load_vlm(base, cpu, torch.float32), str(checkpoint))
        model = model.merge_and_unload()
    else:
        model = load_vlm(checkpoint, cpu, torch.float32)
    return model.to(torch.bfloat16 if config.precision == "bfloat16" else torch.float32)
