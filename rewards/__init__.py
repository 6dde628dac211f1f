"""Reward models: the protocol, the registry and the weighted suite."""

from collections.abc import Callable, Mapping, Sequence
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
            remedy="use one of the names above, or name the source of a model: NAME=SOURCE",
        )
    return REWARDS[name]()


def load_rewards(
    names: Sequence[str], sources: Mapping[str, str] | None = None, *, device: str = "cpu"
) -> dict[str, "Reward"]:
    """Rewards by name, in the order of ``names``.

    Args:
        names: registered names, or names with a source.
        sources: name -> reward directory, open_clip folder or server address
            (:mod:`longtake.rewards.sources`); the other names are registered ones.
        device: where the models are.

    Raises:
        UserError: unknown name, or a source for a name that is not wanted.
    """
    from longtake.rewards.sources import load_from_sources

    sources = sources or {}
    unused = sorted(set(sources) - set(names))
    if unused:
        raise UserError(
            "source of a reward that is not used",
            received=", ".join(unused),
            expected=f"sources of {', '.join(names)}",
            remedy="give the reward a weight, or remove its source",
        )
    registered = {name: load_reward(name).to(device) for name in names if name not in sources}
    loaded = registered | load_from_sources(sources, device)
    return {name: loaded[name] for name in names}


def load_suite(
    weights: Mapping[str, float],
    sources: Mapping[str, str] | None = None,
    *,
    device: str = "cpu",
) -> "RewardSuite":
    """A suite from a mapping reward name -> weight of its advantage; see :func:`load_rewards`.

    Raises:
        UserError: unknown name, no reward, or a weight that cannot be used.
    """
    from longtake.rewards.suite import RewardSuite

    rewards = load_rewards(list(weights), sources, device=device)
    return RewardSuite({name: (rewards[name], weight) for name, weight in weights.items()})
