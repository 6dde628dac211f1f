"""`rewards`: import published reward models, score videos, serve a scorer."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from longtake.commands.options import Device, DryRun, Overrides, Resume, group

rewards = group("Reward models: import, train, score, serve.")

# Names of rewards/import_public.py, repeated so that --help need not import it.
Kind = Literal["hpsv3", "videoreward"]
ColorMode = Literal["rgb", "bt601", "bt601_trunc", "mean"]

Names = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        metavar="NAME[=SOURCE]",
        help="A reward, or a column name with its source: a reward directory, an open_clip folder "
        "or http://host:port of a server. Repeatable. Default: the four learned ones of "
        "checkpoints/tiny.",
    ),
]


def _tiny() -> list[str]:
    from longtake.rewards.registry import TINY_REWARDS

    return [f"{name}={folder}" for name, folder in TINY_REWARDS.items()]


@rewards.command("train")
def train(
    output_dir: Annotated[Path, typer.Option(metavar="DIR", help="Run directory.")],
    base: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Reward directory to start from.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Preference pairs: VideoAlign's CSV or HPSv3's JSON."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML with the settings.")
    ] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    device: Device = "auto",
) -> None:
    """Train a reward on preference pairs; the result is a reward directory, ready to score.

    Example: python cli.py rewards train --base models/videoreward --data pairs.csv
    --output-dir runs/mq --set dimensions=[MQ] --set color_mode=bt601
    """
    from longtake.rewards.train_pairs import train_reward

    trained = train_reward(
        config,
        overrides or [],
        output_dir=output_dir,
        base=base,
        data=data,
        resume=resume,
        dry_run=dry_run,
        device=device,
    )
    if trained is not None:
        typer.echo(trained)


@rewards.command("score")
def score(
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One video; needs --prompt.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="PATH",
            help="A CSV (path, prompt), or a folder of videos. Their captions are in its "
            "captions.csv, in clip.txt beside clip.mp4, given by --prompt, or the files' names.",
        ),
    ] = None,
    prompt: Annotated[str, typer.Option(help="Caption of videos that have none.")] = "",
    reward: Names = None,
    fps: Annotated[
        float | None, typer.Option(help="Playback rate, frames per second. Default: the file's.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write .csv or .jsonl; continued if it exists."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, no table.")] = False,
    device: Device = "auto",
) -> None:
    """Score videos by reward models; exit 1 when a score is missing.

    Example: python cli.py rewards score --video clip.mp4 --prompt "a red circle moves left"
    """
    from longtake.rewards.score_files import TINY_NOTE, find_inputs, print_report, score_clips
    from longtake.runtime.errors import UserError

    if video is not None and source is not None:
        raise UserError("--video and --input name two things to score", expected="one of them")
    place = video or source
    if place is None:
        raise UserError(
            "nothing to score", expected="--video FILE, or --input with a folder or a CSV"
        )
    report = score_clips(
        find_inputs(place, prompt, fps), reward or _tiny(), output=output, device=device
    )
    print_report(report, as_json=as_json, note="" if reward else TINY_NOTE)
    raise typer.Exit(1 if any(report.unscored().values()) else 0)


@rewards.command("evaluate")
def evaluate(
    pairs: Annotated[
        Path, typer.Option(metavar="FILE", help="Preference pairs: VideoAlign's CSV.")
    ],
    reward: Names = None,
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Of its paths. Default: the file's folder.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Scores by clip, .csv or .jsonl; continued if it exists."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines, no table.")] = False,
    device: Device = "auto",
) -> None:
    """Compare rewards with preference pairs: accuracy without and with ties, by dimension.

    Example: python cli.py rewards evaluate --pairs runs/pairs/held_out.csv
    """
    import dataclasses
    import json

    from rich.console import Console

    from longtake.evaluation.pairs import evaluate_pairs
    from longtake.runtime.files import to_plain
    from longtake.runtime.progress import result_table

    agreements = evaluate_pairs(pairs, reward or _tiny(), root=root, output=output, device=device)
    if as_json:
        for row in agreements:
            typer.echo(json.dumps(to_plain(dataclasses.asdict(row))))
        return
    columns = ["reward", "labels", "accuracy", "95 % interval", "n", "with ties", "unscored"]
    rows: list[list[str | float | int | None]] = [
        [
            row.reward,
            row.dimension,
            row.accuracy,
            f"{row.ci_low:.3f} to {row.ci_high:.3f}",
            row.decided,
            row.accuracy_with_ties,
            row.unscored,
        ]
        for row in agreements
    ]
    Console().print(result_table(f"agreement with {pairs}", columns, rows))


@rewards.command("serve")
def serve_rewards(
    reward: Names = None,
    host: Annotated[
        str, typer.Option(help="Address to bind; others than loopback need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8763,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Token of the clients. Or set LONGTAKE_REWARD_TOKEN."),
    ] = None,
    queue_size: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 8,
    max_request_mib: Annotated[int, typer.Option(min=1, help="Largest request, MiB.")] = 512,
    device: Device = "auto",
) -> None:
    """Score clips of other processes over HTTP, until Ctrl-C; needs the extra `serve`.

    Example: python cli.py rewards serve --reward motion_quality --port 8763
    """
    from longtake.rewards.serve import ServerConfig, serve

    config = ServerConfig(
        host=host, port=port, queue_size=queue_size, max_request_bytes=max_request_mib * 2**20
    )
    serve(reward or _tiny(), config, token_file=token_file, device=device)


@rewards.command("import")
def import_published(
    kind: Annotated[Kind, typer.Argument(help="Which published model.")],
    weights: Annotated[
        Path, typer.Option(metavar="PATH", help="HPSv3: the file. VideoReward: its folder.")
    ],
    source: Annotated[
        Path, typer.Option(metavar="PATH", help="Your copy of the public code: wheel or checkout.")
    ],
    tokenizer: Annotated[Path, typer.Option(metavar="DIR", help="Tokenizer of Qwen2-VL.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Reward directory to write.")],
    step: Annotated[
        int | None, typer.Option(help="VideoReward: checkpoint-STEP. Default: the largest.")
    ] = None,
    color_mode: Annotated[
        ColorMode, typer.Option(help="What the weights were trained on.")
    ] = "rgb",
) -> None:
    """Build a self-contained reward directory from published files; nothing is executed.

    The prompt template is read from your copy of the public code and checked by its digest.

    Example: python cli.py rewards import hpsv3 --weights HPSv3.safetensors --source hpsv3.whl
    --tokenizer Qwen2-VL-7B-Instruct --out rewards/hpsv3
    """
    from longtake.rewards.import_public import import_reward

    imported = import_reward(
        kind, weights, source, tokenizer, out, step=step, color_mode=color_mode
    )
    typer.echo(imported.path)
