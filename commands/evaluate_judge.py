"""`eval judge`: train, calibrate, score with and report on the automatic judge."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from longtake.commands.options import (
    AsJson,
    Device,
    DryRun,
    Overrides,
    Resume,
    file_option,
    folder_option,
    group,
    names_option,
)

judge = group("The automatic judge: train on ratings, calibrate, score videos, report card.")

JudgeDir = Annotated[Path, typer.Argument(metavar="DIR", help="Judge directory.")]
Ratings = Annotated[list[Path], file_option("Log or sheet of ratings; repeatable.")]
Samples = Annotated[Path, file_option("List: sample, model, prompt, caption, video.")]


@judge.command("train")
def judge_train(
    output_dir: Annotated[Path, folder_option("Run directory.")],
    kind: Annotated[
        Literal["regression", "generative"],
        typer.Option(help="A head on the rewards' backbone, or a Qwen-VL that answers in text."),
    ] = "regression",
    base: Annotated[Path | None, folder_option("Reward directory; generative: checkpoint.")] = None,
    ratings: Annotated[list[Path] | None, file_option("Ratings to learn; repeatable.")] = None,
    samples: Annotated[Path | None, file_option("List of their samples.")] = None,
    held_out_model: Annotated[list[str] | None, names_option("--held-out-model", "Tested.")] = None,
    config: Annotated[Path | None, file_option("YAML of settings.")] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    device: Device = "auto",
) -> None:
    """Learn the mean ratings and calibrate; prompts and models are held out for the report card.

    Example: python cli.py eval judge train --base models/videoalign --ratings ratings.jsonl
    --samples samples.csv --held-out-model B --output-dir runs/judge
    """
    from longtake.evaluation.judge.config import GenerativeTrainingConfig, JudgeTrainingConfig
    from longtake.runtime.config import merge_config

    default = GenerativeTrainingConfig() if kind == "generative" else JudgeTrainingConfig()
    settings = merge_config(default, config, overrides or [])
    data = {
        "ratings": tuple(map(str, ratings or ())),
        "samples": samples and str(samples),
        "held_out_models": tuple(held_out_model or ()),
    }
    settings = settings.replace(
        data=settings.data.replace(**{name: value for name, value in data.items() if value}),
        base=str(base) if base else settings.base,
    )
    from longtake.evaluation.judge.train import train_judge  # with torch: settings are right by now

    if trained := train_judge(
        settings, output_dir=output_dir, resume=resume, dry_run=dry_run, device=device
    ):
        typer.echo(trained)


@judge.command("calibrate")
def judge_calibrate(
    directory: JudgeDir,
    ratings: Ratings,
    samples: Samples,
    output_dir: Annotated[Path, folder_option("For the raw scores; resumed.")],
    overrides: Overrides = None,
    device: Device = "auto",
) -> None:
    """Map the judge to the raters' scale on rated videos that the report card does not use.

    Example: python cli.py eval judge calibrate runs/judge/judge --ratings ratings.jsonl
    --samples runs/judge/calibration.csv --output-dir runs/raw --set min_points=100
    """
    from rich.console import Console

    from longtake.evaluation.judge.calibration import Calibration, CalibrationSettings, fit_curves
    from longtake.evaluation.judge.data import read_rated_clips
    from longtake.evaluation.judge.directory import read_judge, set_calibration
    from longtake.evaluation.judge.score import raw_scores
    from longtake.evaluation.tables import print_findings
    from longtake.runtime.config import merge_config
    from longtake.runtime.device import pick_device
    from longtake.runtime.progress import result_table

    own = read_judge(directory)
    settings = merge_config(CalibrationSettings(), None, overrides or ())
    clips = read_rated_clips(ratings, samples, own.dimensions)
    scores = raw_scores(own, clips, output_dir, pick_device(device))
    curves = fit_curves(clips, scores, settings)
    set_calibration(own, Calibration(judge=own.digest, curves=curves))
    columns = ["dimension", "curve", "n", "prompts", "isotonic", "logistic"]  # errors: RMSE, points
    rows = [
        [name, c.method, c.n, c.n_prompts, *(c.errors[kind] for kind in columns[-2:])]
        for name, c in curves.items()
    ]
    Console().print(result_table(f"Calibration of {own.name}", columns, rows))
    print_findings(clips.findings)


@judge.command("score")
def judge_score(
    directory: JudgeDir,
    samples: Samples,
    output_dir: Annotated[Path, folder_option("For the logs; resumed.")],
    control: Annotated[list[str] | None, typer.Option(help="Which, or all; repeatable.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Without calibration.")] = False,
    device: Device = "auto",
) -> None:
    """Score videos into scores.jsonl, and with inputs made wrong on purpose into controls.jsonl.

    Example: python cli.py eval judge score runs/judge/judge --samples runs/judge/test.csv
    --control all --output-dir runs/scores
    """
    from longtake.evaluation.judge.card import CONTROLS
    from longtake.evaluation.judge.directory import read_judge
    from longtake.evaluation.judge.score import score_samples
    from longtake.evaluation.ratings import read_samples
    from longtake.evaluation.tables import print_findings
    from longtake.runtime.device import pick_device
    from longtake.runtime.progress import progress_bar

    listed = read_samples(samples)
    names = list(CONTROLS) if control and "all" in control else list(control or ())
    total, order = len(listed.samples), ["scores", *names]
    with progress_bar("scores", total * len(order)) as bar:
        reports = score_samples(
            listed,
            read_judge(directory),
            output_dir,
            device=pick_device(device),
            calibrated=not raw,
            controls=names,
            on_progress=lambda name, done: bar.update(total * order.index(name) + done),
        )
    for name, done in reports.items():
        counts = f"{done.scored} scores, {done.unscored} without a score"
        typer.echo(f"{name}: {counts}, {done.kept} were there already")
    print_findings(listed.findings)


@judge.command("report")
def judge_report(
    ratings: Ratings,
    samples: Samples,
    scores: Annotated[Path, file_option("scores.jsonl of the judge.")],
    controls: Annotated[Path | None, file_option("controls.jsonl of the judge.")] = None,
    directory: Annotated[Path | None, typer.Option("--judge", help="Checks leakage.")] = None,
    judge_name: Annotated[str, typer.Option(help="Which judge of the log.")] = "",
    output_dir: Annotated[Path | None, folder_option("Write JSON and CSV tables.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Report card: agreement at three levels, human ceiling, controls, failures, leakage.

    Example: python cli.py eval judge report --ratings ratings.jsonl
    --samples runs/judge/test.csv --scores runs/scores/scores.jsonl
    --controls runs/scores/controls.jsonl --judge runs/judge/judge --output-dir runs/card
    """
    from longtake.evaluation.judge.card import report_card_from_files, report_tables
    from longtake.evaluation.judge.levels import LevelSettings
    from longtake.evaluation.tables import present
    from longtake.runtime.config import merge_config

    card = report_card_from_files(
        ratings,
        samples,
        scores,
        controls=controls,
        judge=directory,
        judge_name=judge_name,
        settings=merge_config(LevelSettings(), None, overrides or ()),
    )
    present(
        "judge_report",
        card.as_record(),
        report_tables(card),
        card.findings,
        inputs=[*ratings, samples, scores, *([controls] if controls else [])],
        folder=output_dir,
        as_json=as_json,
        shown=("agreement", "coverage", "controls"),
    )
