"""Batches of rated clips ahead of the model: processes decode, one thread collates.

Decoding a clip is some hundred short calls, and each of them takes and gives back the interpreter's
lock: threads that do it gain nothing and hold up the thread that feeds the model. Decoded clips lie
in memory that all processes share, so that only their names travel; collating them is one copy.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from longtake.evaluation.judge.clip_inputs import ModelBatch
from longtake.evaluation.judge.rated_batches import ClipSource
from longtake.runtime.errors import UserError

Loaded = tuple[list[int], list[ModelBatch]]
"""Rows, and their inputs in micro-batches."""
_Decoded = tuple[list[int], dict[int, np.ndarray]]
"""Rows, and the patches of those that the shared memory has no room for."""


class _Clips(Dataset[_Decoded | UserError]):
    """What a loader does with a list of rows."""

    def __init__(self, source: ClipSource) -> None:
        self._source = source

    def __getitem__(self, rows: list[int]) -> _Decoded | UserError:
        try:
            unkept = self._source.decode(rows)
            # A tensor would travel as an open file of its own, and there may be hundreds.
            return rows, {row: patches.numpy() for row, patches in unkept.items()}
        except UserError as error:  # raised, it would reach the user as the text of a traceback
            return error


def loaded_batches(
    source: ClipSource,
    batches: Iterable[list[int]],
    *,
    micro_batch: int,
    loaders: int,
    pin: bool,
) -> Iterator[Loaded]:
    """Batches in their order; the next one is made while the model works on this one.

    Args:
        source: of the clips.
        batches: rows of each batch.
        micro_batch: clips of a forward pass.
        loaders: processes that decode; 0: the thread that collates does it.
        pin: put the patches into pinned memory, which a GPU reads faster.

    Raises:
        UserError: a clip that cannot be used.
    """
    loader: DataLoader[_Decoded | UserError] = DataLoader(
        _Clips(source),
        sampler=batches,
        batch_size=None,  # the sampler's items are batches
        num_workers=loaders,
        collate_fn=_same,
        # Only a forked process shares the memory of the source.
        multiprocessing_context="fork" if loaders else None,
        generator=torch.Generator(),  # without one it would draw from the training's
    )
    made = _collated(source, iter(loader), micro_batch, pin)
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, made, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, made, None)
            yield item


def _collated(
    source: ClipSource, decoded: Iterator[_Decoded | UserError], micro_batch: int, pin: bool
) -> Iterator[Loaded]:
    for item in decoded:
        if isinstance(item, UserError):
            raise item
        rows, arrays = item
        unkept = {row: torch.from_numpy(patches) for row, patches in arrays.items()}
        cut = parts(len(rows), micro_batch)
        yield rows, [source.batch(rows[part], unkept, pin=pin) for part in cut]


def _same(item: Any) -> Any:
    return item


def parts(count: int, size: int) -> list[slice]:
    """``count`` rows in parts of ``size``; the last one may be smaller."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
