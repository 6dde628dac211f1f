"""Train a judge on ratings: a run directory with a judge directory in it.

    RUN/  config.yaml  provenance.json  metrics.jsonl  summary.json  checkpoints/checkpoint-N/
          judge/            the trained, calibrated judge; a LoRA is merged
          calibration/      its raw scores of the calibration part
          test.csv          list of the test samples: new prompts, known models
          test_new_models.csv, calibration.csv

Two kinds share all of it: a regression of the mean ratings on the rewards' backbone, and supervised
fine-tuning of a vision-language model that answers in text. The update with the lowest loss on the
calibration part is the result. Ctrl-C ends at once; ``resume`` continues from the last evaluation.
"""

import functools
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from longtake.core.weights import read_json
from longtake.evaluation.judge.calibration import Calibration, fit_curves
from longtake.evaluation.judge.config import GenerativeTrainingConfig, JudgeTrainingConfig
from longtake.evaluation.judge.data import (
    Part,
    RatedClips,
    TrainingRecord,
    split_ratings,
    with_paths_from,
)
from longtake.evaluation.judge.directory import set_calibration, write_judge
from longtake.evaluation.judge.levels import coefficients
from longtake.evaluation.judge.prompt import judge_prompt
from longtake.evaluation.judge.regression import (
    TOKEN_OF,
    RatedDataset,
    check_kind,
    collate_rated,
    judge_tokens,
    target_scale,
)
from longtake.evaluation.judge.score import raw_scores
from longtake.evaluation.judge.vlm import (
    AnswerCollator,
    ClipQuestions,
    VlmSpec,
    check_checkpoint,
    held_out_examples,
    load_model,
    load_processor,
    training_examples,
    write_vlm,
)
from longtake.evaluation.ratings import write_samples
from longtake.rewards.directory import export_reward, read_reward_directory
from longtake.rewards.frames import FrameSampler
from longtake.rewards.spec import Normalization
from longtake.rewards.train import (
    HeadTraining,
    RatingObjective,
    RunLog,
    latest_checkpoint,
    trainer_arguments,
    updates_in,
)
from longtake.runtime.config import config_to_yaml
from longtake.runtime.device import pick_device, refuse_launcher
from longtake.runtime.errors import ConfigError, UserError
from longtake.runtime.files import digest, to_plain
from longtake.runtime.progress import progress_bar, result_table
from longtake.runtime.provenance import collect
from longtake.runtime.run_directory import RunDirectory
from longtake.runtime.statistics import FloatArray
from longtake.runtime.tracking import Trackers, check_trackers

JUDGE_FOLDER = "judge"
Parts = Mapping[Part, RatedClips]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The best weights of a training: ``write`` puts them into a folder."""

    write: Callable[[Path], object]
    best_update: int
    """Updates after which they were taken."""


def train_judge(
    config: JudgeTrainingConfig,
    *,
    output_dir: Path,
    resume: bool = False,
    dry_run: bool = False,
    device: str = "auto",
) -> Path | None:
    """Train, export and calibrate a judge of the kind that the type of ``config`` names.

    Returns the judge directory, ``output_dir/judge``; None for a dry run, which prints the parts of
    the data and writes nothing.
    """
    refuse_launcher("judges are trained", "micro_batch and gradient_checkpointing save memory")
    where = pick_device(device)
    check_trackers(config.trackers)
    if not config.base:
        raise ConfigError(
            "base is not set",
            expected="a directory to start from",
            remedy="pass it with --base or with --set base=...",
        )
    # Making it refuses a base that cannot be trained.
    kind: Regression | FineTuning = (
        FineTuning(config) if isinstance(config, GenerativeTrainingConfig) else Regression(config)
    )
    parts, findings = split_ratings(config.data, config.dimensions, config.seed)
    target_scale(parts["train"])  # ratings that do not differ cannot be learned by either kind
    console = Console(stderr=True)
    columns = ["part", "clips", "prompts", "models", "ratings"]
    rows = [
        [
            name,
            len(part.mean),
            len({item.prompt for item in part.samples.samples}),
            len(part.samples.models),
            len(part.ratings),
        ]
        for name, part in parts.items()
    ]
    console.print(result_table(f"judge of {', '.join(config.dimensions)}", columns, rows))
    for finding in findings:
        console.print(f"! {finding}", markup=False, highlight=False, soft_wrap=True)
    if dry_run:
        return None
    start = time.monotonic()
    with ExitStack() as stack:
        yaml = config_to_yaml(config)
        run = stack.enter_context(RunDirectory.create(output_dir, yaml, resume=resume))
        trackers = stack.enter_context(Trackers(run, config.trackers, {"seed": config.seed}))
        # Before training, so that a run that is stopped says what it was made of.
        files = (*config.data.ratings, str(config.data.samples))
        record = collect({name: Path(name) for name in files})
        run.write_json("provenance.json", {**record, "base": kind.base})
        for name in parts.keys() - {"train", "unused"}:
            samples = with_paths_from(parts[name].samples, run.path.absolute())
            write_samples(run.path / f"{name}.csv", samples)
        trained = kind.train(parts, run, trackers, where)
        target = run.path / JUDGE_FOLDER
        with run.writing(JUDGE_FOLDER):
            shutil.rmtree(target, ignore_errors=True)  # of the same run, finished before
            judge = write_judge(
                target,
                trained.write,
                backbone=kind.backbone,
                dimensions=config.dimensions,
                training=TrainingRecord.of(parts),
                provenance={
                    "trained_from": to_plain(kind.base),
                    "best_update": trained.best_update - 1,
                    "seed": config.seed,
                },
            )
        held = parts["calibration"]
        scores = raw_scores(judge, held, run.path / "calibration", where)
        refused = ""
        try:
            curves = fit_curves(held, scores, config.calibration)
            judge = set_calibration(judge, Calibration(judge=judge.digest, curves=curves))
        except UserError as error:  # an uncalibrated judge still ranks
            refused = f"{error.what}: {error.received}"
        summary: dict[str, Any] = {
            "updates": config.updates,
            "best_update": trained.best_update - 1,
            "wall_s": time.monotonic() - start,
            "seed": config.seed,
            "dimensions": list(config.dimensions),
            "clips": {name: len(part.mean) for name, part in parts.items()},
            "calibration_part": agreement(held, scores),
            "unscored": int(np.isnan(scores).any(1).sum()),
            "calibrated": judge.calibration is not None,
            "not_calibrated": refused,
            "judge": judge.name,
        }
        run.write_json("summary.json", summary)
    title = f"{judge.name} on the calibration part (no claim: it chose the update)"
    measured = [[name, *item.values()] for name, item in summary["calibration_part"].items()]
    console.print(result_table(title, ["dimension", "PLCC", "SRCC", "n"], measured))
    if refused:
        console.print(f"! not calibrated: {refused}", markup=False, soft_wrap=True)
    return judge.path


def agreement(part: RatedClips, scores: FloatArray) -> dict[str, dict[str, float]]:
    """PLCC, SRCC and n of each dimension over clips that are rated and scored [n, D]."""
    measured = {}
    for column, name in enumerate(part.dimensions):
        used = (part.count[:, column] > 0) & np.isfinite(scores[:, column])
        plcc, srcc, *_ = coefficients(part.mean[used, column], scores[used, column]).tolist()
        measured[name] = {"plcc": plcc, "srcc": srcc, "n": int(used.sum())}
    return measured


class Regression:
    """The mean ratings, by a head on the rewards' backbone (:class:`RatingObjective`)."""

    backbone = "qwen2vl"

    def __init__(self, config: JudgeTrainingConfig) -> None:
        self._config, self._tokens = config, judge_tokens(config.dimensions)
        self._source = read_reward_directory(config.base)
        check_kind(self._source)

    @property
    def base(self) -> Mapping[str, Any]:
        """What fixes the model that the training starts from."""
        return self._source.fingerprint()

    def train(
        self, parts: Parts, run: RunDirectory, trackers: Trackers, where: torch.device
    ) -> Trained:
        """Train, or go on with what is in ``run``."""
        config, scale = self._config, target_scale(parts["train"])
        both = parts["train"], parts["calibration"]
        cache = config.data.cache_mib * 2**20 // sum(len(part.mean) for part in both)  # of a clip
        train, held_out = (
            RatedDataset(part, self._source, scale, cache * len(part.mean)) for part in both
        )
        head = HeadTraining(
            source=self._source,
            config=config,
            tokens=self._tokens,
            objective=RatingObjective(),
            train=train,
            held_out=held_out,
            collate=collate_rated,
            updates=config.updates,
            batch=config.batch_clips,
        ).run(run, trackers, where, Console(stderr=True))
        head.model.to("cpu")  # the device is needed for the judge as it is written
        # (raw - mean) / std of a reward directory, so that its scores are points.
        normalization = {
            TOKEN_OF[name]: Normalization(mean=-mean / std, std=1 / std)
            for name, (mean, std) in scale.items()
        }
        spec = self._source.spec.replace(normalization=normalization)
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        provenance = to_plain({"trained_from": self.base, "best_update": head.best_update - 1})
        return Trained(
            write=lambda folder: export_reward(
                head.model, folder, self._source, spec, dtype, provenance
            ),
            best_update=head.best_update,
        )


class FineTuning:
    """Answers of single raters, by a vision-language model (:class:`AnswerCollator`)."""

    backbone = "generative"

    def __init__(self, config: GenerativeTrainingConfig) -> None:
        for name in ("trl", "peft"):
            if find_spec(name) is None:
                raise UserError(
                    f"fine-tuning a judge needs the package `{name}`",
                    received="not installed",
                    remedy="pip install 'longtake[judge]', or train the other kind of judge: "
                    "--kind regression",
                )
        self._config, self._folder = config, Path(config.base)
        check_checkpoint(self._folder)
        self._spec = VlmSpec(
            prompt=judge_prompt(config.dimensions),
            sampler=FrameSampler(target_fps=config.target_fps, max_frames=config.max_frames),
            max_frame_pixels=config.max_frame_pixels,
        )

    @functools.cached_property  # a digest of 16 GB takes a while
    def base(self) -> Mapping[str, Any]:
        """What fixes the model that the training starts from."""
        return {"checkpoint": self._config.base, "sha256": digest(self._folder)}

    def train(
        self, parts: Parts, run: RunDirectory, trackers: Trackers, where: torch.device
    ) -> Trained:
        """Train, or go on with what is in ``run``."""
        config, processor = self._config, load_processor(self._folder)
        checkpoint = latest_checkpoint(run.checkpoints)
        done = updates_in(checkpoint)
        run.truncate_metrics(done)
        if done < config.updates:
            with progress_bar("updates", config.updates, completed=done) as bar:
                self._fine_tune(processor, parts, run, checkpoint, where, RunLog(trackers, bar))
            checkpoint = latest_checkpoint(run.checkpoints)
        assert checkpoint is not None
        state: dict[str, Any] = dict(read_json(checkpoint / "trainer_state.json"))
        best = int(state["best_global_step"])
        return Trained(
            write=lambda folder: write_vlm(
                folder,
                self._spec,
                self._merged(run.checkpoints / f"checkpoint-{best}"),
                processor,
            ),
            best_update=best,
        )

    def _fine_tune(
        self,
        processor: Any,
        parts: Parts,
        run: RunDirectory,
        checkpoint: Path | None,
        where: torch.device,
        log: RunLog,
    ) -> None:
        from peft import LoraConfig

        from longtake.training.vlm_sft import LANGUAGE_LAYERS, fine_tune

        config = self._config
        # LoRA leaves the base as it is, so half the bytes do; trained weights need float32.
        precise = config.method == "full" or config.precision == "float32"
        dtype = torch.float32 if precise else torch.bfloat16
        model = load_model(self._folder, torch.device("cpu"), dtype)
        if not config.train_vision:
            model.model.visual.requires_grad_(False)
        lora = LoraConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            target_modules="all-linear" if config.train_vision else LANGUAGE_LAYERS,
        )
        train, held = parts["train"], parts["calibration"]
        collate = AnswerCollator(
            (train, held),
            ClipQuestions(processor, self._spec, config.dimensions),
            self._spec,
            # Each loader process keeps clips of its own.
            config.data.cache_mib * 2**20 // config.workers,
            config.seed,
        )
        with run.writing("checkpoints"):
            fine_tune(
                model,
                processor,
                trainer_arguments(
                    config, run.checkpoints, config.updates, config.batch_clips, where
                ),
                train=training_examples(
                    len(train.mean), config.batch_clips, config.updates, config.seed
                ),
                held_out=held_out_examples(len(held.mean)),
                collate=collate,
                lora=lora if config.method == "lora" else None,
                activation_checkpointing=config.gradient_checkpointing,
                seed=config.seed,
                callbacks=[log],
                resume=checkpoint,
            )

    def _merged(self, checkpoint: Path) -> Any:
        """The trained model without LoRA, in the precision in which it is kept."""
        config, cpu = self._config, torch.device("cpu")
        if config.method == "lora":
            from peft import PeftModel

            # Merged in float32: a small update would be lost in bfloat16 twice.
            base = load_model(self._folder, cpu, torch.float32)
            model = PeftModel.from_pretrained(base, str(checkpoint)).merge_and_unload()
        else:
            model = load_model(checkpoint, cpu, torch.float32)
        return model.to(torch.bfloat16 if config.precision == "bfloat16" else torch.float32)
