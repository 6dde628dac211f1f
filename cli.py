"""The command line: parse, then call one function. `--help` imports no torch.

`python cli.py grpo run` in a checkout, or `longtake grpo run` once installed.
"""

import sys

if not __package__:  # `python cli.py`: this checkout *is* the package `longtake`
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    root = Path(__file__).resolve().parent
    # Hidden, or `import kernels` would find our folder in place of Hugging Face's package.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != root]
    spec = spec_from_file_location(
        "longtake", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["longtake"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["longtake"])

from typing import Annotated

import typer

from longtake import __version__
from longtake.commands.check import check
from longtake.commands.evaluate import evaluate
from longtake.commands.generate import generate
from longtake.commands.grpo import grpo
from longtake.commands.options import Commands
from longtake.commands.rewards import rewards
from longtake.commands.sandbox import sandbox

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="longtake: evaluation and reward-driven post-training around a video generation model.",
)
app.add_typer(grpo, name="grpo")
app.add_typer(rewards, name="rewards")
app.add_typer(evaluate, name="eval")
app.add_typer(check, name="check")
app.add_typer(sandbox, name="sandbox")
app.command("generate")(generate)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def longtake(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Evaluation and reward-driven post-training around a video generation model."""


def main() -> None:
    """Entry point of the installed command `longtake`."""
    app()


if __name__ == "__main__":
    main()
