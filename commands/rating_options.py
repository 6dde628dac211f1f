"""Options that the commands on ratings share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from longtake.evaluation.annotation.study_pages import PagesReport

# Names of evaluation/, repeated so that --help need not import it.
Task = Literal["t2v", "i2v"]
Scope = Literal["video", "dimension"]
Contradictions = Literal["last", "mean", "refuse"]

TaskOption = Annotated[
    Task, typer.Option(help="Dimensions of text-to-video, or those of image-to-video.")
]
Dimensions = Annotated[
    list[str] | None,
    typer.Option("--dimension", metavar="NAME", help="Your own dimensions; repeatable."),
]
Samples = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        help="List of samples (.csv or .jsonl): sample, model, prompt; optionally cluster, "
        "caption, video, image.",
    ),
]
FirstRaters = Annotated[int, typer.Option(help="Raters of every video.")]
ExtraRaters = Annotated[int, typer.Option(help="Raters added where the first ones differ.")]
Threshold = Annotated[float, typer.Option(help="Range of scores that calls for more raters.")]
ScopeOption = Annotated[Scope, typer.Option(help="What is rated again after a discrepancy.")]
Confidence = Annotated[float, typer.Option(help="Coverage of the intervals, in (0, 1).")]
Resamples = Annotated[int, typer.Option(help="Bootstrap resamples and sign patterns.")]
Seed = Annotated[int, typer.Option(help="Of the resampling.")]
Page = Annotated[
    bool, typer.Option("--page/--no-page", help="Write pages to answer on in a browser.")
]
EmbedMegabytes = Annotated[
    float,
    typer.Option(min=0, help="Videos that take less are put into the page; else it links them."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, no tables.")]
Excluded = Annotated[
    list[str] | None,
    typer.Option("--exclude-rater", metavar="NAME", help="Set a rater's ratings aside."),
]
Policy = Annotated[
    Contradictions,
    typer.Option(help="Two scores of one rater for one video: the later, their mean, or stop."),
]


def echo_pages(report: "PagesReport") -> None:
    """Name the pages for raters, and what must be sent with them."""
    for path in report.pages:
        more = "send it with the folders beside it" if path in report.linking else "videos inside"
        typer.echo(f"{path} ({more})")
