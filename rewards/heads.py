"""Reward heads: from the rows at the reward tokens to numbers, always in float32.

Two published forms. HPSv3's ``ranknet`` is a small network that gives a mean score and the
logarithm of its uncertainty. VideoAlign's is one linear layer without bias: a single output row is
shared by the three reward tokens, of one row per token the diagonal counts (token i, row i). The
size of a checkpoint file does not tell which of the two it holds, so the weight's shape decides.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from longtake.runtime.errors import CheckpointError, UserError

HeadKind = Literal["ranknet", "shared_linear", "diagonal_linear"]

#: State-dict prefix of the head in every layout.
HEAD_PREFIX = "rm_head."
DIAGONAL_ROWS = 3
"""Rows of VideoAlign's diagonal head: visual quality, motion quality, text alignment."""


class RanknetHead(nn.Sequential):
    """HPSv3's head: 1024 and 16 hidden units with ReLU, two outputs; keys 0, 3 and 5.

    Args:
        width: channels D of the backbone.
    """

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(width, 1024),
            nn.ReLU(),
            nn.Dropout(0.05),
            nn.Linear(1024, 16),
            nn.ReLU(),
            nn.Linear(16, 2),
        )

    def score_rows(self, rows: Tensor, tokens: Sequence[int]) -> Tensor:
        """Rows [B, 1, D] to [B, 2]: the score mu and the raw sigma; sigma = exp(raw sigma)."""
        assert rows.shape[1] == 1 and list(tokens) == [0]
        scores: Tensor = self(rows[:, 0])
        return scores


class TokenLinearHead(nn.Linear):
    """VideoAlign's head: one row shared by all reward tokens, or one row for each.

    Args:
        width: channels D of the backbone.
        rows: 1, or :data:`DIAGONAL_ROWS`.
    """

    def __init__(self, width: int, rows: int) -> None:
        super().__init__(width, rows, bias=False)

    def score_rows(self, rows: Tensor, tokens: Sequence[int]) -> Tensor:
        """Rows [B, n, D] at the reward tokens with the indices ``tokens`` to scores [B, n]."""
        if self.out_features == 1:
            scores: Tensor = self(rows)
            return scores[..., 0]
        return torch.einsum("bnd,nd->bn", rows, self.weight[list(tokens)])


RewardHead = RanknetHead | TokenLinearHead

HEADS: dict[HeadKind, Callable[[int], RewardHead]] = {
    "ranknet": RanknetHead,
    "shared_linear": lambda width: TokenLinearHead(width, 1),
    "diagonal_linear": lambda width: TokenLinearHead(width, DIAGONAL_ROWS),
}
"""Form of the head -> constructor from the width D of the backbone."""
HEAD_TOKENS: dict[HeadKind, int] = {"ranknet": 1, "shared_linear": 3, "diagonal_linear": 3}
"""Form of the head -> reward tokens that a prompt holds."""


def build_head(kind: HeadKind, width: int) -> RewardHead:
    """A head of the given form for a backbone of ``width`` channels.

    Raises:
        UserError: unknown form; the message lists the valid ones.
    """
    if kind not in HEADS:
        raise UserError(
            "form of the reward head is unknown", received=kind, expected=", ".join(HEADS)
        )
    return HEADS[kind](width)


def infer_head(shapes: Mapping[str, Sequence[int]]) -> HeadKind:
    """The form of the head from the shapes of a state dict, in any key layout.

    Args:
        shapes: tensor name -> shape.

    Raises:
        CheckpointError: no head, or one of an unknown form.
    """
    found = {
        name[name.index(HEAD_PREFIX) :]: tuple(shape)
        for name, shape in shapes.items()
        if HEAD_PREFIX in name
    }
    linear = found.get(f"{HEAD_PREFIX}weight")
    if linear is not None and len(linear) == 2 and len(found) == 1:
        if linear[0] == 1:
            return "shared_linear"
        if linear[0] == DIAGONAL_ROWS:
            return "diagonal_linear"
    if found.keys() == {
        f"{HEAD_PREFIX}{i}.{part}" for i in (0, 3, 5) for part in ("weight", "bias")
    }:
        return "ranknet"
    raise CheckpointError(
        "the checkpoint has no reward head of a known form",
        received=str(found) if found else f"no tensor named {HEAD_PREFIX}*",
        expected=f"{HEAD_PREFIX}weight with 1 or {DIAGONAL_ROWS} rows (VideoAlign), or "
        f"{HEAD_PREFIX}0, 3 and 5 with biases (HPSv3)",
        remedy="use a complete reward checkpoint, not the base model it was trained from",
    )
