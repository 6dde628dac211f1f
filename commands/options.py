"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output directory.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost, then stop.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N. auto prefers a GPU.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Model directory in the public layout. Default: tiny."),
]


def group(help_text: str) -> typer.Typer:
    """A group of commands; without a command it prints its help."""
    return typer.Typer(no_args_is_help=True, help=help_text)
