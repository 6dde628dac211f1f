"""Many models on one scale: Bradley-Terry with ties, fitted to pairs of videos by evalica.

With strengths pi and the tie parameter nu (Davidson 1970; Newman 2023, whose iteration evalica
runs), model i against model j

    wins   with pi_i / (pi_i + pi_j + 2 nu sqrt(pi_i pi_j)),
    ties   with 2 nu sqrt(pi_i pi_j) / (the same).

The order of the answers does not matter, unlike in Elo ratings.
"""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import norm

from longtake.runtime.errors import UserError
from longtake.runtime.statistics import FloatArray, IntArray, resampled

_TOLERANCE = 1e-8
_LIMIT = 100_000
_MAX_FAILED = 0.01
"""Share of resamples without a finite solution above which there is no interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Strength:
    """One model."""

    model: str
    log_strength: float
    """log pi; the mean over the models is 0. A difference d means exp(d) : 1 among non-ties."""
    ci_low: float
    """From the bootstrap standard error, clustered by prompt; NaN where there is none."""
    ci_high: float
    n_pairs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PairwiseRanking:
    """All models, strongest first; without any where the model cannot be fitted."""

    strengths: tuple[Strength, ...]
    tie_parameter: float
    """nu; two equal models tie with nu / (1 + nu)."""
    n_pairs: int
    n_clusters: int
    reason: str = ""
    """Why there is no fit, or no interval."""


def load_evalica() -> ModuleType:
    """The optional module ``evalica``."""
    try:
        return importlib.import_module("evalica")
    except ImportError as error:
        what = f"rankings of pairs need the package evalica: {error}"
        raise UserError(what, remedy="pip install 'longtake[eval]'") from error


def rank_models(
    first: Sequence[str],
    second: Sequence[str],
    outcome: Sequence[float] | FloatArray,
    clusters: Sequence[str],
    *,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> PairwiseRanking:
    """Fit Bradley-Terry with ties to n pairs of two different models each.

    ``outcome`` is 1 where ``first`` is better, -1 for ``second``, 0 for the same. The bootstrap
    draws whole ``clusters``; 0 ``resamples`` (some milliseconds each) give no intervals.
    """
    flat, names = pd.factorize(np.array([*first, *second], dtype=object))
    codes = flat.reshape(2, -1).T
    outcomes = np.sign(np.asarray(outcome, dtype=np.float64)).astype(np.int64)
    cluster, cluster_names = pd.factorize(np.asarray(clusters, dtype=object))
    cells, counts = _cells(codes, outcomes, cluster, len(cluster_names))
    fit = _fit(cells, counts.sum(axis=0), len(names))
    strengths, tie_parameter = [], math.nan
    reason = "no finite strengths: some models never lose, or never meet the others"
    if fit is not None:
        log_strength, tie_parameter = fit
        # From the standard error: percentiles of 200 fits would be coarse, and each costs a fit.
        error, reason = _standard_error(cells, counts, len(names), resamples, seed)
        reach = float(norm.ppf(0.5 + confidence / 2)) * error
        involved = np.bincount(codes.ravel(), minlength=len(names))
        strengths = [
            Strength(
                model=names[m],
                log_strength=float(log_strength[m]),
                ci_low=float(log_strength[m] - reach[m]),
                ci_high=float(log_strength[m] + reach[m]),
                n_pairs=int(involved[m]),
            )
            for m in np.argsort(-log_strength, kind="stable")
        ]
    return PairwiseRanking(
        strengths=tuple(strengths),
        tie_parameter=tie_parameter,
        n_pairs=len(outcomes),
        n_clusters=len(cluster_names),
        reason=reason,
    )


def _cells(
    codes: IntArray, outcomes: IntArray, cluster: IntArray, num_clusters: int
) -> tuple[IntArray, FloatArray]:
    """Kinds of result (first, second, outcome) [R, 3], and how often each cluster has them [C, R].

    A resample only changes these counts, so a fit costs the same for any number of pairs.
    """
    triples = np.concatenate([codes, outcomes[:, None]], axis=1)
    cells, kind = np.unique(triples, axis=0, return_inverse=True)
    flat = np.bincount(cluster * len(cells) + kind, minlength=num_clusters * len(cells))
    return cells, flat.reshape(num_clusters, len(cells)).astype(np.float64)


def _fit(cells: IntArray, weights: FloatArray, num_models: int) -> tuple[FloatArray, float] | None:
    """Centred log strengths [M] and tie parameter; None where the likelihood has no maximum."""
    if not _solvable(cells[weights > 0], num_models):
        return None
    evalica = load_evalica()
    winner = {1: evalica.Winner.X, -1: evalica.Winner.Y, 0: evalica.Winner.Draw}
    data = {
        "xs": cells[:, 0].tolist(),
        "ys": cells[:, 1].tolist(),
        "winners": [winner[int(result)] for result in cells[:, 2]],
        "weights": weights.tolist(),
        "index": pd.Index(range(num_models)),
        "tolerance": _TOLERANCE,
        "limit": _LIMIT,
    }
    ties = float(weights[cells[:, 2] == 0].sum())
    if ties == 0.0:  # Newman's iteration swings for ever without a tie
        result, tie_parameter = evalica.bradley_terry(**data), 0.0
    else:
        # The iteration ends when the strengths settle, whether nu has or not; this start is right
        # for equal models, whose strengths settle at once.
        result = evalica.newman(**data, v_init=ties / (weights.sum() - ties))
        tie_parameter = float(result.v)
    log_strength = np.log(result.scores.sort_index().to_numpy(dtype=np.float64))
    if result.iterations >= _LIMIT or not np.isfinite(log_strength).all():
        return None
    return log_strength - log_strength.mean(), tie_parameter


def _solvable(cells: IntArray, num_models: int) -> bool:
    """Whether every model is better than or tied with every other one, if only through others.

    Otherwise some strength is infinite (Ford 1957; a tie counts for both sides). Also there must
    be a result that is no tie, or any strengths would need an infinite tie parameter.
    """
    result = cells[:, 2]
    if not result.any():
        return False
    better = np.where(result >= 0, cells[:, 0], cells[:, 1])
    worse = np.where(result >= 0, cells[:, 1], cells[:, 0])
    ties = cells[result == 0]
    rows, columns = np.r_[better, ties[:, 1]], np.r_[worse, ties[:, 0]]
    graph = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(num_models, num_models))
    parts, _ = connected_components(graph, directed=True, connection="strong")
    return int(parts) == 1


def _standard_error(
    cells: IntArray, counts: FloatArray, num_models: int, resamples: int, seed: int
) -> tuple[FloatArray, str]:
    """Standard deviation [M] over resampled clusters, and why there is none."""
    nothing = np.full(num_models, np.nan)
    if len(counts) < 2 or resamples < 2:
        return nothing, "no interval: fewer than two prompts or resamples"
    drawn = resampled(lambda n: n @ counts, len(counts), resamples=resamples, seed=seed)
    fits = [_fit(cells, weights, num_models) for weights in drawn]
    strengths = [fit[0] for fit in fits if fit is not None]
    failed = 1.0 - len(strengths) / len(fits)
    if failed > _MAX_FAILED:
        return nothing, f"no interval: {failed:.0%} of the resamples have no finite fit"
    return np.std(strengths, axis=0, ddof=1), ""
