"""Train and measure the tiny judge: ``python cli.py sandbox judge``.

Clips of the sandbox (renders, damaged renders, samples of the tiny model at several qualities) are
rated by simulated people, a small Qwen2-VL learns captions and then the ratings (trainer: that of
``eval judge train``), and a report card measures it on held-out prompts, on a generator that it has
never seen, and under the controls; beside it stands the truth itself, the best that any judge could
be with these raters. Every stage that is finished is kept; ``--resume`` goes on from there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, NonNegativeFloat, model_validator

from longtake.core.generation import TINY_CHECKPOINT
from longtake.evaluation.judge.calibration import CalibrationSettings
from longtake.evaluation.judge.card import (
    CONTROLS,
    ReportCard,
    report_card_from_files,
    report_tables,
)
from longtake.evaluation.judge.config import JudgeDataConfig, JudgeTrainingConfig
from longtake.evaluation.judge.directory import (
    MODEL_FOLDER,
    JudgeDirectory,
    read_judge,
    set_calibration,
    write_judge,
)
from longtake.evaluation.judge.levels import LevelSettings
from longtake.evaluation.judge.score import score_samples
from longtake.evaluation.judge.train import JUDGE_FOLDER, train_judge
from longtake.evaluation.ratings import read_samples
from longtake.evaluation.tables import write_result
from longtake.rewards.directory import read_reward_directory, write_in_bfloat16
from longtake.rewards.model_inputs import PromptTemplate
from longtake.rewards.train_config import Precision
from longtake.runtime.config import Config, config_to_yaml, merge_config
from longtake.runtime.device import pick_device, refuse_launcher
from longtake.runtime.errors import ConfigError
from longtake.runtime.files import to_plain
from longtake.runtime.progress import progress_bar
from longtake.runtime.run_directory import RunDirectory
from longtake.sandbox.facts import Split
from longtake.sandbox.preferences import preference_prompts
from longtake.sandbox.raters import SimulatedRater
from longtake.sandbox.recipes.captions import CaptionConfig, captioned_base
from longtake.sandbox.recipes.ratings import (
    RATINGS,
    SAMPLES,
    TEST_PROMPTS,
    TRUTH,
    RatingConfig,
    make_ratings,
)
from longtake.sandbox.recipes.samples import QUALITIES, sample_qualities
from longtake.sandbox.recipes.tiny_vlm import TinySize

# The caption stands first: whether a thing should move is said there, so motion needs it too.
TEMPLATE = PromptTemplate(
    text="\n{text_prompt}\nSharp? <|VQ_reward|>\nMoving? <|MQ_reward|>\nAs told? <|TA_reward|>\n",
    reward_tokens=("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"),
)
# Held-out prompts of known generators, and of one that was never trained on.
PARTS = ("test", "test_new_models")


class TinyJudgeConfig(Config):
    """Everything that the tiny judge follows from."""

    seed: int = 0
    """Names every draw."""
    checkpoint: str = str(TINY_CHECKPOINT)
    """The model whose samples are rated beside the renders."""
    train_prompts: int = 5000
    """Prompts of the train split."""
    held_out_prompts: int = 300
    """Prompts of the held-out split; nothing is chosen by them."""
    damaged: int = 5
    """Damaged renders of a prompt, beside a clean, a still and a wrong one."""
    held_out_quality: int = 2
    """Number of the sampler quality (sandbox/recipes/samples.py) that is only tested."""
    raters: int = Field(default=12, ge=5)
    """Simulated raters."""
    rater_noise: tuple[float, float] = (0.3, 0.6)
    """Least and largest standard deviation of a rater's impression, points."""
    rater_bias: NonNegativeFloat = 0.2
    """Standard deviation of the raters' biases, points."""
    calibration_share: float = 0.06
    """Share of the training prompts that choose the best update and calibrate."""
    min_points: int = 50
    """Rated clips that a calibration needs."""
    sample_batch: int = 8
    """Clips sampled at a time; some 250 fill a GPU."""
    workers: int = 0
    """Processes that render and rate."""
    loaders: int = 8
    """Processes that decode clips for a GPU in training."""
    cache_mib: int = 65536
    """Memory for resized frames: 0.6 MiB a clip at the default size."""
    data: str | None = None
    """Folder of another run's ratings (``OUT/data``); null makes them."""
    base: str | None = None
    """Reward directory to train from, such as ``judge/model`` of an earlier run; null pretrains one
    on captions."""
    size: TinySize = TinySize(
        width=128, layers=4, vision_width=128, vision_layers=4, side=112, frames_per_second=8.0
    )
    """Of the model and its frames: all of them, as two a second, the published rate, miss what
    flickers and jumps."""
    captions: CaptionConfig = CaptionConfig()
    """What the backbone learns before the ratings."""
    updates: int = 5000
    """Optimiser steps."""
    optimizer: Literal["adamw", "muon"] = "muon"
    """adamw | muon, as ``eval judge train``."""
    learning_rate: float = 1.5e-3
    """With a cosine to 0."""
    batch_clips: int = 160
    """Clips per update."""
    eval_every: int = 500
    """Updates between evaluations on the calibration part."""
    precision: Precision = "float32"
    """float32 | bfloat16."""
    controls: tuple[str, ...] = CONTROLS
    """Controls that are run on the held-out prompts."""
    resamples: int = 1000
    """Of the report's bootstrap."""

    @model_validator(mode="after")
    def _raters_and_quality_exist(self) -> Self:
        if self.held_out_quality not in range(len(QUALITIES)):
            raise ConfigError(
                "held_out_quality is no quality of the sampler",
                received=self.held_out_quality,
                expected=f"0 to {len(QUALITIES) - 1}",
            )
        low, high = self.rater_noise
        if not 0 <= low <= high:
            raise ConfigError(
                "the noise of the simulated raters is no range",
                received=f"{low:g} to {high:g}",
                expected="0 <= least <= largest noise",
            )
        return self


def train_tiny_judge(
    out: Path,
    overrides: Sequence[str] = (),
    *,
    config_file: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Make ratings, train, score held-out clips and write the report cards.

    Returns the record of ``out/agreement.json``; with ``dry_run`` only the plan. The judge is
    ``out/judge``, the report cards are ``out/report``. What later stages would refuse is refused
    before minutes of making ratings.
    """
    config = merge_config(TinyJudgeConfig(), config_file, overrides)
    _settings(config, "base", Path("data"))
    LevelSettings(resamples=config.resamples)
    if config.base is not None:
        read_reward_directory(config.base)
    if config.data is not None and not (Path(config.data) / SAMPLES).is_file():
        raise ConfigError(
            "data holds no ratings",
            received=str(config.data),
            expected=f"a folder with {SAMPLES}: OUT/data of another run",
            remedy="correct the path, or leave data out: the ratings are then made",
        )
    if dry_run:
        clips = config.damaged + 3 + len(QUALITIES)
        prompts = config.train_prompts + config.held_out_prompts
        return {"clips": clips * prompts, "config": config.model_dump()}
    refuse_launcher("judges are trained")
    with RunDirectory.create(out, config_to_yaml(config), resume=resume) as run:
        data = run.path / "data" if config.data is None else Path(config.data)
        if not (data / SAMPLES).is_file():
            _make_data(data, config, device)
        if not (run.path / JUDGE_FOLDER).is_dir():
            _train(run, data, config, device)
        judge = read_judge(run.path / JUDGE_FOLDER)
        record: dict[str, Any] = {"judge": judge.name}
        for part in PARTS:
            record[part] = _measure(run, data, part, judge, config, device)
        run.write_json("agreement.json", to_plain(record))
    return record


def _make_data(data: Path, config: TinyJudgeConfig, device: str) -> None:
    counts: dict[Split, int] = {"train": config.train_prompts, "held_out": config.held_out_prompts}
    prompts = [
        text
        for split, count in counts.items()
        for text in preference_prompts(split, 0, count, config.seed)
    ]
    samples = sample_qualities(
        config.checkpoint, prompts, config.seed, batch_size=config.sample_batch, device=device
    )
    ratings = RatingConfig(raters=raters(config), damaged=config.damaged, seed=config.seed)
    make_ratings(data, counts, ratings, samples, config.workers)


def raters(config: TinyJudgeConfig) -> tuple[SimulatedRater, ...]:
    """The pool: biases and noise levels named by the seed."""
    rng = np.random.default_rng([config.seed, 11])
    return tuple(
        SimulatedRater(
            name=f"rater{i + 1}",
            bias=float(rng.normal(0.0, config.rater_bias)),
            noise=float(rng.uniform(*config.rater_noise)),
        )
        for i in range(config.raters)
    )


def _train(run: RunDirectory, data: Path, config: TinyJudgeConfig, device: str) -> None:
    work = run.path / "training"
    base = config.base or captioned_base(
        run.path,
        "videoreward",
        preference_prompts("train", 0, config.train_prompts, config.seed),
        config.size,
        config.captions,
        seed=config.seed,
        template=TEMPLATE,
        device=device,
        # On a CPU the trainer does without loaders too.
        loaders=config.loaders if pick_device(device).type == "cuda" else 0,
    )
    trained = train_judge(
        _settings(config, base, data), output_dir=work, resume=work.is_dir(), device=device
    )
    assert trained is not None
    with run.writing(JUDGE_FOLDER):
        halved(read_judge(trained), run.path / JUDGE_FOLDER)


def halved(judge: JudgeDirectory, path: Path) -> JudgeDirectory:
    """The judge with bfloat16 weights, as GPUs load it anyway, in a new directory.

    Its calibration is kept.
    """
    source = read_reward_directory(judge.path / MODEL_FOLDER)
    written = write_judge(
        path,
        lambda folder: write_in_bfloat16(source, folder),
        backbone=judge.backbone,
        dimensions=judge.dimensions,
        training=judge.training,
        provenance=judge.provenance,
    )
    if judge.calibration is None:
        return written
    return set_calibration(written, judge.calibration.replace(judge=written.digest))


def _settings(config: TinyJudgeConfig, base: str | Path, data: Path) -> JudgeTrainingConfig:
    """Settings of ``eval judge train``; ConfigError if it cannot run with these."""
    return JudgeTrainingConfig(
        base=str(base),
        data=JudgeDataConfig(
            ratings=(str(data / RATINGS),),
            samples=str(data / SAMPLES),
            held_out_models=(QUALITIES[config.held_out_quality].generator,),
            test_prompts=str(data / TEST_PROMPTS),
            test_share=0.0,
            calibration_share=config.calibration_share,
            cache_mib=config.cache_mib,
        ),
        calibration=CalibrationSettings(min_points=config.min_points, min_prompts=5),
        method="full",
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        updates=config.updates,
        batch_clips=config.batch_clips,
        micro_batch=config.batch_clips,
        eval_every=min(config.eval_every, config.updates),
        precision=config.precision,
        workers=config.loaders,
        seed=config.seed,
    )


def _measure(
    run: RunDirectory,
    data: Path,
    part: str,
    judge: JudgeDirectory,
    config: TinyJudgeConfig,
    device: str,
) -> dict[str, Any]:
    """Score a part, write its report cards, and return their correlations over videos."""
    listed, folder = run.path / "training" / f"{part}.csv", run.path / "scores" / part
    samples = read_samples(listed)
    controls = config.controls if part == "test" else ()
    # Each control is a pass over all clips of its own; the bar starts again with each.
    with progress_bar(f"scores {part}", len(samples.samples)) as bar:
        score_samples(
            samples,
            judge,
            folder,
            device=pick_device(device),
            calibrated=judge.calibration is not None,
            controls=controls,
            on_progress=lambda _, done: bar.update(done),
        )
    settings = LevelSettings(resamples=config.resamples, seed=config.seed)
    cards = {
        "judge": report_card_from_files(
            [data / RATINGS],
            listed,
            folder / "scores.jsonl",
            controls=folder / "controls.jsonl" if controls else None,
            judge=judge.path,
            settings=settings,
        ),
        "truth": report_card_from_files([data / RATINGS], listed, data / TRUTH, settings=settings),
    }
    for name, card in cards.items():
        write_result(
            run.path / "report" / part, f"{name}_report", card.as_record(), report_tables(card)
        )
    return {name: over_videos(card) for name, card in cards.items()}


def over_videos(card: ReportCard) -> dict[str, dict[str, Any]]:
    """PLCC and SRCC of each dimension over videos, with intervals and n."""
    return {
        item.dimension: {
            name: {"value": row.value, "ci95": [row.ci_low, row.ci_high], "n": row.n}
            for name in ("plcc", "srcc")
            for row in [card.value(item.dimension, "sample", name)]
        }
        for item in card.coverage
    }


def summary_rows(record: dict[str, Any]) -> list[list[str | float | int | None]]:
    """Rows (dimension, clips, judge, PLCC, interval, SRCC, n) of the record of a run."""
    rows: list[list[str | float | int | None]] = []
    for part in PARTS:
        for who, dimensions in record[part].items():
            for name, correlation in dimensions.items():
                plcc, srcc = correlation["plcc"], correlation["srcc"]
                low, high = plcc["ci95"]
                interval = f"{low:.3f} to {high:.3f}"
                rows.append([name, part, who, plcc["value"], interval, srcc["value"], plcc["n"]])
    return rows
