"""`eval vbench doctor` and `run`: the public code in environments of its own."""

from pathlib import Path
from typing import Annotated

import typer

from longtake.commands.evaluate_vbench_options import (
    Dimensions,
    PlanFile,
    SuiteOption,
    Videos,
    show,
)
from longtake.commands.options import DryRun

Checkout = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Clone of the public VBench repository.")
]
Pythons = Annotated[
    list[str] | None,
    typer.Option(
        "--python",
        metavar="[DIMENSION=]PATH",
        help="bin/python of an environment with the public code's packages; repeatable.",
    ),
]
WeightsDir = Annotated[
    Path | None,
    typer.Option("--weights", metavar="DIR", help="Weights. Default: ~/.cache/vbench2 (vbench)."),
]
Commit = Annotated[
    str | None, typer.Option(metavar="SHA", help="Commit of the checkout. Default: 45e79ec.")
]
UpstreamDevice = Annotated[str, typer.Option("--device", help="Device of the public code.")]
Downloads = Annotated[
    bool, typer.Option("--allow-downloads", help="Let the public code fetch weights itself.")
]


def doctor(
    suite: SuiteOption = "vbench2",
    checkout: Checkout = None,
    python: Pythons = None,
    weights: WeightsDir = None,
    commit: Commit = None,
    device: UpstreamDevice = "cuda",
    allow_downloads: Downloads = False,
    dimension: Dimensions = None,
) -> None:
    """Say what each dimension still needs on this machine; exit 1 when one is not ready.

    Example: python cli.py eval vbench doctor --checkout VBench --python envs/llava/bin/python
    """
    from longtake.evaluation.vbench.doctor import examine
    from longtake.evaluation.vbench.tables import doctor_report
    from longtake.evaluation.vbench.upstream import find_upstream

    upstream = find_upstream(
        suite, checkout, python or (), weights, commit, device, allow_downloads=allow_downloads
    )
    names = [upstream.suite.dimension(name).name for name in dimension or ()]
    found = examine(upstream, names or list(upstream.suite.dimensions))
    show(*doctor_report(upstream.suite, found))
    raise typer.Exit(1 if any(line.missing and not line.is_native for line in found) else 0)


def run(
    plan: PlanFile,
    videos: Videos,
    output_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Results; continued if it exists.")
    ],
    checkout: Checkout = None,
    python: Pythons = None,
    weights: WeightsDir = None,
    commit: Commit = None,
    device: UpstreamDevice = "cuda",
    allow_downloads: Downloads = False,
    dimension: Dimensions = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="GPU to use, one dimension at a time; repeatable."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds without a finished video before an attempt is stopped.")
    ] = 3600.0,
    attempts: Annotated[int, typer.Option(min=1, help="Tries before a video is unscored.")] = 2,
    model: Annotated[
        str, typer.Option(help="Name that the public code sees. Default: made of the folder's.")
    ] = "",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Score what is there.")
    ] = False,
    ignore_doctor: Annotated[
        bool, typer.Option("--ignore-doctor", help="Start although something seems missing.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Score videos by the public code, each dimension in its own environment; run again to go on.

    Example: python cli.py eval vbench run --plan runs/plan.json --videos runs/videos --output-dir
    runs/scores --checkout VBench --python envs/llava/bin/python --gpu 0 --gpu 1
    """
    from longtake.evaluation.vbench.plan_file import read_plan
    from longtake.evaluation.vbench.run import RunSettings, run_dimensions, run_steps
    from longtake.evaluation.vbench.tables import run_plan_table, run_report
    from longtake.evaluation.vbench.upstream import find_upstream

    planned = read_plan(plan)
    upstream = find_upstream(
        planned.suite.name,
        checkout,
        python or (),
        weights,
        commit,
        device,
        allow_downloads=allow_downloads,
    )
    settings = RunSettings(
        timeout_s=timeout,
        attempts=attempts,
        gpus=tuple(gpu or ()),
        allow_missing=allow_missing,
        ignore_doctor=ignore_doctor,
        model=model,
    )
    if dry_run:
        steps = run_steps(planned, videos, upstream, output_dir, dimension or ())
        show(run_plan_table(planned.suite, steps))
        return
    report = run_dimensions(planned, videos, upstream, output_dir, dimension or (), settings)
    show(*run_report(report))
    typer.echo(output_dir / "results")
    raise typer.Exit(0 if report.is_complete else 1)
