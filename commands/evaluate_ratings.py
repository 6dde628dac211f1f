"""`eval rescore`, `eval power`: around the ratings of a study."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from longtake.commands.options import Device
from longtake.commands.rating_options import (
    Confidence,
    Samples,
)


def rescore_command(
    samples: Samples,
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="Log of scores, .jsonl; continued if it exists.")
    ],
    reward: Annotated[
        list[str],
        typer.Option(metavar="NAME[=SOURCE]", help="A reward, as in `rewards score`; repeatable."),
    ],
    device: Device = "auto",
) -> None:
    """Score the videos of a study again with reward models; no video is generated.

    Example: python cli.py eval rescore --samples samples.csv --reward motion_quality
    --output scores.jsonl
    """
    from longtake.evaluation.rescore import RewardScorer, rescore
    from longtake.evaluation.result_files import print_findings
    from longtake.evaluation.samples import read_samples
    from longtake.runtime.progress import progress_bar

    listed = read_samples(samples)
    scorer = RewardScorer(reward, device=device)
    with progress_bar("scoring", len(listed.samples)) as bar:
        report = rescore(listed, scorer, output, bar.update)
    typer.echo(
        f"{report.scored} scores added to {output}, {report.kept} were there already, "
        f"{report.unscored} without a score"
    )
    print_findings((*listed.findings, *report.findings))
    raise typer.Exit(1 if report.unscored else 0)


def power_command(
    kind: Annotated[
        Literal["mos", "gsb", "correlation"], typer.Argument(help="Which kind of study.")
    ],
    n: Annotated[
        int | None, typer.Option("-n", help="Prompts (mos), pairs (gsb), pairs (correlation).")
    ] = None,
    effect: Annotated[
        float | None,
        typer.Option(help="Difference in points (mos), win share (gsb), correlation."),
    ] = None,
    sd: Annotated[float, typer.Option(help="SD of paired differences, points (mos).")] = 0.8,
    tie_rate: Annotated[float, typer.Option(help="Share of `same` (gsb), in [0, 1).")] = 0.0,
    power: Annotated[float, typer.Option(help="Chance to find the effect.")] = 0.8,
    confidence: Confidence = 0.95,
) -> None:
    """How large a study must be (--effect), or what one of size -n can see.

    Example: python cli.py eval power mos --effect 0.1 --sd 0.8
    """
    from longtake.evaluation.power import power_statement

    typer.echo(
        power_statement(
            kind, n=n, effect=effect, sd=sd, tie_rate=tie_rate, power=power, confidence=confidence
        )
    )
