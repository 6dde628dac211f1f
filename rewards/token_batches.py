"""Sequences of different lengths to batches of bounded size."""

from collections.abc import Sequence

from longtake.runtime.errors import UserError


def token_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of sequences in batches that hold at most ``max_tokens`` tokens with their padding.

    Sequences are sorted by length, so that little of a batch is padding. A sequence that is longer
    than the budget is a batch of its own: the budget bounds memory, it refuses nothing.

    Args:
        lengths: tokens of each sequence.
        max_tokens: rows times the longest row of a batch, at least 1.

    Returns:
        Every index once; the longest sequences first, so that too large a budget shows at once.
    """
    if max_tokens < 1:
        raise UserError("token budget must be positive", received=max_tokens, expected=">= 1")
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    for index in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
