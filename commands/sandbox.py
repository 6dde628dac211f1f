"""`sandbox`: the synthetic world and the model that was trained in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from longtake.commands.options import Device, DryRun, Overrides, Resume, group

sandbox = group("The synthetic world whose truth is computable.")

# Names of sandbox/facts.py, repeated so that --help need not import it; tests/test_cli.py compares.
Split = Literal["train", "held_out"]


@sandbox.command("render")
def sandbox_render(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the clips go.")],
    count: Annotated[int, typer.Option(min=1, help="Number of clips.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Scenes are named by (seed, index).")] = 0,
    split: Annotated[Split | None, typer.Option(help="Only this part of the world.")] = None,
    corrupt: Annotated[bool, typer.Option("--corrupt", help="Damage the clips.")] = False,
) -> None:
    """Render captioned clips, their list for `eval` (samples.csv) and a contact sheet.

    Example: python cli.py sandbox render --out runs/clips --count 16 --seed 0
    """
    from longtake.sandbox.gallery import render_to_directory

    typer.echo(render_to_directory(out, count, seed, split, corrupt))


@sandbox.command("pretrain")
def sandbox_pretrain(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Checkpoint directory to write.")],
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    device: Device = "auto",
) -> None:
    """Train checkpoints/tiny from nothing: tokenizer, VAE, text encoder, DiT.

    Example: python cli.py sandbox pretrain --out runs/tiny --dry-run
    """
    from longtake.sandbox.recipes.pretrain import pretrain

    record = pretrain(out, overrides or [], resume=resume, dry_run=dry_run, device=device)
    if dry_run:
        _print_plan(record)


@sandbox.command("preferences")
def sandbox_preferences(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where pairs and clips go.")],
    prompts: Annotated[int, typer.Option(min=1, help="Prompts; each gives six pairs.")] = 100,
    split: Annotated[Split, typer.Option(help="Part of the world.")] = "train",
    seed: Annotated[int, typer.Option(min=0, help="Names scenes, damage and labels.")] = 0,
    noise: Annotated[float, typer.Option(help="Annotators' noise, oracle points.")] = 0.05,
    tie_threshold: Annotated[float, typer.Option(help="Smaller differences are ties.")] = 0.08,
    colour_bias: Annotated[
        float, typer.Option(help="Oracle points that a fully colourful clip gains.")
    ] = 0.15,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 is this one.")] = 0,
) -> None:
    """Write preference pairs judged by simulated annotators, in VideoAlign's CSV, to train rewards.

    Example: python cli.py sandbox preferences --out runs/pairs --prompts 200
    """
    from longtake.sandbox.annotators import Annotator
    from longtake.sandbox.recipes.pairs import make_preferences

    annotator = Annotator(noise=noise, tie_threshold=tie_threshold, colour_bias=colour_bias)
    path, labels = make_preferences(out, split, prompts, seed, annotator, workers=workers)
    columns = ["dimension", "pairs", "ties", "agreement with the oracle", "preference for colour"]
    rows = [
        (dimension, row.count, row.tie_share, row.agreement, row.colour_preference)
        for dimension, row in labels.items()
    ]
    _print_table(str(path), columns, rows)
    typer.echo(path)


@sandbox.command("heads")
def sandbox_heads(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Run directory.")],
    head: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="hpsv3, videoalign_mq or videoalign_ta. Default: all."),
    ] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    device: Device = "auto",
) -> None:
    """Train the tiny reward heads of checkpoints/tiny on pairs judged by simulated annotators.

    Example: python cli.py sandbox heads --out runs/heads --set workers=8 --dry-run
    """
    from longtake.sandbox.recipes.heads import summary_rows, train_heads

    record = train_heads(
        out, head or [], overrides or [], resume=resume, dry_run=dry_run, device=device
    )
    if dry_run:
        _print_plan(record)
        return
    columns = ["reward", "labels", "judge", "accuracy", "95 % interval", "pairs"]
    _print_table("held-out pairs, without ties", columns, summary_rows(record))


@sandbox.command("judge")
def sandbox_judge(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Run directory.")],
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    device: Device = "auto",
) -> None:
    """Train the tiny judge of checkpoints/tiny on simulated ratings and make its report card.

    Example: python cli.py sandbox judge --out runs/judge --set workers=8 --dry-run
    """
    from longtake.sandbox.recipes.judge import summary_rows, train_tiny_judge

    record = train_tiny_judge(out, overrides or [], resume=resume, dry_run=dry_run, device=device)
    if dry_run:
        _print_plan(record)
        return
    columns = ["dimension", "clips", "judge", "PLCC", "95 % interval", "SRCC", "n"]
    _print_table(f"{record['judge']} over videos", columns, summary_rows(record))


@sandbox.command("oracles")
def sandbox_oracles(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A clip: mp4 or gif.")],
    prompt: Annotated[str, typer.Option(help="The caption it should show.")],
) -> None:
    """Score one clip by the three oracles, each in [0, 1].

    Example: python cli.py sandbox oracles clip.mp4 --prompt "a red circle moves left"
    """
    from longtake.sandbox.gallery import score_file

    for name, score in score_file(video, prompt).items():
        typer.echo(f"{name:<12}{score:.4f}")


def _print_plan(plan: dict[str, Any]) -> None:
    from rich import print_json

    print_json(data=plan)


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.console import Console

    from longtake.runtime.progress import result_table

    Console().print(result_table(title, columns, rows))
