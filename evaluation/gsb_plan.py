"""Blind plans of pairs: which two videos are shown, and which one on the left.

Raters see opaque pair ids and opaque file names; the key, which they do not see, names the models.
For every two models each is on the left in half of the pairs, so a taste for one side favours none.
"""

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import pandas as pd

from longtake.evaluation.ratings import (
    Finding,
    Findings,
    Sample,
    SampleList,
    opaque_name,
    place_file,
)
from longtake.runtime.errors import UserError
from longtake.runtime.files import write_csv, write_text

KEY_FILE, SHEET_FILE, VIDEO_FOLDER = "key.jsonl", "sheet.csv", "videos"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two videos of one prompt, as they are shown."""

    pair: str
    """Opaque id."""
    left: str
    """Sample on the left."""
    right: str
    left_model: str
    right_model: str
    prompt: str
    cluster: str
    reference: str
    """The model whose wins are G; the other's wins are B."""

    @property
    def rival(self) -> str:
        """The model that is not the reference."""
        return self.right_model if self.left_model == self.reference else self.left_model


def plan_pairs(
    samples: SampleList,
    *,
    reference: str | None = None,
    rivals: Sequence[str] = (),
    seed: int = 0,
) -> tuple[tuple[Pair, ...], tuple[Finding, ...]]:
    """Pair the videos of every prompt, choose sides, shuffle; what has no partner is a finding.

    Wins of the ``reference`` are G, against each of ``rivals`` (report Figure 15; empty: all
    others); without one every two models are paired. The same seed gives the same plan.
    """
    models = samples.models
    if unknown := {*rivals, reference or models[0]} - set(models):
        received, expected = ", ".join(unknown), f"some of: {', '.join(models)}"
        raise UserError("unknown model", received=received, expected=expected)
    couples = list(combinations(rivals or models, 2))
    if reference is not None:
        couples = [(reference, other) for other in rivals or models if other != reference]
    missing = samples.missing_videos()
    findings = Findings()
    findings.add("missing video", "not in a pair", missing.values())
    rng = random.Random(seed)
    pairs: list[Pair] = []
    unpaired: list[str] = []
    for first, second in couples:
        matched, left_over = _matched(samples, first, second, missing)
        unpaired += left_over
        rng.shuffle(matched)
        # An odd pair falls to either side with the same chance.
        on_left = (len(matched) + rng.randint(0, 1)) // 2
        for index, (a, b) in enumerate(matched):
            left, right = (a, b) if index < on_left else (b, a)
            pairs.append(
                Pair(
                    pair="",
                    left=left.sample,
                    right=right.sample,
                    left_model=left.model,
                    right_model=right.model,
                    prompt=a.prompt,
                    cluster=a.cluster or a.prompt,
                    reference=first,
                )
            )
    findings.add("video without a partner", "not in a pair", unpaired)
    if not pairs:
        received = f"{len(samples.samples)} samples of {', '.join(models)}"
        raise UserError("no two models have a video of the same prompt", received=received)
    rng.shuffle(pairs)  # before the ids are given, which would show the models by their order
    numbered = (dataclasses.replace(p, pair=f"p{i:05d}") for i, p in enumerate(pairs, start=1))
    return tuple(numbered), tuple(findings)


def _matched(
    samples: SampleList, first: str, second: str, missing: Mapping[str, str]
) -> tuple[list[tuple[Sample, Sample]], list[str]]:
    """Videos of two models by prompt, and in words those without a partner."""
    by_prompt: dict[str, tuple[list[Sample], list[Sample]]] = {}
    for item in samples.samples:
        if item.model in (first, second) and item.sample not in missing:
            by_prompt.setdefault(item.prompt, ([], []))[item.model == second].append(item)
    pairs, left_over = [], []
    for a, b in by_prompt.values():
        # Several videos of a prompt are paired in their order: each is shown once.
        n = min(len(a), len(b))
        pairs += list(zip(a[:n], b[:n], strict=True))
        left_over += [f"{s.sample} ({s.model}), {first} vs {second}" for s in a[n:] + b[n:]]
    return pairs, left_over


def write_plan(
    folder: Path, pairs: Sequence[Pair], samples: SampleList, dimensions: Sequence[str]
) -> Path:
    """Write the sheet and the videos for the raters, the key for the owner of the study.

    ``sheet.csv`` has one row for each pair and a column for each dimension, to be filled with
    left, same or right; videos get opaque names in ``videos/``.
    """
    key, key_path = _key_text(pairs), folder / KEY_FILE
    if key_path.exists() and key_path.read_text(encoding="utf-8") != key:
        remedy = "answers belong to one key: choose another --output-dir"
        raise UserError("the folder holds another plan", received=str(folder), remedy=remedy)
    write_text(key_path, key)
    by_id = samples.by_id
    rows = []
    for pair in pairs:
        row = {"sample": pair.pair, "rater": "", "caption": by_id[pair.left].caption}
        left, right = blind_videos(pair, by_id)
        for side, sample, name in (("left", pair.left, left), ("right", pair.right, right)):
            row[side] = name or opaque_name(sample)  # ids of lists often name the model
            if (source := samples.video_path(by_id[sample])) is not None:
                place_file(source, folder / name)
        rows.append(row | dict.fromkeys(dimensions, ""))
    sheet = folder / SHEET_FILE
    if not sheet.exists():  # one of this plan may be filled in already
        write_csv(sheet, pd.DataFrame(rows))
    return sheet


def blind_videos(pair: Pair, samples: Mapping[str, Sample]) -> tuple[str, str]:
    """Names of the left and right video in a plan; empty where the list names none."""

    def name(side: str, sample: Sample) -> str:
        ending = Path(sample.video).suffix
        return f"{VIDEO_FOLDER}/{pair.pair}-{side}{ending}" if sample.video else ""

    return name("left", samples[pair.left]), name("right", samples[pair.right])


def plan_study(pairs: Sequence[Pair]) -> str:
    """What the answers to a plan name it by; pairs of different plans may have the same ids."""
    return opaque_name(_key_text(pairs))


def _key_text(pairs: Sequence[Pair]) -> str:
    return "".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)


def read_key(folder: Path) -> tuple[Pair, ...]:
    """The pairs of a plan; a key with a single byte changed is refused."""
    path = folder / KEY_FILE
    try:
        text = path.read_text(encoding="utf-8")
        pairs = tuple(Pair(**json.loads(line)) for line in text.splitlines())
    except (OSError, TypeError, ValueError) as error:
        text, pairs = f"{error}", ()
    if not pairs or _key_text(pairs) != text:
        raise UserError(
            "the key of the plan is missing or damaged",
            received=f"{path}: {text[:80]}",
            remedy="plan again with the same samples and --seed: the plan will be the same",
        )
    return pairs
