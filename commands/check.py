"""`check`: comparisons with recorded implementations."""

from pathlib import Path
from typing import Annotated

import typer

from longtake.commands.options import group

check = group("Compare this implementation with recorded ones.")


@check.command("golden")
def check_golden(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Golden .safetensors.")],
    tolerance: Annotated[
        float | None, typer.Option(help="Largest absolute error. Default: by kind of output.")
    ] = None,
) -> None:
    """Run our modules on recorded weights and inputs; exit 1 when an output differs.

    Example: python cli.py check golden golden/dit.safetensors --tolerance 1e-5
    """
    from rich.console import Console

    from longtake.core.golden import CHECKS, check_file
    from longtake.rewards.golden import REWARD_CHECKS
    from longtake.runtime.progress import result_table

    checks = {**CHECKS, **REWARD_CHECKS}
    columns = ["output", "max abs error", "tolerance", "result"]
    failed = 0
    for file in files:
        rows: list[tuple[str, float, str, str]] = []
        for result in check_file(file, tolerance, checks):
            bound = f"{'>' if result.is_control else '<='} {result.tolerance:g}"
            verdict = "ok" if result.passed else "FAILED"
            rows.append((result.name, result.max_abs_error, bound, verdict))
            failed += not result.passed
        Console().print(result_table(str(file), columns, rows))
    raise typer.Exit(1 if failed else 0)
