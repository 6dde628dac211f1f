"""Preference pairs: the record, its files, the split by prompt and the order of A and B.

Two public formats are read: the CSV of VideoAlign and the JSON list of HPSv3. A bad value is named
by its row, counted as a spreadsheet does: the header of a CSV is row 1; the first entry of a JSON
list is row 1.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from pydantic import BaseModel, BeforeValidator, Field

from longtake.rewards.spec import DIMENSIONS
from longtake.runtime.errors import UserError
from longtake.runtime.files import checked_rows, prompt_key, read_csv, write_csv
from longtake.runtime.rng import derive_key

A_WINS, TIE, B_WINS = 1, 0, -1
# Label of a dimension that nobody judged; losses and accuracies leave it out.
UNLABELLED = -100
LABEL_OF_WORD = {"A": A_WINS, "same": TIE, "B": B_WINS, "": UNLABELLED}
WORD_OF_LABEL = {label: word for word, label in LABEL_OF_WORD.items()}
SWAPPED = {A_WINS: B_WINS, TIE: TIE, B_WINS: A_WINS, UNLABELLED: UNLABELLED}
"""The label of the same judgement after A and B changed places."""

OVERALL = "Overall"
"""One judgement of the whole: of image pairs (HPSv3), and a column of VideoGen-RewardBench."""
LABELS = (*DIMENSIONS, OVERALL)
# Share of annotators behind a label below which HPSv3 does not train on a pair.
MIN_CONFIDENCE = 0.95

_FILES = ("path_A", "path_B", "prompt")
_SIDES = ("path", "fps", "num_frames")
_TIMING = ("fps_A", "num_frames_A", "fps_B", "num_frames_B")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferencePair:
    """Two clips (or images) of one prompt, and who won in each dimension.

    Paths are as the data set writes them. ``labels`` has no entry for a dimension that was not
    judged. Playback rates are frames per second; images have neither rates nor numbers of frames.
    """

    prompt: str
    path_a: str
    path_b: str
    labels: Mapping[str, int]
    fps_a: float | None = None
    fps_b: float | None = None
    num_frames_a: int | None = None
    num_frames_b: int | None = None

    def label(self, dimension: str) -> int:
        """Label of a dimension, UNLABELLED when it was not judged."""
        return self.labels.get(dimension, UNLABELLED)

    def swapped(self) -> "PreferencePair":
        """The same judgement with A and B exchanged."""
        other = {f"{name}_a": getattr(self, f"{name}_b") for name in _SIDES}
        other |= {f"{name}_b": getattr(self, f"{name}_a") for name in _SIDES}
        labels = {dimension: SWAPPED[label] for dimension, label in self.labels.items()}
        return replace(self, labels=labels, **other)


_Text = Annotated[str, Field(pattern=r"\S")]
_Word = Literal["A", "same", "B", ""]
_Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# pandas writes whole columns with a gap as 93.0, which an int does not read.
_Count = Annotated[int, BeforeValidator(float), Field(gt=0)]


class _Row(BaseModel):
    """One row of either format, under the CSV's names; other columns are left aside."""

    path_A: _Text
    path_B: _Text
    prompt: _Text
    VQ: _Word = ""
    MQ: _Word = ""
    TA: _Word = ""
    Overall: _Word = ""
    fps_A: _Rate | None = None
    num_frames_A: _Count | None = None
    fps_B: _Rate | None = None
    num_frames_B: _Count | None = None
    confidence: Annotated[float, Field(ge=0, le=1, strict=True)] = 1.0

    def pair(self) -> PreferencePair:
        words = {name: getattr(self, name) for name in LABELS}
        return PreferencePair(
            prompt=self.prompt,
            path_a=self.path_A,
            path_b=self.path_B,
            labels={name: LABEL_OF_WORD[word] for name, word in words.items() if word},
            fps_a=self.fps_A,
            fps_b=self.fps_B,
            num_frames_a=self.num_frames_A,
            num_frames_b=self.num_frames_B,
        )


def read_pairs(path: Path, min_confidence: float = MIN_CONFIDENCE) -> list[PreferencePair]:
    """Pairs of a file, in its order.

    A ``.csv`` has VideoAlign's columns ``path_A, path_B, prompt, fps_A, num_frames_A, fps_B,
    num_frames_B`` and one or more of ``VQ, MQ, TA, Overall`` (A, B, same, or empty: not judged). A
    ``.json`` is HPSv3's list of ``{"prompt", "path1", "path2", "confidence"}``: path1 is preferred
    and becomes A, with the label in ``Overall`` (:func:`balance_order` mixes the order); pairs
    below ``min_confidence`` are dropped.
    """
    is_csv = path.suffix != ".json"
    table = read_csv(path, ()) if is_csv else _json_table(path)
    needed: tuple[str, ...] = _TIMING if is_csv else ("confidence",)
    missing = [name for name in needed if name not in table]
    if missing or not any(name in table for name in LABELS):
        raise UserError(
            "columns of the preference data are missing",
            received=f"{path} with {', '.join(map(str, table.columns))}",
            expected=f"{', '.join(_FILES + needed)} and one or more of {', '.join(LABELS)}",
        )
    rows = checked_rows(table, _Row, path)
    kept = [row.pair() for row in rows if row.confidence >= min_confidence]
    if not kept:
        raise UserError(
            "preference data hold no pair",
            received=f"{len(rows)} pairs in {path}, none with confidence {min_confidence} or more",
        )
    return kept


def write_pairs(pairs: Sequence[PreferencePair], path: Path) -> Path:
    """Write the CSV that :func:`read_pairs` reads back to equal pairs; every pair has its rates."""
    dimensions = LABELS if any(OVERALL in pair.labels for pair in pairs) else DIMENSIONS
    rows = [
        [p.path_a, p.path_b, p.prompt, p.fps_a, p.num_frames_a, p.fps_b, p.num_frames_b]
        + [WORD_OF_LABEL[p.label(name)] for name in dimensions]
        for p in pairs
    ]
    return write_csv(path, pd.DataFrame(rows, columns=[*_FILES, *_TIMING, *dimensions]))


def _json_table(path: Path) -> pd.DataFrame:
    """The CSV's columns of a JSON list; its first entry is row 1."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        table = pd.DataFrame(entries, dtype=object)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path.name}: {error}",
            received=str(path),
            expected="a JSON list of objects with prompt, path1, path2 and confidence, in UTF-8",
        ) from error
    table.index += 1
    table = table.rename(columns={"path1": "path_A", "path2": "path_B"})
    return table.assign(**{OVERALL: WORD_OF_LABEL[A_WINS]})


def split_by_prompt(
    pairs: Sequence[PreferencePair], validation_share: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Training and validation pairs; all pairs of a prompt go to the same side.

    Pairs of one prompt share clips, so a split by pair would validate on seen clips. A prompt's
    side depends on its text and the seed alone (case and spaces aside): more data do not move it.
    ``validation_share`` is the expected share of the prompts, in (0, 1).
    """
    threshold = int(validation_share * 2**63)
    sides: tuple[list[PreferencePair], list[PreferencePair]] = ([], [])
    for pair in pairs:
        key = derive_key(seed, "preference split", prompt_key(pair.prompt))
        # A threshold and no sorted share: a larger share only adds prompts.
        sides[key < threshold].append(pair)
    if not sides[0] or not sides[1]:
        raise UserError(
            "the split by prompt leaves one side empty",
            received=f"{len(sides[0])} training and {len(sides[1])} validation pairs from "
            f"{len({pair.prompt for pair in pairs})} prompts",
            expected="prompts on both sides: add some, or change the share or the seed",
        )
    return sides


def balance_order(
    pairs: Sequence[PreferencePair], dimension: str, seed: int
) -> list[PreferencePair]:
    """Exchange A and B so that both win equally often in ``dimension`` (within one pair).

    HPSv3's files name the winner first, and a scorer that is no function of one clip alone could
    read the position. Which pairs are exchanged depends on their content and the seed, not on
    their order; ties and unlabelled pairs are exchanged by chance.
    """
    keys = [
        derive_key(seed, "pair order", pair.prompt, *sorted((pair.path_a, pair.path_b)))
        for pair in pairs
    ]
    # By key and not by place: the same pairs in another order get the same sides.
    ranked = sorted(range(len(pairs)), key=lambda i: (keys[i], pairs[i].path_a))
    balanced = list(pairs)
    winner = A_WINS
    for i in ranked:
        label = pairs[i].label(dimension)
        if label in (A_WINS, B_WINS):
            exchange, winner = label != winner, SWAPPED[winner]
        else:
            exchange = keys[i] % 2 == 1
        if exchange:
            balanced[i] = pairs[i].swapped()
    return balanced
