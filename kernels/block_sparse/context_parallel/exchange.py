"""Tokens on their way between ranks, while this rank computes.

Tensors are rows of tokens here, [tokens, ...] and contiguous: parts of any length from several
ranks then lie back to back in the order of the ranks, and nothing is copied after arrival.
"""

import dataclasses
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A tensor on its way to this rank. On a GPU only the stream waits for it, not the host."""

    result: Tensor
    """Where it arrives; not to be read before :meth:`wait`."""
    works: Sequence[dist.Work]
    """The transfers."""
    sent: Tensor
    """What leaves this rank meanwhile; kept so that its memory is not reused."""

    def wait(self) -> Tensor:
        """The tensor."""
        for work in self.works:
            work.wait()
        return self.result


def start_all_gather(
    rows: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None
) -> Pending:
    """Send this rank's rows to all ranks.

    The library's all-gather would need equal counts, or copies.

    Args:
        rows: [counts[rank], ...].
        counts: rows of every rank.
        group: the ranks; None for all.

    Returns:
        The rows of all ranks, [sum(counts), ...].
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    out = rows.new_empty((sum(counts), *rows.shape[1:]))
    parts = out.split(list(counts))
    parts[rank].copy_(rows)
    operations = []
    for step in range(1, size):
        target, source = (rank + step) % size, (rank - step) % size
        operations += _transfer(rows, target, parts[source], source, group)
    return Pending(out, _launch(operations), rows)


def start_all_to_all(
    rows: Tensor,
    sent: Sequence[int],
    received: Sequence[int],
    group: dist.ProcessGroup | None,
) -> Pending:
    """Send every rank its part of the rows.

    Args:
        rows: [sum(sent), ...], in the order of the receiving ranks.
        sent: rows for every rank.
        received: rows from every rank.
        group: the ranks; None for all.

    Returns:
        The received rows in the order of the sending ranks, [sum(received), ...].
    """
    out = rows.new_empty((sum(received), *rows.shape[1:]))
    work = dist.all_to_all_single(out, rows, list(received), list(sent), group=group, async_op=True)
    assert work is not None  # as it would be for a rank outside the group
    return Pending(out, [work], rows)


def start_pass_on(rows: Tensor, received: int, group: dist.ProcessGroup | None) -> Pending:
    """Send the rows to the next rank of the ring and receive the previous rank's.

    Args:
        rows: [n, ...].
        received: rows that the previous rank sends.
        group: the ranks; None for all.

    Returns:
        The previous rank's rows, [received, ...].
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    out = rows.new_empty((received, *rows.shape[1:]))
    operations = _transfer(rows, (rank + 1) % size, out, (rank - 1) % size, group)
    return Pending(out, _launch(operations), rows)


def to_rows(*tensors: Tensor) -> Tensor:
    """Rows [n, tensors, B, H, D] of tensors [B, H, n, D], so that one message carries them all."""
    return torch.stack([x.permute(2, 0, 1, 3) for x in tensors], dim=1)


def from_rows(rows: Tensor) -> tuple[Tensor, ...]:
    """Undo :func:`to_rows`; views."""
    return tuple(part.permute(1, 2, 0, 3) for part in rows.unbind(1))


def _transfer(
    rows: Tensor, target: int, out: Tensor, source: int, group: dist.ProcessGroup | None
) -> list[dist.P2POp]:
    """A send and a receive; empty tensors stay at home, as both sides know."""
    operations = []
    if rows.numel():
        operations.append(dist.P2POp(dist.isend, rows, group=group, group_peer=target))
    if out.numel():
        operations.append(dist.P2POp(dist.irecv, out, group=group, group_peer=source))
    return operations


def _launch(operations: list[dist.P2POp]) -> list[dist.Work]:
    return dist.batch_isend_irecv(operations) if operations else []
