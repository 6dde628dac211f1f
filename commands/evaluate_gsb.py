"""`eval gsb`: good-same-bad, from blind plans of pairs to tables and a figure."""

from pathlib import Path
from typing import Annotated

import typer

from longtake.commands.options import group
from longtake.commands.rating_options import (
    AsJson,
    Confidence,
    Dimensions,
    EmbedMegabytes,
    Excluded,
    Page,
    Policy,
    Resamples,
    Samples,
    Seed,
    TaskOption,
    echo_pages,
)

gsb = group("Good-same-bad: plan blind pairs, collect answers, aggregate.")


@gsb.command("plan")
def gsb_plan(
    samples: Samples,
    output_dir: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the plan.")],
    reference: Annotated[
        str | None, typer.Option(help="Model whose wins are G. Default: every two models.")
    ] = None,
    rival: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Models to compare with; repeatable.")
    ] = None,
    task: TaskOption = "t2v",
    dimension: Dimensions = None,
    rater: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A page for each; default: one that asks who rates."),
    ] = None,
    page: Page = True,
    embed_mb: EmbedMegabytes = 20.0,
    seed: Annotated[int, typer.Option(help="Of sides and order.")] = 0,
) -> None:
    """Pair the videos of every prompt: balanced sides, opaque names, pages, a sheet, a key to keep.

    Example: python cli.py eval gsb plan --samples samples.csv --reference A --output-dir plan
    """
    from longtake.evaluation.annotation.study_pages import write_gsb_pages
    from longtake.evaluation.dimensions import dimension_names
    from longtake.evaluation.gsb_plan import plan_pairs, write_plan
    from longtake.evaluation.result_files import print_findings
    from longtake.evaluation.samples import read_samples

    listed = read_samples(samples)
    pairs, findings = plan_pairs(listed, reference=reference, rivals=rival or (), seed=seed)
    names = dimension_names(task, dimension or ())
    sheet = write_plan(output_dir, pairs, listed, names)
    typer.echo(f"{len(pairs)} pairs; give raters a page, or {sheet} with the videos; keep the key")
    if page:
        written = write_gsb_pages(
            output_dir, listed, pairs, names, rater or (), round(embed_mb * 1e6)
        )
        echo_pages(written)
        findings += written.findings
    print_findings((*listed.findings, *findings))


@gsb.command("score")
def gsb_score(
    plan: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the plan.")],
    answers: Annotated[
        Path, typer.Option(metavar="FILE", help="A filled sheet, or a file saved from a page.")
    ],
    rater: Annotated[str, typer.Option(help="Who filled in rows without a rater.")] = "",
    task: TaskOption = "t2v",
    dimension: Dimensions = None,
) -> None:
    """Bring a filled sheet (left, same, right) or page into the plan's log; twice changes nothing.

    Example: python cli.py eval gsb score plan --answers sheet-ann.csv --rater ann
    """
    from longtake.evaluation.dimensions import dimension_names
    from longtake.evaluation.gsb import ANSWER_LOG, read_answer
    from longtake.evaluation.gsb_plan import plan_study, read_key
    from longtake.evaluation.rating_import import import_ratings
    from longtake.evaluation.result_files import print_findings

    study = plan_study(read_key(plan))  # answers without a key mean nothing
    names = dimension_names(task, dimension or ())
    log = plan / ANSWER_LOG
    report = import_ratings(answers, log, names, rater=rater, read_cell=read_answer, study=study)
    typer.echo(f"{report.added} answers added to {log}, {report.known} were there already")
    print_findings(report.findings)


@gsb.command("report")
def gsb_report(
    plan: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the plan.")],
    answers: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Logs or sheets. Default: the plan's log."),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write JSON, CSV and the figure.")
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the figure.")] = "GSB",
    task: TaskOption = "t2v",
    dimension: Dimensions = None,
    contradictions: Policy = "last",
    exclude_rater: Excluded = None,
    confidence: Confidence = 0.95,
    resamples: Resamples = 10_000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Aggregate answers: counts, both formulas, sign test, win share, ranking, position bias.

    Example: python cli.py eval gsb report plan --output-dir report
    """
    from longtake.evaluation.dimensions import dimension_names
    from longtake.evaluation.gsb import ANSWER_LOG
    from longtake.evaluation.gsb_figure import write_gsb_figure
    from longtake.evaluation.gsb_files import gsb_from_files
    from longtake.evaluation.gsb_plan import KEY_FILE
    from longtake.evaluation.gsb_tables import gsb_tables
    from longtake.evaluation.model_comparison import ComparisonSettings
    from longtake.evaluation.result_files import present
    from longtake.evaluation.study_files import Acceptance

    files = answers or [plan / ANSWER_LOG]
    result = gsb_from_files(
        plan,
        files,
        dimension_names(task, dimension or ()),
        ComparisonSettings(confidence=confidence, resamples=resamples, seed=seed),
        Acceptance(contradictions=contradictions, exclude_raters=tuple(exclude_rater or ())),
    )
    present(
        "gsb",
        result.as_record(),
        gsb_tables(result),
        result.findings,
        inputs=[plan / KEY_FILE, *files],
        folder=output_dir,
        draw=lambda path: write_gsb_figure(result, path, title),
        as_json=as_json,
        shown=("overview", "tests", "ranking", "position", "agreement", "options"),
    )
