"""`check`: comparisons with recorded implementations."""

from pathlib import Path
from typing import Annotated

import typer

from longtake.commands.options import group

check = group("Compare this implementation with recorded ones.")


@check.command("golden")
def check_golden(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="Golden files. Default: those of the checkout."),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest absolute error. Default: by kind of output.")
    ] = None,
) -> None:
    """Run our modules on recorded weights and inputs; exit 1 when an output differs.

    Example: python cli.py check golden tests/data/dit.safetensors
    """
    from rich.console import Console

    from longtake.core.golden import CHECKS, SHIPPED, check_file
    from longtake.rewards.golden import REWARD_CHECKS
    from longtake.runtime.errors import UserError
    from longtake.runtime.progress import result_table

    if not files and not SHIPPED.is_dir():
        raise UserError(
            "no golden file is given, and this installation came without any",
            expected="python cli.py check golden FILE...",
            remedy="run it in a checkout of the repository, which has some in tests/data",
        )
    if not files:
        files = [*sorted(SHIPPED.glob("*.safetensors")), SHIPPED / "schedules.json"]
    checks = {**CHECKS, **REWARD_CHECKS}
    columns = ["output", "max abs error", "tolerance", "result"]
    failed = 0
    for file in files:
        rows: list[tuple[str, float, str, str]] = []
        for result in check_file(file, tolerance, checks):
            bound = f"{'>' if result.is_control else '<='} {result.tolerance:.3g}"
            verdict = "ok" if result.passed else "FAILED"
            rows.append((result.name, result.max_abs_error, bound, verdict))
            failed += not result.passed
        Console().print(result_table(str(file), columns, rows))
    raise typer.Exit(1 if failed else 0)
