"""`bench`: reproducible measurements."""

from pathlib import Path
from typing import Annotated

import typer

from longtake.commands.options import group

bench = group("Measure speed, memory and errors, and record them.")


@bench.callback()
def _group() -> None:
    """Keep the name of the only command."""


@bench.command("bsa")
def bench_bsa(
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Small shapes and the reference backend; CPU, seconds.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="Default: cuda, or cpu with --tiny.")] = None,
    grids: Annotated[
        str | None, typer.Option(metavar="TxHxW,...", help="Token grids. Default: 720p clips.")
    ] = None,
    lists: Annotated[str | None, typer.Option(help="Of random, local, hub. Default: all.")] = None,
    peers: Annotated[
        str | None, typer.Option(metavar="NAME;...", help="What to measure. Default: all.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Timed calls. Default: 20.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="JSON record. Default: bench/results/bsa.json.")
    ] = None,
) -> None:
    """Block-sparse attention beside dense attention and FlexAttention; exit 1 if a check fails.

    Example: python cli.py bench bsa --grids 24x48x80 --lists random
    """
    from importlib import import_module

    from longtake.runtime.errors import UserError

    try:
        module = import_module("longtake.bench.bench_bsa")
    except ModuleNotFoundError as error:
        raise UserError(
            "the benchmarks are not installed",
            received=str(error),
            expected="a checkout of the repository",
            remedy="clone it and run python cli.py bench bsa there",
        ) from error
    given = {
        "--device": device,
        "--grids": grids,
        "--lists": lists,
        "--peers": peers,
        "--repeats": repeats,
        "--output": output,
    }
    chosen = [str(x) for pair in given.items() if pair[1] is not None for x in pair]
    raise typer.Exit(module.main([*(["--tiny"] if tiny else []), *chosen]))
