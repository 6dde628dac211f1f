"""Reward protocol, the weighted suite and analytic rewards."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from longtake.runtime.errors import UserError

if TYPE_CHECKING:
    from longtake.rewards.contract import Reward
    from longtake.rewards.suite import RewardSuite


def _general() -> "Reward":
    from longtake.rewards.analytic import general

    return general()


def _percentile() -> "Reward":
    from longtake.rewards.analytic import percentile

    return percentile()


def _motion_quality() -> "Reward":
    from longtake.rewards.analytic import motion_quality

    return motion_quality()


def _text_alignment() -> "Reward":
    from longtake.rewards.analytic import text_alignment

    return text_alignment()


REWARDS: dict[str, Callable[[], "Reward"]] = {
    "general": _general,
    "percentile": _percentile,
    "motion_quality": _motion_quality,
    "text_alignment": _text_alignment,
}
"""Reward name -> loader. Nothing is imported or read from disk before a loader is called."""


def load_reward(name: str) -> "Reward":
    """Build the reward registered under ``name``.

    Raises:
        UserError: unknown name; the message lists the valid ones.
    """
    if name not in REWARDS:
        raise UserError(
            "reward is unknown",
            received=name,
            expected=", ".join(sorted(REWARDS)),
            remedy="use one of the names above",
        )
    return REWARDS[name]()


def load_suite(weights: Mapping[str, float]) -> "RewardSuite":
    """A suite of registered rewards from a mapping reward name -> weight of its advantage.

    Raises:
        UserError: unknown name, no reward, or a weight that cannot be used.
    """
    from longtake.rewards.suite import RewardSuite

    return RewardSuite({name: (load_reward(name), weight) for name, weight in weights.items()})
