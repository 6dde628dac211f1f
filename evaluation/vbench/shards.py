"""Which videos of a plan one of several processes makes, and which of them are still to make."""

from dataclasses import dataclass
from pathlib import Path

from longtake.evaluation.vbench.plan import Plan, PlannedVideo
from longtake.evaluation.vbench.probe import probe
from longtake.runtime.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The part of a plan that one process makes."""

    videos: tuple[PlannedVideo, ...]
    """All of its videos."""
    pending: tuple[PlannedVideo, ...]
    """Those that are not there, or cannot be decoded."""


def find_shard(plan: Plan, folder: Path, rank: int = 0, world: int = 1) -> Shard:
    """What a process has to make.

    Raises:
        UserError: not 0 <= rank < world.
    """
    if not 0 <= rank < world:
        raise UserError(
            "no such process", received=f"rank {rank} of {world}", expected="0 <= rank < world"
        )
    videos = plan.videos[rank::world]
    pending = tuple(v for v in videos if not _is_whole(folder / v.name))
    return Shard(videos=videos, pending=pending)


def _is_whole(path: Path) -> bool:
    return path.is_file() and not probe(path).problem
