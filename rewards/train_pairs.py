"""Train a reward on preference pairs: a run directory with a reward directory in it.

RUN/  config.yaml  provenance.json  metrics.jsonl  summary.json  checkpoints/checkpoint-N/
      reward/      the trained reward, ready to score
      public/      the same in the layout of the public loader
"""

import dataclasses
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from longtake.rewards.directory import (
    RewardDirectory,
    export_public,
    export_reward,
    read_reward_directory,
)
from longtake.rewards.hpsv3 import GENERAL_PROMPT
from longtake.rewards.losses import PairLoss, scores_of
from longtake.rewards.pair_dataset import PairDataset, collate_pairs, trained_tokens
from longtake.rewards.pairs import (
    A_WINS,
    B_WINS,
    OVERALL,
    TIE,
    UNLABELLED,
    PreferencePair,
    balance_order,
    read_pairs,
    split_by_prompt,
)
from longtake.rewards.spec import ColorMode, Normalization, RewardSpec
from longtake.rewards.train import (
    HeadTraining,
    PairObjective,
    PromptSampler,
    TrainedHead,
    noise_seed,
    trained_state,
)
from longtake.rewards.train_config import RewardTrainingConfig
from longtake.runtime.config import config_to_yaml, merge_config
from longtake.runtime.device import pick_device, refuse_launcher
from longtake.runtime.errors import ConfigError, UserError
from longtake.runtime.files import prompt_key, to_plain
from longtake.runtime.progress import result_table
from longtake.runtime.provenance import collect
from longtake.runtime.run_directory import RunDirectory
from longtake.runtime.tracking import Trackers, check_trackers

REWARD_FOLDER, PUBLIC_FOLDER = "reward", "public"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What is trained on what; training may stop before ``updates``."""

    spec: RewardSpec
    """Of the result: the base's, in the colour mode of the training, not normalised."""
    loss: PairLoss
    train: PairDataset
    validation: PairDataset
    updates: int

    def table(self) -> Table:
        """Numbers of pairs, prompts and labels."""
        rows: list[list[str | float | int | None]] = []
        for split, data in (("train", self.train), ("validation", self.validation)):
            for name in data.dimensions:
                labels = [pair.label(name) for pair in data.pairs]
                prompts = len({pair.prompt for pair in data.pairs})
                counts = [labels.count(label) for label in (A_WINS, TIE, B_WINS)]
                rows.append([f"{split} {name}", len(labels), prompts, *counts])
        title = f"{self.updates} updates, loss {self.loss.kind}, colour {self.spec.color_mode}"
        return result_table(title, ["pairs", "number", "prompts", "A", "same", "B"], rows)


def train_reward(
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    output_dir: Path,
    base: Path | None = None,
    data: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    device: str = "auto",
) -> Path | None:
    """Train a reward: settings of a file, of ``key=value`` overrides, then ``base`` and ``data``.

    Returns ``output_dir/reward``; None for a dry run, which prints the plan and writes nothing.
    """
    config = merge_config(RewardTrainingConfig(), config_file, overrides)
    if base is not None:
        config = config.replace(base=str(base))
    if data is not None:
        config = config.replace(data=config.data.replace(train=str(data)))
    where = pick_device(device)
    _check_launch(config, where)
    source = read_reward_directory(config.base)
    plan = plan_training(config, source)
    console = Console(stderr=True)
    console.print(plan.table())  # before the run directory: what is refused leaves nothing behind
    if dry_run:
        return None
    start = time.monotonic()
    with ExitStack() as stack:
        yaml = config_to_yaml(config)
        run = stack.enter_context(RunDirectory.create(output_dir, yaml, resume=resume))
        trackers = stack.enter_context(Trackers(run, config.trackers, {"seed": config.seed}))
        files = {"data": config.data.train, "validation": config.data.validation}
        provenance = collect({name: Path(file) for name, file in files.items() if file})
        run.write_json("provenance.json", {**provenance, "base": source.fingerprint()})
        by_prompt = PromptSampler(plan.train.rows_of_prompts(), config.seed)
        head = HeadTraining(
            source=source,
            config=config,
            tokens=trained_tokens(plan.spec, config.dimensions),
            objective=PairObjective(
                pair_loss=plan.loss, dimensions=config.dimensions, seed=noise_seed(config.seed)
            ),
            train=plan.train,
            held_out=plan.validation,
            collate=collate_pairs,
            updates=plan.updates,
            batch=config.batch_pairs,
            sampler=by_prompt if config.group_by_prompt else None,
        ).run(run, trackers, where, console)
        scores = score_statistics(plan.validation, head.outputs)
        summary = {
            "updates": head.updates,
            "best_update": head.best_update,
            "wall_s": time.monotonic() - start,
            "seed": config.seed,
            "dimensions": list(config.dimensions),
            "loss": plan.loss.kind,
            "color_mode": plan.spec.color_mode,
            "pairs": {"train": len(plan.train.pairs), "validation": len(plan.validation.pairs)},
            "trained_parameters": sum(p.numel() for p in trained_state(head.model).values()),
            "validation": head.metrics,
            "scores": scores,
        }
        # Validation scores get mean 0 and deviation 1, as VideoAlign publishes; HPSv3's are raw,
        # and a head that gives every clip one score has no scale.
        scales = {k: Normalization(**v) for k, v in scores.items() if v["std"] > 0}
        spec = plan.spec.replace(normalization={} if plan.spec.kind == "hpsv3" else scales)
        reward = _export(run, config, source, spec, head)
        run.write_json("summary.json", summary)
    rows: list[tuple[str, float]] = list(head.metrics.items())
    console.print(result_table(f"validation of {reward}", ["metric", "value"], rows))
    return reward


def _check_launch(config: RewardTrainingConfig, where: torch.device) -> None:
    check_trackers(config.trackers)
    for name, value in (("base", config.base), ("data.train", config.data.train)):
        if not value:
            remedy = f"pass it on the command line or with --set {name}=PATH"
            raise ConfigError(f"{name} is not set", expected="a path", remedy=remedy)
    refuse_launcher(
        "rewards are trained",
        "raise batch_pairs with a small micro_batch, and turn on gradient_checkpointing where "
        "memory is short",
    )
    if where.index:
        raise UserError(
            "Trainer uses the first visible GPU",
            received=f"--device {where}",
            expected="auto, cpu or cuda",
            remedy=f"start with CUDA_VISIBLE_DEVICES={where.index}",
        )


def plan_training(config: RewardTrainingConfig, source: RewardDirectory) -> TrainingPlan:
    """Read and check everything that a training needs besides the weights."""
    spec = source.spec.replace(normalization={}, color_mode=_color_mode(config, source.spec))
    ranknet = spec.model.head == "ranknet"
    kind = config.loss or ("uncertainty" if ranknet else "bradley_terry_ties")
    images = spec.kind == "hpsv3" and config.data.frames_per_clip > 1
    # Every second frame of a clip gets the general prompt.
    if (kind == "uncertainty" and not ranknet) or (config.data.general_prompt and not images):
        raise ConfigError(
            "the reward has no uncertainty, or the general prompt cannot be shown",
            received=f"loss {kind}, data.general_prompt {config.data.general_prompt}, "
            f"data.frames_per_clip {config.data.frames_per_clip} for a reward of kind {spec.kind}",
            expected="for hpsv3 2 or more frames with the general prompt; for videoreward "
            "bradley_terry_ties or bradley_terry, and no general prompt",
        )
    train, validation = _read(config)
    train_data, validation_data = (
        PairDataset(
            _usable(pairs, config.dimensions, keep_ties=kind == "bradley_terry_ties"),
            config.dimensions,
            spec,
            source.encoder(),
            Path(config.data.root) if config.data.root else Path(file).parent,
            keep_ties=kind == "bradley_terry_ties",
            frames_per_clip=config.data.frames_per_clip,
            general_prompt=GENERAL_PROMPT if config.data.general_prompt else None,
            cache_bytes=config.data.cache_mib * 2**20 // 2,  # half for each split
        )
        for pairs, file in (
            (train, config.data.train),
            (validation, config.data.validation or config.data.train),
        )
    )
    per_epoch = math.ceil(len(train_data) / config.batch_pairs)
    return TrainingPlan(
        spec=spec,
        loss=PairLoss(kind=kind, tie_factor=config.tie_factor, num_draws=config.uncertainty_draws),
        train=train_data,
        validation=validation_data,
        updates=config.max_updates or math.ceil(config.epochs * per_epoch),
    )


def _color_mode(config: RewardTrainingConfig, spec: RewardSpec) -> ColorMode:
    """The configured mode, or the one that the scorer of these dimensions shows clips in."""
    trained_tokens(spec, config.dimensions)  # checks the names
    if config.color_mode is not None:
        return config.color_mode
    if spec.kind == "hpsv3":
        return spec.color_mode
    # The report's motion reward is trained and scored on gray clips (section 3.3.2).
    gray: ColorMode = "bt601" if spec.color_mode == "rgb" else spec.color_mode
    modes: set[ColorMode] = {gray if name == "MQ" else "rgb" for name in config.dimensions}
    if len(modes) > 1:
        raise ConfigError(
            "dimensions of different colour modes are trained together",
            received=", ".join(config.dimensions),
            expected="MQ alone (gray), VQ and TA (colour), or a color_mode for all of them",
        )
    return modes.pop()


def _read(config: RewardTrainingConfig) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Training and validation pairs, of different prompts."""
    files = [file for file in (config.data.train, config.data.validation) if file]
    tables = []
    for file in files:
        pairs = read_pairs(Path(file), config.data.min_confidence)
        if file.endswith(".json"):  # the winner comes first in the file
            pairs = balance_order(pairs, OVERALL, config.seed)
        tables.append(pairs)
    if len(tables) == 1:
        return split_by_prompt(tables[0], config.data.validation_share, config.seed)
    train, validation = ({prompt_key(pair.prompt) for pair in pairs} for pairs in tables)
    if shared := train & validation:
        raise UserError(
            "prompts are in the training and in the validation data",
            received=f"{len(shared)} prompts, for example {min(shared)!r}",
            expected="other prompts in each, or no data.validation to split data.train by prompt",
        )
    return tables[0], tables[1]


def _usable(
    pairs: Sequence[PreferencePair], dimensions: Sequence[str], *, keep_ties: bool
) -> list[PreferencePair]:
    """Pairs with a label that the loss can use in one of the dimensions, in their order."""
    unused = (UNLABELLED,) if keep_ties else (UNLABELLED, TIE)
    for name in dimensions:
        if all(pair.label(name) in unused for pair in pairs):
            raise UserError(
                f"no pair has a label for {name} that the loss can use",
                received=f"{len(pairs)} pairs",
                expected="A or B in some of them, or same with the loss bradley_terry_ties",
            )
    return [pair for pair in pairs if any(pair.label(name) not in unused for name in dimensions)]


def score_statistics(data: PairDataset, outputs: Tensor) -> dict[str, dict[str, float]]:
    """``mean`` and ``std`` (of the population) of the raw scores, by dimension.

    Head outputs are [rows, 2, K]; a clip of several pairs counts once.
    """
    scores = scores_of(outputs, len(data.dimensions)).double()
    keys = enumerate(data.clip_keys())
    by_clip = {key: scores[row, side] for row, both in keys for side, key in enumerate(both)}
    table = torch.stack(list(by_clip.values()))
    return {
        name: {"mean": float(column.mean()), "std": float(column.std(correction=0))}
        for name, column in zip(data.dimensions, table.unbind(-1), strict=True)
    }


def _export(
    run: RunDirectory,
    config: RewardTrainingConfig,
    source: RewardDirectory,
    spec: RewardSpec,
    head: TrainedHead,
) -> Path:
    path = run.path / REWARD_FOLDER
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    # A threshold that does not exist is NaN, which JSON has not.
    training = to_plain(
        {"updates": head.updates, "best_update": head.best_update, "validation": head.metrics}
    )
    provenance = {"trained_from": source.fingerprint(), "training": training}
    with run.writing(REWARD_FOLDER):
        shutil.rmtree(path, ignore_errors=True)  # of the same run, finished before
        export_reward(head.model, path, source, spec, dtype, provenance)
        if config.export_public:
            export_public(head.model, run.path / PUBLIC_FOLDER, spec, dtype)
    return path
