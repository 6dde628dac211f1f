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


def start_all_to_all(
    rows: Tensor,
    sent: Sequence[int],
    received: Sequence[int],
    group: dist.ProcessGroup | None,
) -> Pending:
    """Send every rank its part of the rows [sum(sent), ...], which lie in the order of the ranks.

    [sum(received), ...] come, in the order of the ranks that sent them.
    """
    # One message a rank with unequal parts: padding to equal ones would send the room too.
    out = rows.new_empty((sum(received), *rows.shape[1:]))
    work = dist.all_to_all_single(out, rows, list(received), list(sent), group=group, async_op=True)
    assert work is not None  # as it would be for a rank outside the group
    return Pending(out, [work], rows)


def start_all_gather(
    rows: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None
) -> Pending:
    """Send this rank's rows to all ranks; the rows of all ranks, [sum(counts), ...], come."""
    # The library's all-gather would need equal counts.
    # Block means are 1/64 of the keys, so copies for all ranks still are a small message.
    copies = rows.repeat(len(counts), *[1] * (rows.ndim - 1))
    return start_all_to_all(copies, [len(rows)] * len(counts), counts, group)


def start_pass_on(rows: Tensor, received: int, group: dist.ProcessGroup | None) -> Pending:
    """Send the rows to the next rank of the ring; ``received`` rows of the previous rank come."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    out = rows.new_empty((received, *rows.shape[1:]))
    operations = []
    if rows.numel():  # empty tensors stay at home, as both sides know
        operations.append(dist.P2POp(dist.isend, rows, group=group, group_peer=(rank + 1) % size))
    if out.numel():
        operations.append(dist.P2POp(dist.irecv, out, group=group, group_peer=(rank - 1) % size))
    # In one batch: a send alone may wait for its receive, and a ring of such waits never ends.
    works = dist.batch_isend_irecv(operations) if operations else []
    return Pending(out, works, rows)


def to_rows(*tensors: Tensor) -> Tensor:
    """Rows [n, tensors, B, H, D] of tensors [B, H, n, D], so that one message carries them all."""
    return torch.stack([x.permute(2, 0, 1, 3) for x in tensors], dim=1)


def from_rows(rows: Tensor) -> tuple[Tensor, ...]:
    """Undo :func:`to_rows`; views."""
    return tuple(part.permute(1, 2, 0, 3) for part in rows.unbind(1))
