"""Several rewards scored together: one row per reward, failures kept inside their samples.

The suite returns the rows and never their sum: LongCat-Video weights the *advantages* (report
section 3.3.2, Eq. 10), each normalised by its own group statistics.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from longtake.rewards.contract import Reward, Score, VideoBatch
from longtake.runtime.errors import UserError

# What a scorer may raise without ending the run. RuntimeError covers CUDA and out of memory.
SCORING_ERRORS = (RuntimeError, ValueError, ArithmeticError, OSError, TypeError, LookupError)


@dataclass(frozen=True)
class SuiteScores:
    """Scores of K rewards for B clips: by reward, one score per clip."""

    rows: Mapping[str, Sequence[Score]]

    @cached_property
    def scores(self) -> Tensor:
        """[K, B] float32 on the CPU, NaN where unscored."""
        return torch.tensor([[float(score) for score in row] for row in self.rows.values()])

    @property
    def columns(self) -> dict[str, Tensor]:
        """Name -> scores [B]."""
        return dict(zip(self.rows, self.scores, strict=True))

    def unscored(self) -> dict[str, int]:
        """Number of unscored samples of each reward."""
        return {name: sum(s.value is None for s in row) for name, row in self.rows.items()}

    def first_reasons(self, limit: int = 3) -> list[str]:
        """The most frequent different reasons, each as "reward: reason (count)"."""
        tally = Counter(
            f"{name}: {score.reason}"
            for name, row in self.rows.items()
            for score in row
            if score.value is None
        )
        return [f"{text} ({count})" for text, count in tally.most_common(limit)]


class RewardSuite:
    """A set of rewards: column name -> (reward, weight of its advantage)."""

    def __init__(self, rewards: Mapping[str, tuple[Reward, float]]) -> None:
        if not rewards:
            raise UserError("reward suite is empty", remedy="name a reward")
        for name, (reward, weight) in rewards.items():
            if not isinstance(reward, Reward) or not 0 <= weight < math.inf:
                raise UserError(
                    f"reward {name!r} or its weight cannot be used",
                    received=f"{type(reward).__name__}, weight {weight}",
                    expected="a class derived from longtake.rewards.contract.Reward, and a finite "
                    "weight >= 0; 0 logs a reward without training on it",
                )
        self.rewards: dict[str, Reward] = {name: reward for name, (reward, _) in rewards.items()}
        self.weights: dict[str, float] = {name: float(w) for name, (_, w) in rewards.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Column names, in the order of the rows of the scores."""
        return tuple(self.rewards)

    def to(self, device: torch.device | str) -> "RewardSuite":
        """Move every reward to ``device``."""
        self.rewards = {name: reward.to(device) for name, reward in self.rewards.items()}
        return self

    def fingerprint(self) -> dict[str, object]:
        """Weights and fingerprints of all rewards, for provenance.json."""
        return {
            name: {"weight": self.weights[name], **reward.fingerprint()}
            for name, reward in self.rewards.items()
        }

    def score(self, batch: VideoBatch) -> SuiteScores:
        """Score every clip with every reward.

        Clips with unusable pixels are unscored for all rewards and are not handed to them. A
        reward that raises, returns NaN or returns the wrong number of scores leaves the samples
        concerned unscored, with the reason, and does not touch the other rewards.
        """
        problems = batch.pixel_problems()
        usable = [i for i, problem in enumerate(problems) if problem is None]
        clips = batch.select(usable) if 0 < len(usable) < batch.num_samples else batch
        rows: dict[str, list[Score]] = {}
        for name, reward in self.rewards.items():
            # A broken clip is broken for all rewards, and none of them has to look for it.
            given = iter(_score(reward, clips) if usable else ())
            rows[name] = [next(given) if why is None else Score.unscored(why) for why in problems]
        return SuiteScores(rows)


def _score(reward: Reward, batch: VideoBatch) -> Sequence[Score]:
    try:
        with torch.inference_mode():
            scores = reward.score(batch)
        if not all(isinstance(score, Score) for score in scores):
            raise TypeError(f"the reward returned {type(scores).__name__}, not a list of Score")
        if len(scores) != batch.num_samples:
            raise ValueError(f"{len(scores)} scores for {batch.num_samples} clips")
        return scores
    except SCORING_ERRORS as error:
        if batch.num_samples == 1:
            message = str(error).strip().split("\n", 1)[0] or "no message"
            return [Score.unscored(f"{type(error).__name__}: {message}")]
    # One at a time, so that only the clips that cause the error are lost.
    return [_score(reward, batch.select([i]))[0] for i in range(batch.num_samples)]
