"""`eval vbench aggregate`, `compare` and `submit`: from result files to scores."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longtake.commands.evaluate_vbench_options import ScoredSuiteOption, show

if TYPE_CHECKING:
    from longtake.evaluation.vbench.aggregate import Scores
    from longtake.evaluation.vbench.plan import Plan

OptionalPlan = Annotated[
    Path | None,
    typer.Option("--plan", metavar="FILE", help="Videos to expect. Default: official numbers."),
]


def aggregate_results(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="Folder at any depth, zip or JSON file.")
    ],
    suite: ScoredSuiteOption = "vbench2",
    plan: OptionalPlan = None,
    allow_incomplete: Annotated[
        bool,
        typer.Option("--allow-incomplete", help="Totals although videos (not dimensions) miss."),
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the table as JSON.")
    ] = None,
) -> None:
    """Dimensions, categories and the total with intervals; exit 1 when there is no total.

    Example: python cli.py eval vbench aggregate evaluation_results
    """
    from longtake.evaluation.vbench.aggregate import aggregate
    from longtake.evaluation.vbench.result_files import read_results
    from longtake.evaluation.vbench.suites import SCORED_SUITES, find_suite

    found = read_results(find_suite(suite, SCORED_SUITES), results)
    scores = aggregate(found, _read_plan(plan), allow_incomplete=allow_incomplete)
    _show_scores(scores)
    for name in found.ignored:
        typer.echo(f"not used: {name}")
    if json_file is not None:
        from longtake.evaluation.vbench.tables import write_scores

        write_scores(scores, json_file)
    raise typer.Exit(0 if scores.is_complete else 1)


def compare_models(
    first: Annotated[
        str, typer.Argument(metavar="A", help="Folder or zip of results, or a published model.")
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    suite: ScoredSuiteOption = "vbench2",
    plan: OptionalPlan = None,
) -> None:
    """Which model is better, and is that more than the noise of the prompts?

    Example: python cli.py eval vbench compare LongCat-Video "Vidu Q1"
    """
    from longtake.evaluation.vbench.compare import compare, read_side
    from longtake.evaluation.vbench.suites import SCORED_SUITES, find_suite
    from longtake.evaluation.vbench.tables import comparison_report

    chosen = find_suite(suite, SCORED_SUITES)
    sides = [read_side(chosen, name) for name in (first, second)]
    comparison = compare(chosen, sides[0], sides[1], _read_plan(plan))
    show(*comparison_report(comparison, first, second))


def submit_results(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="Complete results at any depth.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The zip to write.")],
    suite: ScoredSuiteOption = "vbench2",
    plan: OptionalPlan = None,
) -> None:
    """Check results and pack them for the public leaderboard; incomplete ones are refused.

    Example: python cli.py eval vbench submit runs/scores --out submission.zip
    """
    from longtake.evaluation.vbench.submission import submit
    from longtake.evaluation.vbench.suites import SCORED_SUITES, find_suite

    _show_scores(submit(find_suite(suite, SCORED_SUITES), results, out, _read_plan(plan)))
    typer.echo(out)


def _read_plan(path: Path | None) -> "Plan | None":
    from longtake.evaluation.vbench.plan_file import read_plan

    return None if path is None else read_plan(path)


def _show_scores(scores: "Scores") -> None:
    from longtake.evaluation.vbench.tables import score_notes, score_table

    show(score_table(scores), *score_notes(scores))
