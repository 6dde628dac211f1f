"""The plan of a reward training: which pairs, which loss, how many updates."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from rich.table import Table

from longtake.rewards.hpsv3 import GENERAL_PROMPT
from longtake.rewards.preference_data import (
    OVERALL,
    PreferencePair,
    balance_order,
    split_by_prompt,
)
from longtake.rewards.preference_files import read_hpsv3_json, read_preference_csv
from longtake.rewards.preference_inputs import PreferenceDataset, trained_tokens
from longtake.rewards.preference_labels import A_WINS, B_WINS, TIE, UNLABELLED
from longtake.rewards.preference_trainer import PairLoss
from longtake.rewards.reward_directory import RewardDirectory
from longtake.rewards.reward_spec import ColorMode, RewardSpec
from longtake.rewards.template import prompt_key
from longtake.rewards.train_config import RewardTrainingConfig
from longtake.rewards.videoalign import Dimension, reported_color_mode
from longtake.runtime.errors import ConfigError, UserError
from longtake.runtime.progress import result_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What is trained on what."""

    spec: RewardSpec
    """Of the result: the base's, in the colour mode of the training, not normalised."""
    loss: PairLoss
    """What is minimised."""
    train: PreferenceDataset
    """Pairs that are trained on."""
    validation: PreferenceDataset
    """Pairs of other prompts."""
    updates: int
    """Optimiser steps, unless training stops early."""

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


def plan_training(config: RewardTrainingConfig, source: RewardDirectory) -> TrainingPlan:
    """Read and check everything that a training needs besides the weights.

    Raises:
        UserError: data that cannot be used, or settings that do not fit the base or the data.
    """
    spec = dataclasses.replace(
        source.spec, normalization={}, color_mode=_color_mode(config, source.spec)
    )
    ranknet = spec.model.head == "ranknet"
    kind = config.loss or ("uncertainty" if ranknet else "bradley_terry_ties")
    if kind == "uncertainty" and not ranknet:
        raise ConfigError(
            "the head has no uncertainty",
            received=f"loss uncertainty for a {spec.model.head} head",
            expected="bradley_terry_ties or bradley_terry",
        )
    if config.data.general_prompt and (spec.kind != "hpsv3" or config.data.frames_per_clip < 2):
        raise ConfigError(
            "the general prompt cannot be shown",
            received=f"data.general_prompt for a reward of kind {spec.kind}, "
            f"data.frames_per_clip {config.data.frames_per_clip}",
            expected="an image reward (hpsv3) and at least 2 frames of each clip: every second "
            "one gets the prompt",
        )
    train, validation = _read_pairs(config)
    encoder = source.encoder()
    keep_ties = kind == "bradley_terry_ties"
    datasets = []
    for pairs, file in ((train, config.data.train), (validation, _validation_file(config))):
        usable = _usable(pairs, config.dimensions, keep_ties)
        datasets.append(
            PreferenceDataset(
                usable,
                config.dimensions,
                spec,
                encoder,
                Path(config.data.root) if config.data.root else Path(file).parent,
                keep_ties=keep_ties,
                frames_per_clip=config.data.frames_per_clip,
                general_prompt=GENERAL_PROMPT if config.data.general_prompt else None,
                cache_bytes=config.data.cache_mib * 2**20 // 2,
            )
        )
    per_epoch = math.ceil(len(datasets[0]) / config.batch_pairs)
    return TrainingPlan(
        spec=spec,
        loss=PairLoss(kind=kind, tie_factor=config.tie_factor, num_draws=config.uncertainty_draws),
        train=datasets[0],
        validation=datasets[1],
        updates=config.max_updates or math.ceil(config.epochs * per_epoch),
    )


def _color_mode(config: RewardTrainingConfig, spec: RewardSpec) -> ColorMode:
    """The configured mode, or the one that the scorer of these dimensions shows clips in."""
    trained_tokens(spec, config.dimensions)  # checks the names
    if config.color_mode is not None:
        return cast(ColorMode, config.color_mode)  # RewardSpec checks it
    if spec.kind == "hpsv3":
        return spec.color_mode
    modes = {reported_color_mode(spec, cast(Dimension, name)) for name in config.dimensions}
    if len(modes) > 1:
        raise ConfigError(
            "dimensions of different colour modes are trained together",
            received=", ".join(config.dimensions),
            expected="MQ alone (gray), or VQ and TA (colour)",
            remedy="train MQ apart, or set color_mode for all of them",
        )
    return modes.pop()


def _validation_file(config: RewardTrainingConfig) -> str:
    return config.data.validation or config.data.train


def _read_pairs(
    config: RewardTrainingConfig,
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    pairs = _read_file(config, config.data.train)
    if config.data.validation is None:
        return split_by_prompt(pairs, config.data.validation_share, config.seed)
    validation = _read_file(config, config.data.validation)
    shared = {prompt_key(p.prompt) for p in pairs} & {prompt_key(p.prompt) for p in validation}
    if shared:
        raise UserError(
            "prompts are in the training and in the validation data",
            received=f"{len(shared)} prompts, for example {min(shared)!r}",
            expected="other prompts in each",
            remedy="leave data.validation out to split data.train by prompt",
        )
    return pairs, validation


def _read_file(config: RewardTrainingConfig, file: str) -> list[PreferencePair]:
    path = Path(file)
    if path.suffix == ".csv":
        return read_preference_csv(path)
    if path.suffix == ".json":
        pairs = read_hpsv3_json(path, config.data.min_confidence)
        return balance_order(pairs, OVERALL, config.seed)  # the winner comes first in the file
    raise UserError(
        "the format of the preference data is unknown",
        received=str(path),
        expected="a .csv in VideoAlign's columns or a .json in HPSv3's form",
    )


def _usable(
    pairs: Sequence[PreferencePair], dimensions: Sequence[str], keep_ties: bool
) -> list[PreferencePair]:
    """Pairs with a label that the loss can use in one of the dimensions, in their order."""
    unused = (UNLABELLED,) if keep_ties else (UNLABELLED, TIE)
    for name in dimensions:
        if all(pair.label(name) in unused for pair in pairs):
            raise UserError(
                f"no pair has a label for {name} that the loss can use",
                received=f"{len(pairs)} pairs",
                expected="A or B" + (" or same" if keep_ties else "") + " in some of them",
                remedy="choose another dimension, other data"
                + ("" if keep_ties else ", or the loss bradley_terry_ties"),
            )
    return [pair for pair in pairs if any(pair.label(name) not in unused for name in dimensions)]
