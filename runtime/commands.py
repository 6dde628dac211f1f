"""How a command ends: user errors and Ctrl-C become a message and an exit code, no traceback."""

from typing import Any

import typer
from typer.core import TyperGroup

from longtake.runtime.errors import UserError

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
