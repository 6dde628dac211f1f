"""Batches of rated clips ahead of the model, made by processes.

Decoding and collating a clip are some hundred short calls, and each of them takes and gives back
the interpreter's lock: threads that do it gain nothing and hold up the thread that feeds the model.
"""

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from longtake.evaluation.judge.clip_inputs import ModelBatch
from longtake.evaluation.judge.rated_batches import ClipSource
from longtake.runtime.errors import UserError

Loaded = tuple[list[int], list[ModelBatch]]
"""Rows, and their inputs in micro-batches."""


class _Batches(Dataset[Loaded | UserError]):
    """Lists of rows as inputs."""

    def __init__(self, source: ClipSource, micro_batch: int) -> None:
        self._source, self._micro_batch = source, micro_batch

    def __getitem__(self, rows: list[int]) -> Loaded | UserError:
        try:
            made = [self._source.batch(rows[part]) for part in parts(len(rows), self._micro_batch)]
        except UserError as error:  # raised, it would reach the user as the text of a traceback
            return error
        return rows, made


def loaded_batches(
    source: ClipSource,
    batches: Iterable[list[int]],
    *,
    micro_batch: int,
    loaders: int,
    pin: bool,
) -> Iterator[Loaded]:
    """Batches in their order.

    Args:
        source: of the clips.
        batches: rows of each batch.
        micro_batch: clips of a forward pass.
        loaders: processes that make batches ahead; 0: each is made when it is asked for.
        pin: put the inputs into pinned memory, which a GPU reads faster.

    Raises:
        UserError: a clip that cannot be used.
    """
    loader = DataLoader(
        _Batches(source, micro_batch),
        sampler=batches,
        batch_size=None,  # the sampler's items are batches
        num_workers=loaders,
        collate_fn=_same,
        pin_memory=pin,
        # Only a forked process shares the memory of the source.
        multiprocessing_context="fork" if loaders else None,
        generator=torch.Generator(),  # without one it would draw from the training's
    )
    for item in loader:
        if isinstance(item, UserError):
            raise item
        yield cast(Loaded, item)


def _same(item: Any) -> Any:
    return item


def parts(count: int, size: int) -> list[slice]:
    """``count`` rows in parts of ``size``; the last one may be smaller."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
