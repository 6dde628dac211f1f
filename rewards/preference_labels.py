"""Labels of a preference pair: who won, as the words of the CSV and as numbers for the maths."""

import torch
from torch import Tensor

from longtake.runtime.errors import UserError

A_WINS, TIE, B_WINS = 1, 0, -1
UNLABELLED = -100
"""Number of a dimension nobody judged; losses and accuracies leave it out."""

LABEL_OF_WORD: dict[str, int] = {"A": A_WINS, "same": TIE, "B": B_WINS, "": UNLABELLED}
WORD_OF_LABEL: dict[int, str] = {label: word for word, label in LABEL_OF_WORD.items()}

SWAPPED: dict[int, int] = {A_WINS: B_WINS, TIE: TIE, B_WINS: A_WINS, UNLABELLED: UNLABELLED}
"""The label of the same judgement after A and B changed places."""


def is_decided(labels: Tensor) -> Tensor:
    """Where one side won, bool of the same shape."""
    return (labels == A_WINS) | (labels == B_WINS)


def is_labelled(labels: Tensor) -> Tensor:
    """Where there is a judgement, a tie included, bool of the same shape."""
    return is_decided(labels) | (labels == TIE)


def check_labels(labels: Tensor) -> None:
    """Raise UserError unless every entry is 1, 0, -1 or UNLABELLED."""
    known = is_labelled(labels) | (labels == UNLABELLED)
    if not bool(known.all()):
        strange = torch.unique(labels[~known]).tolist()
        raise UserError(
            "labels of preference pairs are unknown",
            received=strange,
            expected=f"1 (A), -1 (B), 0 (same) or {UNLABELLED} (not judged)",
        )
