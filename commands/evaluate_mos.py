"""`eval mos`: mean opinion scores, from sheets for raters to tables and a figure."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longtake.commands.options import group
from longtake.commands.rating_options import (
    AsJson,
    Confidence,
    Dimensions,
    EmbedMegabytes,
    Excluded,
    ExtraRaters,
    FirstRaters,
    Page,
    Policy,
    Resamples,
    Samples,
    Scope,
    ScopeOption,
    Seed,
    TaskOption,
    Threshold,
    echo_pages,
)

if TYPE_CHECKING:
    from longtake.evaluation.mos import MosSettings

mos = group("Mean opinion scores: assign videos to raters, collect, aggregate.")


def _settings(
    task: str,
    dimensions: list[str] | None,
    first_raters: int,
    extra_raters: int,
    threshold: float,
    scope: Scope,
) -> "MosSettings":
    from longtake.evaluation.dimensions import dimension_names
    from longtake.evaluation.mos import MosSettings
    from longtake.evaluation.mos_protocol import ProtocolConfig

    return MosSettings(
        dimensions=dimension_names(task, dimensions or ()),
        protocol=ProtocolConfig(
            first_raters=first_raters, extra_raters=extra_raters, threshold=threshold, scope=scope
        ),
    )


@mos.command("assign")
def mos_assign(
    samples: Samples,
    rater: Annotated[list[str], typer.Option(metavar="NAME", help="Who can rate; repeatable.")],
    output_dir: Annotated[Path, typer.Option(metavar="DIR", help="For the sheets and videos.")],
    ratings: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Ratings so far; repeatable.")
    ] = None,
    task: TaskOption = "t2v",
    dimension: Dimensions = None,
    first_raters: FirstRaters = 3,
    extra_raters: ExtraRaters = 2,
    threshold: Threshold = 2.0,
    scope: ScopeOption = "video",
    page: Page = True,
    embed_mb: EmbedMegabytes = 20.0,
    seed: Seed = 0,
) -> None:
    """Write each rater a page and a sheet with what the protocol asks now; videos get blind names.

    Example: python cli.py eval mos assign --samples samples.csv --rater ann --rater bob
    --rater cy --output-dir round1
    """
    from longtake.evaluation.annotation.study_pages import write_mos_pages
    from longtake.evaluation.mos_assign import write_assignments
    from longtake.evaluation.result_files import print_findings
    from longtake.evaluation.samples import read_samples

    settings = _settings(task, dimension, first_raters, extra_raters, threshold, scope)
    listed = read_samples(samples)
    report = write_assignments(listed, ratings or (), settings, rater, output_dir, seed=seed)
    states = ", ".join(f"{count} {state}" for state, count in report.status.states.items())
    typer.echo(f"{'videos' if scope == 'video' else 'videos and dimensions'}: {states}")
    for sheet in report.sheets:
        typer.echo(sheet)
    if not report.sheets:
        typer.echo("nothing to rate")
    findings = report.findings
    if page:
        written = write_mos_pages(
            output_dir, listed, report.assignments, report.files, round(embed_mb * 1e6)
        )
        echo_pages(written)
        findings += written.findings
    print_findings(findings)


@mos.command("score")
def mos_score(
    sheet: Annotated[
        Path, typer.Option(metavar="FILE", help="A filled sheet, or a file saved from a page.")
    ],
    ratings: Annotated[Path, typer.Option(metavar="FILE", help="The log, .jsonl; continued.")],
    rater: Annotated[str, typer.Option(help="Who filled in rows without a rater.")] = "",
    task: TaskOption = "t2v",
    dimension: Dimensions = None,
) -> None:
    """Bring a filled sheet or page into the log of ratings; twice changes nothing.

    Example: python cli.py eval mos score --sheet round1/sheet-ann.csv --ratings ratings.jsonl
    """
    from longtake.evaluation.dimensions import dimension_names
    from longtake.evaluation.rating_import import import_ratings
    from longtake.evaluation.result_files import print_findings

    names = dimension_names(task, dimension or ())
    report = import_ratings(sheet, ratings, names, rater=rater)
    typer.echo(f"{report.added} ratings added to {ratings}, {report.known} were there already")
    print_findings(report.findings)


@mos.command("report")
def mos_report(
    ratings: Annotated[
        list[Path], typer.Option(metavar="FILE", help="Log or sheet of ratings; repeatable.")
    ],
    samples: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="List of samples; without it ratings name model and prompt."
        ),
    ] = None,
    automatic: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Scores of a calibrated judge, merged in."),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write JSON, CSV and the figure.")
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the figure.")] = "MOS",
    task: TaskOption = "t2v",
    dimension: Dimensions = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help="The models that exist; repeatable."),
    ] = None,
    first_raters: FirstRaters = 3,
    extra_raters: ExtraRaters = 2,
    threshold: Threshold = 2.0,
    scope: ScopeOption = "video",
    human_weight: Annotated[float, typer.Option(help="Of the raters in the merged score.")] = 2.0,
    automatic_weight: Annotated[float, typer.Option(help="Of the judge.")] = 1.0,
    contradictions: Policy = "last",
    exclude_rater: Excluded = None,
    confidence: Confidence = 0.95,
    resamples: Resamples = 10_000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Aggregate ratings: means with intervals, which models differ, raters, agreement, progress.

    Example: python cli.py eval mos report --ratings ratings.jsonl --samples samples.csv
    --output-dir report
    """
    import dataclasses

    from longtake.evaluation.model_comparison import ComparisonSettings
    from longtake.evaluation.mos_figure import write_mos_figure
    from longtake.evaluation.mos_files import mos_from_files
    from longtake.evaluation.mos_merge import MergeWeights
    from longtake.evaluation.mos_tables import mos_tables
    from longtake.evaluation.result_files import present
    from longtake.evaluation.study_files import Acceptance

    settings = dataclasses.replace(
        _settings(task, dimension, first_raters, extra_raters, threshold, scope),
        comparison=ComparisonSettings(confidence=confidence, resamples=resamples, seed=seed),
        weights=MergeWeights(human=human_weight, automatic=automatic_weight),
    )
    result = mos_from_files(
        ratings,
        settings,
        samples=samples,
        automatic=automatic,
        acceptance=Acceptance(
            models=tuple(model or ()),
            contradictions=contradictions,
            exclude_raters=tuple(exclude_rater or ()),
        ),
    )
    present(
        "mos",
        result.as_record(),
        mos_tables(result),
        result.findings,
        inputs=[path for path in (*ratings, samples, automatic) if path is not None],
        folder=output_dir,
        draw=lambda path: write_mos_figure(result, path, title),
        as_json=as_json,
        shown=("overview", "comparisons", "merged_overview", "agreement", "protocol", "options"),
    )


@mos.command("simulate")
def mos_simulate(
    output_dir: Annotated[Path, typer.Option(metavar="DIR", help="For the study.")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME=QUALITY", help="True mean, 1-5; repeatable."),
    ] = None,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts, one video of each model.")] = 100,
    raters: Annotated[int, typer.Option(min=5, help="Raters in the pool.")] = 12,
    task: TaskOption = "t2v",
    seed: Seed = 0,
) -> None:
    """Write a study of simulated raters whose truth is known, to try the other commands on.

    Example: python cli.py eval mos simulate --output-dir study --model A=3.6 --model B=3.3
    """
    from longtake.evaluation.dimensions import dimension_names
    from longtake.evaluation.simulated_raters import (
        SimulatedStudy,
        parse_qualities,
        rater_pool,
        write_study,
    )

    truth = parse_qualities(model or ["A=3.7", "B=3.4", "C=3.4"], dimension_names(task))
    study = SimulatedStudy(quality=truth, raters=rater_pool(raters, seed), num_prompts=prompts)
    for path in write_study(study, output_dir, seed=seed):
        typer.echo(path)
