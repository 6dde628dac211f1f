"""`eval report` and `eval compare`: one page about an evaluation, or about two models."""

from pathlib import Path
from typing import Annotated

import typer

from longtake.commands.options import Resamples, Seed

Output = Annotated[Path, typer.Option(metavar="FILE", help="The page, .html.")]


def report_command(
    inputs: Annotated[
        list[Path],
        typer.Option(
            metavar="PATH",
            help="Folder of a study, of blind pairs or of VBench results; or a log of ratings and "
            "its list of samples; repeatable.",
        ),
    ],
    output: Output = Path("report.html"),
    title: Annotated[str, typer.Option(help="Heading.")] = "Evaluation",
    resamples: Resamples = 10_000,
    seed: Seed = 0,
) -> None:
    """Put what an evaluation produced on one page: tables, intervals, figures.

    Example: python cli.py eval report --inputs study --inputs runs/vbench --output report.html
    """
    from longtake.evaluation.comparison import ComparisonSettings
    from longtake.evaluation.report import write_report
    from longtake.evaluation.tables import print_findings

    settings = ComparisonSettings(resamples=resamples, seed=seed)
    for section in write_report(inputs, output, settings=settings, title=title):
        print_findings(section.findings)
    typer.echo(output)


def compare_command(
    first: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="Scores of a model: a run of grpo, a score table; or a model of --inputs.",
        ),
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="What holds both models, such as ratings and their list of samples; repeatable.",
        ),
    ] = None,
    output: Output = Path("comparison.html"),
    clips: Annotated[int, typer.Option(min=0, help="Prompts whose clips are shown.")] = 4,
    seed: Seed = 0,
) -> None:
    """Which model scores higher, how sure, on what? Paired by prompt, on one page.

    Example: python cli.py eval compare runs/a runs/b --output compare.html
    """
    from rich.console import Console

    from longtake.evaluation.compare import sentence, two_logs, write_comparison
    from longtake.evaluation.comparison import ComparisonSettings
    from longtake.evaluation.dimensions import title_of
    from longtake.evaluation.tables import interval_text
    from longtake.runtime.progress import result_table

    logs, names = two_logs(first, second, inputs or ())
    settings = ComparisonSettings(seed=seed)
    rows = write_comparison(*logs, names, output, settings=settings, clip_prompts=clips)
    table = result_table(
        f"{names[0]} minus {names[1]}, paired by prompt, 95 % intervals",
        ("dimension", *names, "difference", "prompts", "p"),
        [
            (
                title_of(r.dimension),
                *r.means,
                interval_text(r.diff, r.low, r.high),
                r.n_prompts,
                r.p,
            )
            for r in rows
        ],
    )
    Console().print(table)
    typer.echo(sentence(rows, names))
    typer.echo(output)
