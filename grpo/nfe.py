"""Number of function evaluations: the closed form, and a counter that checks it on the model.

One evaluation is one forward of one sample with all its guidance branches.
"""

from types import TracebackType
from typing import Self

from torch import Tensor, nn


def rollout_evaluations(num_steps: int, t_index: int, group_size: int, *, shared: bool) -> int:
    """Evaluations to sample one group whose critical step is ``t_index`` (0-based).

    Shared: the prefix and the velocity at t' once, then G suffixes; naive: G whole trajectories.
    """
    if not shared:
        return group_size * num_steps
    return (t_index + 1) + group_size * (num_steps - t_index - 1)


def mean_rollout_evaluations(num_steps: int, num_sde_steps: int, group_size: int) -> float:
    """Mean over t' ~ U{0..T'-1} of the shared count; 53.5 at T=16, T'=6, G=4."""
    counts = [
        rollout_evaluations(num_steps, t, group_size, shared=True) for t in range(num_sde_steps)
    ]
    return sum(counts) / len(counts)


class ForwardCounter:
    """Counts forward calls and samples of a DiT through a hook.

    Args:
        dit: the module to watch.
        branches: guidance branches that share one forward (2 with guidance).
    """

    def __init__(self, dit: nn.Module, branches: int) -> None:
        self.calls = 0
        self.samples = 0
        self._branches = branches
        self._handle = dit.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.calls += 1
        self.samples += args[0].shape[0]

    @property
    def evaluations(self) -> float:
        """Samples evaluated, guidance branches counted as one."""
        return self.samples / self._branches

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._handle.remove()
