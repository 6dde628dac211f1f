"""What commands share: options, groups, and how a command ends (a message and an exit code)."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from longtake.runtime.errors import UserError

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output directory.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost, then stop.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N. auto prefers a GPU.")]
Confidence = Annotated[float, typer.Option(help="Coverage of the intervals, in (0, 1).")]
Resamples = Annotated[int, typer.Option(help="Bootstrap resamples and sign patterns, >= 100.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, no tables.")]


def file_option(text: str) -> Any:
    """An option that takes a file."""
    return typer.Option(metavar="FILE", help=text)


def folder_option(text: str) -> Any:
    """An option that takes a folder."""
    return typer.Option(metavar="DIR", help=text)


def names_option(flag: str, text: str) -> Any:
    """A repeatable option that takes a name; its flag is singular."""
    return typer.Option(flag, metavar="NAME", help=text)


Checkpoint = Annotated[
    Path | None, folder_option("Model directory in the public layout. Default: tiny.")
]


def group(help_text: str) -> typer.Typer:
    """A group of commands; without a command it prints its help."""
    return typer.Typer(no_args_is_help=True, help=help_text)


USER_ERROR = 2
INTERRUPTED = 130


class Commands(TyperGroup):
    """The top group of the command line. Other exceptions are bugs and keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command; exit code 2 for a user error, 130 for Ctrl-C."""
        from rich.console import Console
        from rich.text import Text

        try:
            return super().invoke(ctx)
        except UserError as error:
            # As plain text: paths and values may hold what rich would take for markup.
            Console(stderr=True, soft_wrap=True).print(Text(f"error: {error}", style="bold red"))
            raise typer.Exit(USER_ERROR) from error
        except KeyboardInterrupt as error:
            Console(stderr=True).print("interrupted; what was finished is on disk", style="yellow")
            raise typer.Exit(INTERRUPTED) from error
