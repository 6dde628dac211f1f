"""Prompts of different lengths to padded batches of bounded size."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from longtake.runtime.errors import UserError


def token_batches(lengths: Sequence[int], tokens_per_pass: int) -> list[list[int]]:
    """Indices of prompts in batches of at most ``tokens_per_pass`` tokens, padding included.

    Prompts are sorted by length, so that little of a batch is padding. A prompt that is longer than
    the bound goes alone: the bound is for memory, and refuses nothing.

    Args:
        lengths: tokens of each prompt.
        tokens_per_pass: rows times the longest row of a batch, at least 1.

    Returns:
        Every index once; the longest prompts first, so that too high a bound shows at once.
    """
    if tokens_per_pass < 1:
        raise UserError(
            "tokens_per_pass must be positive", received=tokens_per_pass, expected=">=1"
        )
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens_per_pass:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def pad_prompts(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids of B prompts as input ids and attention mask, int64 [B, L], padded on the right."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.int64)
    ids[mask] = torch.tensor(list(chain.from_iterable(prompts)), dtype=torch.int64)
    return ids, mask.long()
