"""Reproduce checkpoints/tiny/rewards: three reward heads that score four rewards in the sandbox.

``python cli.py sandbox heads`` samples the tiny model at several qualities, lets simulated
annotators judge the samples and damaged renders in pairs, trains an HPSv3-style head and VideoAlign
heads for motion (gray) and text with the trainer of ``rewards train``, and measures them on
held-out prompts. Every stage that is finished is kept; ``--resume`` goes on from there.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longtake.core.generation import TINY_CHECKPOINT
from longtake.evaluation.pairs import PairAgreement, evaluate_pairs
from longtake.rewards.directory import read_reward_directory, write_in_bfloat16
from longtake.rewards.spec import RewardKind
from longtake.rewards.train_pairs import train_reward
from longtake.runtime.config import Config, config_to_yaml, merge_config
from longtake.runtime.device import refuse_launcher
from longtake.runtime.errors import ConfigError
from longtake.runtime.files import to_plain
from longtake.runtime.run_directory import RunDirectory
from longtake.sandbox.annotators import Annotator
from longtake.sandbox.facts import Split
from longtake.sandbox.preferences import PairConfig, preference_prompts
from longtake.sandbox.recipes.captions import CaptionConfig, captioned_base
from longtake.sandbox.recipes.pairs import make_preferences
from longtake.sandbox.recipes.samples import sample_qualities
from longtake.sandbox.recipes.tiny_vlm import TinySize

# Folder of pairs -> who judged them: three people, as in the report's evaluation (section 5.1),
# and the truth, which is only ever measured against.
ANNOTATORS = {"pairs": Annotator(raters=3), "truth": Annotator(noise=0.0, colour_bias=0.0)}


# Of the models (2.1M parameters, 4 MiB in bfloat16) and of what they see: a patch of 14 x 14 px
# is 8 x 8 of the clip. At 56 x 56, displacements of a pixel or two were invisible (docs/LOG.md).
SIZE = TinySize(width=128, layers=4, vision_width=128, vision_layers=4, side=112)


class HeadConfig(Config):
    """One head: what it learns, its size, and how it is trained."""

    kind: RewardKind
    """hpsv3 | videoreward."""
    dimension: str
    """Label column: VQ, MQ or TA."""
    rewards: tuple[str, ...]
    """Names of the rewards that it scores."""
    size: TinySize = SIZE
    """Of the model and of its frames."""
    updates: int = 2000
    """Optimiser steps at most."""
    learning_rate: float = 1e-3
    """AdamW, cosine to 0."""
    batch_prompts: int = 16
    """Prompts per update, with all pairs of each. With two to four, heads learned nothing in the
    first 2,000 updates (docs/LOG.md)."""


# Frames of a clip that the image head is trained on.
FRAMES_PER_CLIP = 4
# Names of the heads: fields of TinyHeadsConfig and folders of the result.
HEADS = ("hpsv3", "videoalign_mq", "videoalign_ta")


class TinyHeadsConfig(Config):
    """Everything that the pairs follow from."""

    seed: int = 0
    """Names every draw."""
    checkpoint: str = str(TINY_CHECKPOINT)
    """The model whose samples are judged beside the renders."""
    train_prompts: int = 8000
    """Prompts of the train split."""
    held_out_prompts: int = 300
    """Prompts of the held-out split; nothing is chosen by them."""
    damaged: int = 3
    """Damaged renders in a prompt's pool, beside a clean, a still and a wrong one."""
    pairs_per_prompt: int = 20
    """Pairs drawn from a pool of ten clips."""
    validation_share: float = 0.05
    """Share of the training prompts that choose the best update."""
    eval_every: int = 500
    """Updates between validations."""
    sample_batch: int = 8
    """Clips sampled at a time; some 250 fill a GPU."""
    workers: int = 0
    """Processes that render and judge."""
    loaders: int = 0
    """Processes that decode clips in training."""
    cache_mib: int = 4096
    """Memory for resized frames, which they share."""
    captions: CaptionConfig = CaptionConfig()
    """What each backbone learns before its pairs."""
    data: str | None = None
    """Folder of another run whose pairs are used; null makes them."""
    bases: str | None = None
    """Folder of another run whose pretrained backbones are used; null makes them."""
    hpsv3: HeadConfig = HeadConfig(
        kind="hpsv3", dimension="VQ", rewards=("hpsv3_general", "hpsv3_percentile"), updates=1500
    )
    """The image head: visual quality, colour."""
    videoalign_mq: HeadConfig = HeadConfig(
        kind="videoreward",
        dimension="MQ",
        rewards=("videoalign_mq",),
        # Two frames a second, the published rate, miss what flickers and jumps within two seconds.
        size=SIZE.replace(frames_per_second=8.0),
        updates=3000,
        learning_rate=1.5e-3,
    )
    """The motion head: every frame, gray."""
    videoalign_ta: HeadConfig = HeadConfig(
        kind="videoreward", dimension="TA", rewards=("videoalign_ta",), updates=2500
    )
    """The text head: four frames, colour."""

    def head(self, name: str) -> HeadConfig:
        """The head of a name of :data:`HEADS`."""
        head: HeadConfig = getattr(self, name)
        return head


def train_heads(
    out: Path,
    names: Sequence[str] = (),
    overrides: Sequence[str] = (),
    *,
    config_file: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Train and measure tiny reward heads, by default all :data:`HEADS`.

    Returns the record of ``out/accuracy.json``; with ``dry_run`` only the plan. The reward
    directories are ``out/rewards/NAME``. What other runs and the settings lack is refused before
    minutes of making pairs.
    """
    config = merge_config(TinyHeadsConfig(), config_file, overrides)
    names = list(names) or list(HEADS)
    unknown = [name for name in names if name not in HEADS]
    if unknown:
        raise ConfigError(
            "unknown reward head", received=", ".join(unknown), expected=", ".join(HEADS)
        )
    if config.bases is not None:
        for name in names:
            read_reward_directory(_base(config.bases, name))
    if config.data is not None and _missing(Path(config.data), config):
        raise ConfigError(
            "data holds no pairs",
            received=str(config.data),
            expected="the folder of another run: pairs/train.csv, pairs/held_out.csv and "
            "truth/held_out.csv",
            remedy="correct the path, or leave data out: the pairs are then made",
        )
    if dry_run:
        return {"heads": names, "config": config.model_dump()}
    refuse_launcher("rewards are trained")
    with RunDirectory.create(out, config_to_yaml(config), resume=resume) as run:
        pairs = run.path if config.data is None else Path(config.data)
        make_pairs(pairs, config, device)
        for name in names:
            _train(run, pairs, name, config, device)
        record = {
            name: measure(
                pairs,
                run.path / "rewards" / name,
                config.head(name),
                run.path / "heads" / name,
                device,
            )
            for name in names
        }
        run.write_json("accuracy.json", to_plain(record))
    return record


def make_pairs(folder: Path, config: TinyHeadsConfig, device: str) -> None:
    """Write ``pairs/train.csv``, ``pairs/held_out.csv`` and ``truth/held_out.csv`` if missing."""
    missing = _missing(folder, config)
    if not missing:
        return
    for split in dict.fromkeys(split for _, split, _ in missing):
        parts = [part for part in missing if part[1] == split]
        prompts = preference_prompts(split, 0, parts[0][2], config.seed)
        samples = sample_qualities(
            config.checkpoint,
            prompts,
            config.seed,
            title=f"samples {split}",
            batch_size=config.sample_batch,
            device=device,
        )
        for judge, _, count in parts:
            make_preferences(
                folder / judge,
                split,
                count,
                config.seed,
                ANNOTATORS[judge],
                config=PairConfig(damaged=config.damaged, pairs_per_prompt=config.pairs_per_prompt),
                samples=samples,
                workers=config.workers,
            )


def _missing(folder: Path, config: TinyHeadsConfig) -> list[tuple[str, Split, int]]:
    """Tables of pairs that are not there: who judged, split, number of prompts."""
    tables: list[tuple[str, Split, int]] = [
        ("pairs", "train", config.train_prompts),
        ("pairs", "held_out", config.held_out_prompts),
        ("truth", "held_out", config.held_out_prompts),
    ]
    return [table for table in tables if not (folder / table[0] / f"{table[1]}.csv").is_file()]


def _base(bases: str, name: str) -> Path:
    """Where another run keeps the backbone of a head."""
    return Path(bases) / "heads" / name / "base"


def _train(run: RunDirectory, pairs: Path, name: str, config: TinyHeadsConfig, device: str) -> None:
    target = run.path / "rewards" / name
    if target.is_dir():
        return
    share = [f"data.validation_share={config.validation_share}"]
    trained = train_head(run.path / "heads" / name, pairs, name, share, config, config.seed, device)
    with run.writing("rewards"):
        target.parent.mkdir(exist_ok=True)
        write_in_bfloat16(read_reward_directory(trained), target)  # what is shipped is measured


def train_head(
    folder: Path,
    pairs: Path,
    name: str,
    overrides: Sequence[str],
    config: TinyHeadsConfig,
    seed: int,
    device: str,
) -> Path:
    """Train one head with the trainer of ``rewards train``, or go on with it.

    ``folder`` gets ``base``, the start, unless it is there, and ``training``, the run. ``pairs`` is
    a folder that :func:`make_pairs` filled. ``overrides`` say what the head does not: its
    validation pairs. Returns the trained reward directory.
    """
    head, base = config.head(name), folder / "base"
    if config.bases is not None and not base.is_dir():
        shutil.copytree(_base(config.bases, name), base)
    base = captioned_base(
        folder,
        head.kind,
        preference_prompts("train", 0, config.train_prompts, config.seed),
        head.size,
        config.captions,
        seed=seed,
        is_motion=head.dimension == "MQ",
        device=device,
        loaders=config.loaders,
    )
    trained = train_reward(
        overrides=[*_head_settings(head, config), *overrides, f"seed={seed}"],
        output_dir=folder / "training",
        base=base,
        data=pairs / "pairs" / "train.csv",
        resume=(folder / "training").is_dir(),
        device=device,
    )
    assert trained is not None  # no dry run
    return trained


def _head_settings(head: HeadConfig, config: TinyHeadsConfig) -> list[str]:
    """Settings of ``rewards train`` for a head: all but its validation pairs."""
    # An image head is shown pairs of frames: each pair of clips is as many rows.
    rows = config.pairs_per_prompt * (FRAMES_PER_CLIP if head.kind == "hpsv3" else 1)
    batch = head.batch_prompts * rows
    return [
        f"dimensions=[{head.dimension}]",
        "method=full",
        "precision=float32",
        f"learning_rate={head.learning_rate}",
        "schedule=cosine",
        f"max_updates={head.updates}",
        f"batch_pairs={batch}",
        f"micro_batch={batch}",
        "group_by_prompt=true",
        f"eval_every={min(config.eval_every, head.updates)}",
        "patience=0",
        f"workers={config.loaders}",
        f"data.frames_per_clip={FRAMES_PER_CLIP}",
        # Else the fixed prompt of hpsv3_general would be asked for the first time in use.
        f"data.general_prompt={str(head.kind == 'hpsv3').lower()}",
        f"data.cache_mib={config.cache_mib}",
        "export_public=false",
    ]


def measure(
    pairs: Path, reward: Path, head: HeadConfig, folder: Path, device: str = "auto"
) -> dict[str, Any]:
    """Accuracies of a head on held-out pairs, by judge (:data:`ANNOTATORS`) and reward.

    ``folder`` gets ``scores.csv``: the judges saw the same clips, which are scored once.
    """
    record: dict[str, Any] = {}
    for judge in ANNOTATORS:
        agreements = evaluate_pairs(
            pairs / judge / "held_out.csv",
            [f"{name}={reward}" for name in head.rewards],
            output=folder / "scores.csv",
            device=device,
        )
        record[judge] = {
            row.reward: dataclasses.asdict(row)
            for row in agreements
            if row.dimension == head.dimension
        }
    return record


def summary_rows(record: dict[str, Any]) -> list[list[str | float]]:
    """Rows (reward, labels, judge, accuracy, interval, pairs) of the record of a run."""
    rows: list[list[str | float]] = []
    for head in record.values():
        for judge, rewards in head.items():
            for values in rewards.values():
                row = PairAgreement(**values)
                interval = f"{row.ci_low:.3f} to {row.ci_high:.3f}"
                who = "annotators" if judge == "pairs" else "truth"
                rows.append([row.reward, row.dimension, who, row.accuracy, interval, row.decided])
    return rows
