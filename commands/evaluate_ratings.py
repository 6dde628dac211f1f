"""`eval mos`, `eval gsb`, `eval rescore`, `eval power`, `eval validate`: evaluation by ratings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from longtake.commands.options import Device, group

if TYPE_CHECKING:
    from longtake.evaluation.mos import MosSettings

mos = group("Mean opinion scores: assign videos to raters, collect, aggregate.")
gsb = group("Good-same-bad: plan blind pairs, collect answers, aggregate.")

# Names of evaluation/, repeated so that --help need not import it.
Task = Literal["t2v", "i2v"]
Scope = Literal["video", "dimension"]
Contradictions = Literal["last", "mean", "refuse"]

TaskOption = Annotated[
    Task, typer.Option(help="Dimensions of text-to-video, or those of image-to-video.")
]
Dimensions = Annotated[
    list[str] | None,
    typer.Option("--dimension", metavar="NAME", help="Your own dimensions; repeatable."),
]
Samples = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        help="List of samples (.csv or .jsonl): sample, model, prompt; optionally cluster, "
        "caption, video, image.",
    ),
]
FirstRaters = Annotated[int, typer.Option(help="Raters of every video.")]
ExtraRaters = Annotated[int, typer.Option(help="Raters added where the first ones differ.")]
Threshold = Annotated[float, typer.Option(help="Range of scores that calls for more raters.")]
ScopeOption = Annotated[Scope, typer.Option(help="What is rated again after a discrepancy.")]
Confidence = Annotated[float, typer.Option(help="Coverage of the intervals, in (0, 1).")]
Resamples = Annotated[int, typer.Option(help="Bootstrap resamples and sign patterns.")]
Seed = Annotated[int, typer.Option(help="Of the resampling.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, no tables.")]
Excluded = Annotated[
    list[str] | None,
    typer.Option("--exclude-rater", metavar="NAME", help="Set a rater's ratings aside."),
]
Policy = Annotated[
    Contradictions,
    typer.Option(help="Two scores of one rater for one video: the later, their mean, or stop."),
]


def _settings(
    task: str,
    dimensions: list[str] | None,
    first_raters: int,
    extra_raters: int,
    threshold: float,
    scope: Scope,
) -> "MosSettings":
    from longtake.evaluation.dimensions import dimension_names
    from longtake.evaluation.mos import MosSettings
    from longtake.evaluation.mos_protocol import ProtocolConfig

    return MosSettings(
        dimensions=dimension_names(task, dimensions or ()),
        protocol=ProtocolConfig(
            first_raters=first_raters, extra_raters=extra_raters, threshold=threshold, scope=scope
        ),
    )


@mos.command("assign")
def mos_assign(
    samples: Samples,
    rater: Annotated[list[str], typer.Option(metavar="NAME", help="Who can rate; repeatable.")],
    output_dir: Annotated[Path, typer.Option(metavar="DIR", help="For the sheets and videos.")],
    ratings: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Ratings so far; repeatable.")
    ] = None,
    task: TaskOption = "t2v",
    dimension: Dimensions = None,
    first_raters: FirstRaters = 3,
    extra_raters: ExtraRaters = 2,
    threshold: Threshold = 2.0,
    scope: ScopeOption = "video",
    seed: Seed = 0,
) -> None:
    """Write each rater a sheet with what the protocol asks now; videos get blind names.

    Example: python cli.py eval mos assign --samples samples.csv --rater ann --rater bob
    --rater cy --output-dir round1
    """
    from longtake.evaluation.mos_assign import write_assignments
    from longtake.evaluation.result_files import print_findings
    from longtake.evaluation.samples import read_samples

    settings = _settings(task, dimension, first_raters, extra_raters, threshold, scope)
    report = write_assignments(
        read_samples(samples), ratings or (), settings, rater, output_dir, seed=seed
    )
    states = ", ".join(f"{count} {state}" for state, count in report.status.states.items())
    typer.echo(f"videos: {states}")
    for sheet in report.sheets:
        typer.echo(sheet)
    if not report.sheets:
        typer.echo("nothing to rate")
    print_findings(report.findings)


@mos.command("score")
def mos_score(
    sheet: Annotated[Path, typer.Option(metavar="FILE", help="What a rater filled in.")],
    ratings: Annotated[Path, typer.Option(metavar="FILE", help="The log, .jsonl; continued.")],
    rater: Annotated[str, typer.Option(help="Who filled in rows without a rater.")] = "",
    task: TaskOption = "t2v",
    dimension: Dimensions = None,
) -> None:
    """Bring a filled sheet into the log of ratings; twice changes nothing.

    Example: python cli.py eval mos score --sheet round1/sheet-ann.csv --ratings ratings.jsonl
    """
    from longtake.evaluation.dimensions import dimension_names
    from longtake.evaluation.rating_import import import_ratings
    from longtake.evaluation.result_files import print_findings

    names = dimension_names(task, dimension or ())
    report = import_ratings(sheet, ratings, names, rater=rater)
    typer.echo(f"{report.added} ratings added to {ratings}, {report.known} were there already")
    print_findings(report.findings)


@mos.command("report")
def mos_report(
    ratings: Annotated[
        list[Path], typer.Option(metavar="FILE", help="Log or sheet of ratings; repeatable.")
    ],
    samples: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="List of samples; without it ratings name model and prompt."
        ),
    ] = None,
    automatic: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Scores of a calibrated judge, merged in."),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write JSON, CSV and the figure.")
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the figure.")] = "MOS",
    task: TaskOption = "t2v",
    dimension: Dimensions = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help="The models that exist; repeatable."),
    ] = None,
    first_raters: FirstRaters = 3,
    extra_raters: ExtraRaters = 2,
    threshold: Threshold = 2.0,
    scope: ScopeOption = "video",
    human_weight: Annotated[float, typer.Option(help="Of the raters in the merged score.")] = 2.0,
    automatic_weight: Annotated[float, typer.Option(help="Of the judge.")] = 1.0,
    contradictions: Policy = "last",
    exclude_rater: Excluded = None,
    confidence: Confidence = 0.95,
    resamples: Resamples = 10_000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Aggregate ratings: means with intervals, which models differ, raters, agreement, progress.

    Example: python cli.py eval mos report --ratings ratings.jsonl --samples samples.csv
    --output-dir report
    """
    import dataclasses

    from longtake.evaluation.model_comparison import ComparisonSettings
    from longtake.evaluation.mos_figure import write_mos_figure
    from longtake.evaluation.mos_files import mos_from_files
    from longtake.evaluation.mos_merge import MergeWeights
    from longtake.evaluation.mos_tables import mos_tables
    from longtake.evaluation.result_files import present
    from longtake.evaluation.study_files import Acceptance

    settings = dataclasses.replace(
        _settings(task, dimension, first_raters, extra_raters, threshold, scope),
        comparison=ComparisonSettings(confidence=confidence, resamples=resamples, seed=seed),
        weights=MergeWeights(human=human_weight, automatic=automatic_weight),
    )
    result = mos_from_files(
        ratings,
        settings,
        samples=samples,
        automatic=automatic,
        acceptance=Acceptance(
            models=tuple(model or ()),
            contradictions=contradictions,
            exclude_raters=tuple(exclude_rater or ()),
        ),
    )
    present(
        "mos",
        result.as_record(),
        mos_tables(result),
        result.findings,
        inputs=[path for path in (*ratings, samples, automatic) if path is not None],
        folder=output_dir,
        draw=lambda path: write_mos_figure(result, path, title),
        as_json=as_json,
        shown=("overview", "differences", "merged", "agreement", "protocol", "options"),
    )


@mos.command("simulate")
def mos_simulate(
    output_dir: Annotated[Path, typer.Option(metavar="DIR", help="For the study.")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME=QUALITY", help="True mean, 1-5; repeatable."),
    ] = None,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts, one video of each model.")] = 100,
    raters: Annotated[int, typer.Option(min=5, help="Raters in the pool.")] = 12,
    task: TaskOption = "t2v",
    seed: Seed = 0,
) -> None:
    """Write a study of simulated raters whose truth is known, to try the other commands on.

    Example: python cli.py eval mos simulate --output-dir study --model A=3.6 --model B=3.3
    """
    from longtake.evaluation.dimensions import dimension_names
    from longtake.evaluation.simulated_raters import (
        SimulatedStudy,
        parse_qualities,
        rater_pool,
        write_study,
    )

    truth = parse_qualities(model or ["A=3.7", "B=3.4", "C=3.4"], dimension_names(task))
    study = SimulatedStudy(quality=truth, raters=rater_pool(raters, seed), num_prompts=prompts)
    for path in write_study(study, output_dir, seed=seed):
        typer.echo(path)


@gsb.command("plan")
def gsb_plan(
    samples: Samples,
    output_dir: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the plan.")],
    reference: Annotated[
        str | None, typer.Option(help="Model whose wins are G. Default: every two models.")
    ] = None,
    rival: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Models to compare with; repeatable.")
    ] = None,
    task: TaskOption = "t2v",
    dimension: Dimensions = None,
    seed: Annotated[int, typer.Option(help="Of sides and order.")] = 0,
) -> None:
    """Pair the videos of every prompt: balanced sides, opaque names, a sheet, and a key to keep.

    Example: python cli.py eval gsb plan --samples samples.csv --reference A --output-dir plan
    """
    from longtake.evaluation.dimensions import dimension_names
    from longtake.evaluation.gsb_plan import plan_pairs, write_plan
    from longtake.evaluation.result_files import print_findings
    from longtake.evaluation.samples import read_samples

    listed = read_samples(samples)
    pairs, findings = plan_pairs(listed, reference=reference, rivals=rival or (), seed=seed)
    sheet = write_plan(output_dir, pairs, listed, dimension_names(task, dimension or ()))
    typer.echo(f"{len(pairs)} pairs; give raters {sheet} and the videos beside it, keep the key")
    print_findings((*listed.findings, *findings))


@gsb.command("score")
def gsb_score(
    plan: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the plan.")],
    answers: Annotated[Path, typer.Option(metavar="FILE", help="The sheet a rater filled in.")],
    rater: Annotated[str, typer.Option(help="Who filled in rows without a rater.")] = "",
    task: TaskOption = "t2v",
    dimension: Dimensions = None,
) -> None:
    """Bring a filled sheet (left, same, right) into the plan's log; twice changes nothing.

    Example: python cli.py eval gsb score plan --answers sheet-ann.csv --rater ann
    """
    from longtake.evaluation.dimensions import dimension_names
    from longtake.evaluation.gsb import ANSWER_LOG, read_answer
    from longtake.evaluation.gsb_plan import read_key
    from longtake.evaluation.rating_import import import_ratings
    from longtake.evaluation.result_files import print_findings

    read_key(plan)  # answers without a key mean nothing
    names = dimension_names(task, dimension or ())
    log = plan / ANSWER_LOG
    report = import_ratings(answers, log, names, rater=rater, read_cell=read_answer)
    typer.echo(f"{report.added} answers added to {log}, {report.known} were there already")
    print_findings(report.findings)


@gsb.command("report")
def gsb_report(
    plan: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the plan.")],
    answers: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Logs or sheets. Default: the plan's log."),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write JSON, CSV and the figure.")
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the figure.")] = "GSB",
    task: TaskOption = "t2v",
    dimension: Dimensions = None,
    contradictions: Policy = "last",
    exclude_rater: Excluded = None,
    confidence: Confidence = 0.95,
    resamples: Resamples = 10_000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Aggregate answers: counts, both formulas, sign test, win share, ranking, position bias.

    Example: python cli.py eval gsb report plan --output-dir report
    """
    from longtake.evaluation.dimensions import dimension_names
    from longtake.evaluation.gsb import ANSWER_LOG
    from longtake.evaluation.gsb_figure import write_gsb_figure
    from longtake.evaluation.gsb_files import gsb_from_files
    from longtake.evaluation.gsb_plan import KEY_FILE
    from longtake.evaluation.gsb_tables import gsb_tables
    from longtake.evaluation.model_comparison import ComparisonSettings
    from longtake.evaluation.result_files import present
    from longtake.evaluation.study_files import Acceptance

    files = answers or [plan / ANSWER_LOG]
    result = gsb_from_files(
        plan,
        files,
        dimension_names(task, dimension or ()),
        ComparisonSettings(confidence=confidence, resamples=resamples, seed=seed),
        Acceptance(contradictions=contradictions, exclude_raters=tuple(exclude_rater or ())),
    )
    present(
        "gsb",
        result.as_record(),
        gsb_tables(result),
        result.findings,
        inputs=[plan / KEY_FILE, *files],
        folder=output_dir,
        draw=lambda path: write_gsb_figure(result, path, title),
        as_json=as_json,
        shown=("overview", "ranking", "position", "agreement", "options"),
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


def validate_command(
    studies: Annotated[int, typer.Option(min=20, help="Simulated studies of each kind.")] = 200,
    prompts: Annotated[int, typer.Option(min=10, help="Prompts of a study.")] = 60,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Check the whole chain on simulated raters: false positives, power, recovery of the ranking.

    Example: python cli.py eval validate --studies 200
    """
    import dataclasses

    from longtake.evaluation.result_files import print_json, print_result
    from longtake.evaluation.validation import validate, validation_table
    from longtake.runtime.progress import progress_bar

    with progress_bar("studies", studies) as bar:
        result = validate(studies, num_prompts=prompts, seed=seed, on_progress=bar.update)
    if as_json:
        print_json(dataclasses.asdict(result))
    else:
        print_result([validation_table(result)], (), shown=("validation",))
    raise typer.Exit(0 if result.passed else 1)
