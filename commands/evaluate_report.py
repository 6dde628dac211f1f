"""`eval report` and `eval compare`: one page about an evaluation, or about two models."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longtake.commands.rating_options import Confidence, Resamples, Seed

if TYPE_CHECKING:
    from longtake.evaluation.report.build import ReportSettings
    from longtake.evaluation.report.content import Report

Output = Annotated[
    Path,
    typer.Option(
        metavar="FILE", help="The page, .html; Markdown, JSON and pictures are written beside it."
    ),
]
VideoPrompts = Annotated[
    int, typer.Option(min=0, help="Prompts of each study whose videos are shown.")
]
VideoMegabytes = Annotated[
    float, typer.Option(min=0, help="A larger video is linked, not put into the page.")
]
PageMegabytes = Annotated[
    float, typer.Option(min=0, help="All videos in the page together; the rest is linked.")
]


def report_command(
    inputs: Annotated[
        list[Path],
        typer.Option(
            metavar="PATH",
            help="Ratings, scores, plan of pairs, VBench results, or a folder of them; repeatable.",
        ),
    ],
    output: Output = Path("report.html"),
    title: Annotated[str, typer.Option(help="Heading.")] = "Evaluation",
    video_prompts: VideoPrompts = 6,
    video_megabytes: VideoMegabytes = 2.0,
    page_megabytes: PageMegabytes = 20.0,
    confidence: Confidence = 0.95,
    resamples: Resamples = 10_000,
    seed: Seed = 0,
) -> None:
    """Put everything an evaluation produced on one page: tables, intervals, figures, videos.

    Example: python cli.py eval report --inputs study --inputs runs/vbench --output report.html
    """
    from longtake.evaluation.report.build import build_report
    from longtake.evaluation.report.files import check_page

    settings = _settings(
        video_prompts, video_megabytes, page_megabytes, confidence, resamples, seed
    )
    _finish(build_report(inputs, check_page(output), settings, title), output)


def compare_command(
    first: Annotated[
        str,
        typer.Argument(
            metavar="A", help="File or folder of one model, or the name of a model of --inputs."
        ),
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH", help="What holds both models, such as a study or pairs; repeatable."
        ),
    ] = None,
    output: Output = Path("comparison.html"),
    video_prompts: VideoPrompts = 6,
    video_megabytes: VideoMegabytes = 2.0,
    page_megabytes: PageMegabytes = 20.0,
    confidence: Confidence = 0.95,
    resamples: Resamples = 10_000,
    seed: Seed = 0,
) -> None:
    """Which model is better, how sure, on what? One page.

    Example: python cli.py eval compare LongCat Wan --inputs study --inputs gsb_plan
    """
    from longtake.evaluation.report.compare import build_comparison
    from longtake.evaluation.report.files import check_page

    settings = _settings(
        video_prompts, video_megabytes, page_megabytes, confidence, resamples, seed
    )
    report = build_comparison(first, second, check_page(output), settings, inputs or ())
    assert report.verdict is not None  # a comparison has one
    typer.echo(report.verdict.sentence)
    for note in report.verdict.notes:
        typer.echo(f"- {note}")
    _finish(report, output)


def _settings(
    video_prompts: int,
    video_megabytes: float,
    page_megabytes: float,
    confidence: float,
    resamples: int,
    seed: int,
) -> "ReportSettings":
    from longtake.evaluation.model_comparison import ComparisonSettings
    from longtake.evaluation.report.build import ReportSettings
    from longtake.evaluation.report.videos import VideoSettings

    return ReportSettings(
        comparison=ComparisonSettings(confidence=confidence, resamples=resamples, seed=seed),
        videos=VideoSettings(
            prompts=video_prompts,
            max_bytes=round(video_megabytes * 1e6),
            budget=round(page_megabytes * 1e6),
            seed=seed,
        ),
    )


def _finish(report: "Report", output: Path) -> None:
    """Write the files, name them, and print what is irregular."""
    from longtake.evaluation.report.files import write_report
    from longtake.evaluation.result_files import print_findings

    for path in write_report(report, output):
        typer.echo(path)
    print_findings(report.findings)
