"""Options that the commands of `eval vbench` share, and how they print."""

from pathlib import Path
from typing import Annotated, Literal

import typer

# Names of evaluation/vbench/suites.py, repeated so that --help need not import it.
SuiteName = Literal["vbench2", "vbench1"]
ScoredSuiteName = Literal["vbench2", "vbench1", "vbench1_i2v"]

SuiteOption = Annotated[SuiteName, typer.Option("--suite", help="VBench 2.0 or 1.0.")]
ScoredSuiteOption = Annotated[
    ScoredSuiteName, typer.Option("--suite", help="VBench 2.0, 1.0, or 1.0 image-to-video.")
]
PlanFile = Annotated[Path, typer.Option("--plan", metavar="FILE", help="Made by `plan`.")]
Dimensions = Annotated[
    list[str] | None,
    typer.Option("--dimension", metavar="NAME", help="Only this one; repeatable."),
]
Videos = Annotated[
    Path, typer.Option(metavar="DIR", help="Videos, flat or in a folder per dimension.")
]


def show(*parts: object) -> None:
    """Print tables and lines to standard output."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, Text))  # paths stay whole
