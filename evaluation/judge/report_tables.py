"""The report card as tables, and from the files that hold its records."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from longtake.evaluation.judge.levels import LEVELS, LevelSettings
from longtake.evaluation.judge.rated_clips import JUDGED, read_rated_clips
from longtake.evaluation.judge.report_card import ReportCard, make_report_card
from longtake.evaluation.ratings import read_ratings
from longtake.evaluation.tables import Table, findings_table, interval_text, table_of, table_of_rows

_TITLES = {
    "plcc": "PLCC",
    "srcc": "SRCC",
    "krcc": "KRCC",
    "rmse": "RMSE",
    "accuracy": "pairs",
    "accuracy_ties": "pairs, ties",
}
_LEVEL_TITLES = {"sample": "videos", "prompt": "within prompts", "model": "models"}


def report_card_from_files(
    ratings: Sequence[Path],
    samples: Path | None,
    scores: Path,
    *,
    controls: Path | None = None,
    judge: Path | None = None,
    judge_name: str = "",
    dimensions: Sequence[str] = JUDGED,
    settings: LevelSettings | None = None,
) -> ReportCard:
    """Read the records of a study and make the report card.

    Args:
        ratings: logs or sheets, or one CSV of clips without ``samples``.
        samples: the list of samples.
        scores: log of the judge.
        controls: log of the controls.
        judge: its directory, for the leakage check.
        judge_name: which judge of the log.
        dimensions: which are reported.
        settings: pairs and intervals.

    Raises:
        UserError: files that cannot be read or used.
        CheckpointError: a damaged judge.
    """
    training = None
    if judge is not None:
        from longtake.evaluation.judge.judge_directory import read_judge

        training = read_judge(judge).training
    clips = read_rated_clips(ratings, samples, dimensions)
    found, irregular = read_ratings([scores])
    others, more = read_ratings([controls]) if controls is not None else ([], ())
    return make_report_card(
        clips,
        found,
        others,
        training=training,
        judge=judge_name,
        settings=settings,
        earlier=(*irregular, *more),
    )


def report_tables(card: ReportCard) -> tuple[Table, ...]:
    """All tables: ``agreement`` is for people, ``measurements`` holds every number.

    The others are ``ceiling``, ``coverage``, ``controls``, ``leakage``, ``settings`` and
    ``findings``.
    """
    return (
        _agreement(card),
        table_of("measurements", "Every measure", card.measurements),
        table_of("ceiling", "One rater against the others", card.ceilings),
        _coverage(card),
        _controls(card),
        _leakage(card),
        _settings(card),
        findings_table(card.findings),
    )


def _agreement(card: ReportCard) -> Table:
    ceilings = {item.dimension: item for item in card.ceilings}
    rows: list[tuple[object, ...]] = []
    for item in card.coverage:
        for level in LEVELS:
            found = {
                m.measure: m
                for m in card.measurements
                if m.dimension == item.dimension and m.level == level
            }
            if not found:
                continue
            cells = [interval_text(m.value, m.ci_low, m.ci_high) for m in found.values()]
            ceiling = ceilings[item.dimension]
            human = "-"
            if level == "sample":
                human = interval_text(ceiling.value, ceiling.ci_low, ceiling.ci_high)
            rows.append((item.dimension, _LEVEL_TITLES[level], found["plcc"].n, *cells, human))
    level = f"{card.settings.confidence * 100:g} %"
    return table_of_rows(
        name="agreement",
        title=f"Agreement of {card.judge} with the raters",
        columns=("dimension", "over", "n", *_TITLES.values(), "one rater (PLCC)"),
        rows=tuple(rows),
        note=f"{level} bootstrap intervals over {card.num_prompts} prompts; the {len(card.models)} "
        "models are taken as given (measurements: models_low, models_high take them as a sample). "
        "PLCC and RMSE "
        + ("after" if card.calibrated else "WITHOUT")
        + " calibration; pairs: share ordered as by the raters, "
        f"equal within {card.settings.tie_margin:g} points "
        f"(models: {card.settings.model_tie_margin:g}).",
    )


def _coverage(card: ReportCard) -> Table:
    rows = tuple(
        (
            item.dimension,
            item.rated,
            item.scored,
            item.unscored,
            item.missing,
            "; ".join(f"{reason} ({n})" for reason, n in item.reasons.items()),
        )
        for item in card.coverage
    )
    return table_of_rows(
        name="coverage",
        title="Rated videos that the judge scored",
        columns=("dimension", "rated", "scored", "unscored", "no record", "reasons"),
        rows=rows,
        note="A video without a score is left out of every number above, never counted as 0.",
    )


def _controls(card: ReportCard) -> Table:
    rows = tuple(
        (
            c.control,
            c.dimension,
            c.n,
            c.before,
            c.after,
            interval_text(c.change, c.ci_low, c.ci_high),
            c.spread,
            interval_text(c.plcc_after, float("nan"), float("nan")).removesuffix(" [no interval]"),
            c.expected or "-",
            c.verdict or "-",
            c.unscored,
        )
        for c in card.controls
    )
    return table_of_rows(
        name="controls",
        title="Controls: inputs made wrong on purpose",
        columns=(
            "control",
            "dimension",
            "n",
            "mean",
            "mean with it",
            "change",
            "RMS change",
            "PLCC with it",
            "expected",
            "found",
            "unscored",
        ),
        rows=rows,
    )


def _leakage(card: ReportCard) -> Table:
    rows: list[tuple[object, ...]] = [("result", card.leakage.verdict)]
    if card.leakage.checked:
        shared = ", ".join(card.leakage.shared_models) or "none"
        rows.append(("models of the training among those judged", shared))
    return table_of_rows(
        name="leakage",
        title="Training of the judge against the rated videos",
        columns=("check", "found"),
        rows=tuple(rows),
    )


def _settings(card: ReportCard) -> Table:
    rows = [(name, str(value)) for name, value in dataclasses.asdict(card.settings).items()]
    rows.append(("calibrated", "yes" if card.calibrated else "no"))
    return table_of_rows(
        name="settings", title="Settings", columns=("setting", "value"), rows=tuple(rows)
    )
