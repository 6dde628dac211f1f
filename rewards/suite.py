"""Several rewards scored together: one column per reward, failures kept inside their samples.

The suite returns the columns and never their sum: LongCat-Video weights the *advantages*
(report section 3.3.2, Eq. 10), each normalised by its own group statistics.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.rewards.contract import Reward, RewardOutput, VideoBatch
from longtake.runtime.errors import UserError

SCORING_ERRORS = (RuntimeError, ValueError, ArithmeticError, OSError, TypeError, LookupError)
"""What a scorer may raise without ending the run. RuntimeError covers CUDA and out of memory."""


@dataclass(frozen=True, kw_only=True)
class SuiteScores:
    """Scores of K rewards for B clips.

    Args:
        names: K column names.
        weights: [K] float32, weights of the advantages.
        scores: [K, B] float32 on the CPU, NaN where unscored.
        reasons: K lists of B entries, None where scored.
        aux: side results by reward name; first axis B, NaN rows for unscored samples.
    """

    names: tuple[str, ...]
    weights: Tensor
    scores: Tensor
    reasons: tuple[tuple[str | None, ...], ...]
    aux: Mapping[str, Mapping[str, Tensor]]

    @property
    def columns(self) -> dict[str, Tensor]:
        """Name -> scores [B]."""
        return {name: self.scores[k] for k, name in enumerate(self.names)}

    @property
    def valid(self) -> Tensor:
        """Which scores exist, bool [K, B]."""
        return self.scores.isfinite()

    def unscored(self) -> dict[str, int]:
        """Number of unscored samples of each reward."""
        counts = (~self.valid).sum(1).tolist()
        return dict(zip(self.names, counts, strict=True))

    def first_reasons(self, limit: int = 3) -> list[str]:
        """Up to ``limit`` different reasons, each as "reward: reason (count)"."""
        tally: dict[str, int] = {}
        for name, row in zip(self.names, self.reasons, strict=True):
            for reason in row:
                if reason is not None:
                    key = f"{name}: {reason}"
                    tally[key] = tally.get(key, 0) + 1
        ranked = sorted(tally.items(), key=lambda item: (-item[1], item[0]))
        return [f"{text} ({count})" for text, count in ranked[:limit]]


class RewardSuite:
    """A set of named, weighted rewards.

    Args:
        rewards: column name -> (reward, weight of its advantage).
        retry_singly: after a reward raised on a batch, score its clips one at a time, so that only
            the clips that cause the error are lost. Turn off for rewards with a costly failure
            (a remote scorer that times out).

    Raises:
        UserError: no reward, or a weight that is not a finite number >= 0.
    """

    def __init__(
        self, rewards: Mapping[str, tuple[Reward, float]], *, retry_singly: bool = True
    ) -> None:
        if not rewards:
            raise UserError(
                "reward suite is empty", expected="at least one reward", remedy="name a reward"
            )
        for name, (reward, weight) in rewards.items():
            if not isinstance(reward, Reward):
                raise UserError(
                    f"{name!r} is not a reward",
                    received=type(reward).__name__,
                    expected="an object with name, needs_prompt, needs_time, score, to, "
                    "fingerprint",
                )
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(
                    f"weight of reward {name!r} cannot be used",
                    received=weight,
                    expected="a finite number >= 0",
                    remedy="use 0 to log a reward without training on it",
                )
        self.rewards: dict[str, Reward] = {name: reward for name, (reward, _) in rewards.items()}
        self.weights: dict[str, float] = {name: float(w) for name, (_, w) in rewards.items()}
        self.retry_singly = retry_singly

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
        bad = batch.bad_samples()
        usable = [i for i, reason in enumerate(bad) if reason is None]
        rows, reasons, aux = [], [], {}
        sub_batch = batch.select(usable) if 0 < len(usable) < batch.num_samples else batch
        for name, reward in self.rewards.items():
            row = torch.full((batch.num_samples,), math.nan)
            row_reasons = list(bad)
            row_aux: Mapping[str, Tensor] = {}
            if usable:
                output = self._score_one(reward, sub_batch)
                row[usable] = output.score.cpu()
                for i, reason in zip(usable, output.reasons, strict=True):
                    row_reasons[i] = reason
                row_aux = _scatter_aux(output.aux, usable, batch.num_samples)
            rows.append(row)
            reasons.append(tuple(row_reasons))
            aux[name] = row_aux
        weights = torch.tensor([self.weights[name] for name in self.names])
        return SuiteScores(
            names=self.names,
            weights=weights,
            scores=torch.stack(rows),
            reasons=tuple(reasons),
            aux=aux,
        )

    def _score_one(self, reward: Reward, batch: VideoBatch) -> RewardOutput:
        try:
            with torch.inference_mode():
                return _checked(reward.score(batch), batch.num_samples)
        except SCORING_ERRORS as error:
            reason = f"{type(error).__name__}: {_first_line(error)}"
        if self.retry_singly and batch.num_samples > 1:
            singles = [self._score_one(reward, batch.select([i])) for i in range(batch.num_samples)]
            return RewardOutput(
                score=torch.cat([single.score.cpu() for single in singles]),
                valid=torch.cat([single.valid.cpu() for single in singles]),
                aux=_concatenate_aux([single.aux for single in singles]),
                reasons=[single.reasons[0] for single in singles],
            )
        return RewardOutput(
            score=torch.full((batch.num_samples,), math.nan),
            valid=torch.zeros(batch.num_samples, dtype=torch.bool),
            reasons=[reason] * batch.num_samples,
        )


def _checked(output: object, num_samples: int) -> RewardOutput:
    """The output with non-finite scores made unscored; raises ValueError on a wrong length."""
    if not isinstance(output, RewardOutput):
        raise UserError(
            "reward returned the wrong type",
            received=type(output).__name__,
            expected="RewardOutput",
        )
    if output.score.shape[0] != num_samples:
        raise UserError(
            f"reward returned {output.score.shape[0]} scores for {num_samples} clips",
            expected="one score per clip",
        )
    valid = output.valid & output.score.isfinite()
    reasons = [
        None if ok else reason or f"the score is {value}"
        for ok, reason, value in zip(
            valid.tolist(), output.reasons, output.score.tolist(), strict=True
        )
    ]
    return RewardOutput(score=output.score, valid=valid, aux=output.aux, reasons=reasons)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or "no message"


def _scatter_aux(
    aux: Mapping[str, Tensor], usable: Sequence[int], num_samples: int
) -> dict[str, Tensor]:
    out = {}
    for key, value in aux.items():
        full = torch.full((num_samples, *value.shape[1:]), math.nan)
        full[list(usable)] = value.detach().to("cpu", torch.float32)
        out[key] = full
    return out


def _concatenate_aux(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    # A failed single has no side results, so only complete columns can be joined.
    shared = set(parts[0]).intersection(*parts[1:])
    return {key: torch.cat([part[key].cpu() for part in parts]) for key in sorted(shared)}
