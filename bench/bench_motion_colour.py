"""Motion reward trained on colour or on gray clips (report section 3.3.2, Figure 20).

    python cli.py sandbox heads --out runs/heads --set workers=8      pairs, once
    python bench/bench_motion_colour.py --pairs runs/heads --bases runs/heads --out runs/figure20

One training per colour mode and seed, on the same pairs, validated on the held-out ones; the
annotators of both like colour (``sandbox/annotators.py``). For each: the validation curve, the
accuracy on held-out pairs as the annotators and as the truth judge them, and how far the reward
moves when only colours change. Trainings can run side by side (``--only gray:1``); what is finished
is kept, and a last call without ``--only`` joins it into one record.
"""

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
import torch

from longtake.bench.timing import positive
from longtake.core.video import read_video
from longtake.rewards.contract import VideoBatch
from longtake.rewards.registry import load_rewards
from longtake.runtime.config import merge_config
from longtake.runtime.files import read_jsonl, replacing, write_json
from longtake.runtime.provenance import collect
from longtake.sandbox.colour_sensitivity import colour_sensitivity
from longtake.sandbox.recipes.heads import (
    TinyHeadsConfig,
    measure,
    train_head,
)

MODES = {"colour": "rgb", "gray": "bt601"}
SEEDS = (0, 1, 2)
REWARD = "videoalign_mq"
CLIPS = 120
"""Held-out clips that are recoloured."""


def train_one(
    pairs: Path, out: Path, mode: str, seed: int, config: TinyHeadsConfig, device: str
) -> dict[str, Any]:
    """Train and measure one reward; a finished one is read back."""
    folder = out / f"{mode}-{seed}"
    record = folder / "result.json"
    if record.is_file():
        found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        return found
    settings = [
        f"color_mode={MODES[mode]}",
        f"data.validation={pairs / 'pairs' / 'held_out.csv'}",
    ]
    reward = train_head(folder, pairs, REWARD, settings, config, seed, device)
    records = read_jsonl(folder / "training" / "metrics.jsonl")
    result = {
        "mode": mode,
        "seed": seed,
        "curve": curve(records),
        "accuracy": {
            judge: rewards[REWARD]
            for judge, rewards in measure(
                pairs, reward, config.head(REWARD), folder, device
            ).items()
        },
        "sensitivity": [
            dataclasses.asdict(row)
            for row in colour_sensitivity(
                load_rewards([REWARD], {REWARD: str(reward)}, device=device), held_out_clips(pairs)
            )
        ],
    }
    write_json(record, result)
    return result


def curve(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Validations, each with the mean training loss of the updates since the one before."""
    rows: list[dict[str, Any]] = []
    losses: list[float] = []
    for record in records:
        if "loss" in record:
            losses.append(record["loss"])
        if "eval_loss" in record:
            row = {key: record[key] for key in ("update", "eval_loss", "eval_MQ_accuracy")}
            rows.append(row | {"loss": sum(losses) / len(losses) if losses else None})
            losses = []
    return rows


def first_pairs(pairs: Path, out: Path, train: int | None, held_out: int | None) -> Path:
    """A folder of the first pairs of each table only (None: all), with the same clips.

    It lies in ``out`` and is named by the numbers of pairs; a finished one is kept.
    """
    out = out / f"pairs-{train or 'all'}-{held_out or 'all'}"
    for place, name, count in (
        ("pairs", "train.csv", train),
        ("pairs", "held_out.csv", held_out),
        ("truth", "held_out.csv", held_out),
    ):
        target = out / place / name
        if target.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # of this call, or of one beside it
            clips = (pairs / place / "clips").resolve()
            (target.parent / "clips").symlink_to(clips, target_is_directory=True)
        # As text: numbers would come back in another form.
        rows = pandas.read_csv(pairs / place / name, dtype=str, keep_default_na=False, nrows=count)
        with replacing(target) as temporary:
            rows.to_csv(temporary, index=False)
    return out


def held_out_clips(pairs: Path) -> list[VideoBatch]:
    """The first clips of the held-out pairs, in batches of 24."""
    folder = pairs / "pairs"
    rows = pandas.read_csv(folder / "held_out.csv").to_dict("records")
    clips = dict.fromkeys(
        (row[f"path_{side}"], row[f"fps_{side}"], row["prompt"]) for row in rows for side in "AB"
    )
    chosen = list(clips)[:CLIPS]
    return [
        VideoBatch(
            video=torch.stack([read_video(folder / path)[0] for path, _, _ in part]),
            prompts=[prompt for _, _, prompt in part],
            fps=torch.tensor([fps for _, fps, _ in part]),
        )
        for part in (chosen[start : start + 24] for start in range(0, len(chosen), 24))
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trainings that are asked for."""
    default = TinyHeadsConfig()
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", type=Path, required=True, help="run of sandbox heads")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train-pairs", type=positive, help="the first ones only")
    parser.add_argument("--held-out-pairs", type=positive, help="the first ones only")
    parser.add_argument("--only", action="append", help="MODE:SEED, repeatable")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument(
        "--bases", help="run of sandbox heads whose backbone all start from; else one per seed"
    )
    parser.add_argument("--eval-every", type=int, default=250)
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of sandbox heads")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    wanted = options.only or [f"{mode}:{seed}" for seed in options.seeds for mode in MODES]
    config = default.replace(
        eval_every=options.eval_every,
        bases=options.bases,
        videoalign_mq=default.videoalign_mq.replace(updates=options.updates),
    )
    config = merge_config(config, overrides=options.set)
    pairs = options.pairs
    if options.train_pairs or options.held_out_pairs:
        pairs = first_pairs(pairs, options.out, options.train_pairs, options.held_out_pairs)
    runs = []
    for name in wanted:
        mode, _, seed = name.partition(":")
        if mode not in MODES or not seed.isdecimal():
            parser.error(f"--only {name}: expected colour:SEED or gray:SEED")
        runs.append(train_one(pairs, options.out, mode, int(seed), config, options.device))
    if not options.only:
        record = {
            "environment": collect({"pairs": pairs / "pairs" / "train.csv"}),
            "settings": config.videoalign_mq.model_dump(),
            "runs": runs,
        }
        write_json(options.out / "motion_colour.json", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
