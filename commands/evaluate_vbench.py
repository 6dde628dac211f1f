"""`eval vbench`: from a plan to a submission; without a command, a small round trip."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from longtake.commands.options import Checkpoint, Device, Overrides

if TYPE_CHECKING:
    from longtake.evaluation.vbench.plan import Plan
    from longtake.evaluation.vbench.scores import Scores
    from longtake.evaluation.vbench.upstream import Upstream

# Names of evaluation/vbench/suites.toml, repeated so that --help need not import anything.
SuiteName = Literal["vbench2", "vbench1"]
ScoredSuiteName = Literal["vbench2", "vbench1", "vbench1_i2v"]

Suite = Annotated[SuiteName, Option(help="VBench 2.0 or 1.0.")]
ScoredSuite = Annotated[ScoredSuiteName, Option(help="VBench 2.0, 1.0, or 1.0 image-to-video.")]
PlanFile = Annotated[Path, Option("--plan", metavar="FILE", help="Made by `plan`.")]
OptionalPlan = Annotated[
    Path | None,
    Option("--plan", metavar="FILE", help="Videos to expect. Default: official numbers."),
]
Dimensions = Annotated[
    list[str] | None, Option("--dimension", metavar="NAME", help="Only this one; repeatable.")
]
Videos = Annotated[Path, Option(metavar="DIR", help="Videos, flat or in a folder per dimension.")]
VideoSeed = Annotated[int, Option(min=0, help="Base of the videos' seeds.")]
Results = Annotated[Path, Argument(metavar="RESULTS", help="Folder at any depth, zip or JSON.")]
Checkout = Annotated[Path | None, Option(metavar="DIR", help="Clone of the public repository.")]
Pythons = Annotated[
    list[str] | None,
    Option(
        "--python",
        metavar="[DIMENSION=]PATH",
        help="bin/python of an environment of your own, instead of one that uv makes; repeatable.",
    ),
]
Commit = Annotated[str, Option(metavar="SHA", help="Commit of the checkout.")]
# Of 2026-03-23; suites.toml, requirements.toml and upstream.py were studied against it.
PINNED_COMMIT = "45e79ec"

vbench = typer.Typer(
    invoke_without_command=True,
    help="VBench 2.0 and 1.0. Without a command: a small round trip that needs no download.",
)


@vbench.callback()
def round_trip(
    context: typer.Context,
    output_dir: Annotated[
        Path, Option(metavar="DIR", help="Where everything goes; continued if it exists.")
    ] = Path("runs/vbench_sample"),
    prompts: Annotated[int, Option(min=2, help="Number of prompts.")] = 4,
    samples: Annotated[int, Option(min=1, help="Videos per prompt.")] = 2,
    checkpoint: Checkpoint = None,
    overrides: Overrides = None,
    device: Device = "auto",
    seed: VideoSeed = 0,
) -> None:
    """VBench 2.0 and 1.0. Alone: plan, generate and score a small sample, without any download.

    Example: python cli.py eval vbench --prompts 4 --output-dir runs/vbench_sample
    """
    if context.invoked_subcommand is not None:
        return
    from longtake.evaluation.vbench import generate, results, run, scores, tables, upstream
    from longtake.evaluation.vbench.plan import make_plan, sandbox_data, write_plan
    from longtake.evaluation.vbench.suites import VBENCH1
    from longtake.evaluation.vbench.videos import find_videos

    native = [name for name in VBENCH1.dimensions if upstream.is_native(VBENCH1, name)]
    data = sandbox_data(VBENCH1, native)
    plan = make_plan(data, seed=seed, prompts_per_dimension=prompts, samples=samples)
    write_plan(plan, output_dir / "plan.json")
    videos = output_dir / "videos"
    settings = overrides or ()
    generate.generate_videos(plan, videos, checkpoint=checkpoint, overrides=settings, device=device)
    for name in plan.dimensions:
        run.score_natively(plan, find_videos(plan, videos), name, output_dir)
    found = scores.aggregate(results.read_results(VBENCH1, output_dir), plan)
    _show(*tables.round_trip_report(plan, found), str(output_dir))


@vbench.command("plan")
def plan_command(
    source: Annotated[Path, Option(metavar="PATH", help="Your copy: checkout, wheel or JSON.")],
    out: Annotated[Path, Option(metavar="FILE", help="The plan to write, JSON.")],
    suite: Suite = "vbench2",
    seed: VideoSeed = 0,
    dimension: Dimensions = None,
    prompts: Annotated[int | None, Option(min=1, help="Only the first of each dimension.")] = None,
    samples: Annotated[int | None, Option(min=1, help="At most so many per prompt.")] = None,
    texts: Annotated[
        Path | None, Option(metavar="FILE", help="Augmented prompts, one a line ...")
    ] = None,
    texts_of: Annotated[
        Path | None, Option(metavar="FILE", help="... and the prompts they stand for.")
    ] = None,
) -> None:
    """List the videos of a suite: exact file names, prompts and seeds.

    Example: python cli.py eval vbench plan --source VBench --out runs/plan.json
    """
    from longtake.evaluation.vbench.plan import make_plan, read_suite, read_texts, write_plan
    from longtake.evaluation.vbench.suites import find_suite

    plan = make_plan(
        read_suite(find_suite(suite), source),
        seed=seed,
        dimensions=dimension or (),
        prompts_per_dimension=prompts,
        samples=samples,
        texts=read_texts(texts, texts_of),
    )
    write_plan(plan, out)
    _show(f"{len(plan.videos):,} videos, {plan.copies:,} with one copy per dimension: {out}")
    _show(*(f"note: {remark}" for remark in plan.remarks))


@vbench.command("generate")
def generate_command(
    plan: PlanFile,
    out: Annotated[Path, Option(metavar="DIR", help="Folder of the videos.")],
    checkpoint: Checkpoint = None,
    lora: Annotated[
        list[Path] | None, Option(metavar="FILE", help="LoRA to add. Repeatable.")
    ] = None,
    overrides: Overrides = None,
    rank: Annotated[int, Option(envvar="RANK", min=0, help="Number of this process.")] = 0,
    world: Annotated[int, Option(envvar="WORLD_SIZE", min=1, help="Number of processes.")] = 1,
    device: Device = "auto",
) -> None:
    """Generate the videos of a plan that are not there yet; run it again to go on.

    Example: python cli.py eval vbench generate --plan runs/plan.json --out runs/videos
    --checkpoint LongCat-Video --set height=480 --set width=832 --set num_frames=93 --set fps=15
    """
    if rank >= world:
        raise typer.BadParameter(f"rank {rank} of {world} processes")
    from longtake.evaluation.vbench.generate import generate_videos
    from longtake.evaluation.vbench.plan import read_plan

    videos, done = generate_videos(
        read_plan(plan),
        out,
        checkpoint=checkpoint,
        loras=lora or (),
        overrides=overrides or (),
        device=device,
        rank=rank,
        world=world,
    )
    _show(f"process {rank} of {world}: {len(videos)} made, {done} were there: {out}")


@vbench.command("check")
def check_command(plan: PlanFile, videos: Videos) -> None:
    """Compare a folder of videos with a plan; exit 1 when one is missing or unreadable.

    Example: python cli.py eval vbench check --plan runs/plan.json --videos runs/videos
    """
    from longtake.evaluation.vbench.plan import read_plan
    from longtake.evaluation.vbench.videos import find_videos, probe

    files = find_videos(read_plan(plan), videos)
    problems = {path: probe(path).problem for path in dict.fromkeys(files.paths.values())}
    torn = [f"unreadable: {path}: {why}" for path, why in problems.items() if why]
    _show(
        f"{len(problems)} videos are there, {len(files.missing_names)} are missing, {len(torn)} "
        f"are unreadable, {len(files.extra)} are not planned",
        *(f"missing: {name}" for name in files.missing_names),
        *torn,
        *(f"not planned: {path}" for path in files.extra),
    )
    raise typer.Exit(1 if files.missing or torn else 0)


@vbench.command("doctor")
def doctor_command(
    suite: Suite = "vbench2",
    checkout: Checkout = None,
    python: Pythons = None,
    commit: Commit = PINNED_COMMIT,
    dimension: Dimensions = None,
) -> None:
    """Say what each dimension still needs on this machine; exit 1 when one is not ready.

    Example: python cli.py eval vbench doctor --checkout VBench
    """
    from longtake.evaluation.vbench.tables import doctor_report
    from longtake.evaluation.vbench.upstream import is_native

    upstream = _upstream(suite, python, checkout=checkout, commit=commit)
    names = [upstream.suite.dimension(name).name for name in dimension or ()]
    lacking = {name: upstream.missing(name) for name in names or upstream.suite.dimensions}
    _show(*doctor_report(upstream.suite, lacking))
    ready = all(not lacking[name] or is_native(upstream.suite, name) for name in lacking)
    raise typer.Exit(0 if ready else 1)


@vbench.command("run")
def run_command(
    plan: PlanFile,
    videos: Videos,
    output_dir: Annotated[Path, Option(metavar="DIR", help="Results; continued if it exists.")],
    checkout: Checkout = None,
    python: Pythons = None,
    commit: Commit = PINNED_COMMIT,
    device: Annotated[str, Option(help="Device of the public code.")] = "cuda",
    allow_downloads: Annotated[
        bool, Option("--allow-downloads", help="Let the public code fetch weights itself.")
    ] = False,
    dimension: Dimensions = None,
    gpu: Annotated[
        str | None, Option(metavar="ID", help="The only GPU that the public code may see.")
    ] = None,
    timeout: Annotated[float, Option(min=1e-3, help="Seconds until a call is stopped.")] = 3600.0,
    prompts_per_call: Annotated[
        int, Option(min=1, help="A crash loses a call; each call loads its weights.")
    ] = 8,
    allow_missing: Annotated[bool, Option("--allow-missing", help="Score what is there.")] = False,
    ignore_doctor: Annotated[
        bool, Option("--ignore-doctor", help="Start although something seems missing.")
    ] = False,
) -> None:
    """Score videos by the public code, each dimension in its own environment; run again to go on.

    Example: python cli.py eval vbench run --plan runs/plan.json --videos runs/videos --output-dir
    runs/scores --checkout VBench --gpu 0
    """
    from longtake.evaluation.vbench.plan import read_plan
    from longtake.evaluation.vbench.run import RunSettings, run_dimensions
    from longtake.evaluation.vbench.tables import run_report

    planned = read_plan(plan)
    upstream = _upstream(
        planned.suite.name,
        python,
        checkout=checkout,
        commit=commit,
        device=device,
        allow_downloads=allow_downloads,
    )
    settings = RunSettings(
        timeout_s=timeout,
        prompts_per_call=prompts_per_call,
        gpu=gpu,
        allow_missing=allow_missing,
        ignore_doctor=ignore_doctor,
    )
    report = run_dimensions(planned, videos, upstream, output_dir, dimension or (), settings)
    _show(*run_report(report), str(output_dir / "results"))
    raise typer.Exit(0 if report.is_complete else 1)


@vbench.command("aggregate")
def aggregate_command(
    results: Results,
    suite: ScoredSuite = "vbench2",
    plan: OptionalPlan = None,
    json_file: Annotated[
        Path | None, Option("--json", metavar="FILE", help="Write the table as JSON.")
    ] = None,
) -> None:
    """Dimensions, categories and the total with intervals; exit 1 when there is no total.

    Example: python cli.py eval vbench aggregate evaluation_results
    """
    from longtake.evaluation.vbench.results import read_results
    from longtake.evaluation.vbench.scores import aggregate
    from longtake.evaluation.vbench.suites import SCORED_SUITES
    from longtake.runtime.files import write_json

    scores = aggregate(read_results(SCORED_SUITES[suite], results), _read_plan(plan))
    _show_scores(scores)
    if json_file is not None:
        write_json(json_file, scores.as_record())
    raise typer.Exit(0 if scores.is_complete else 1)


@vbench.command("compare")
def compare_command(
    first: Annotated[
        str, Argument(metavar="A", help="Folder or zip of results, or a published model.")
    ],
    second: Annotated[str, Argument(metavar="B", help="The same.")],
    suite: ScoredSuite = "vbench2",
    plan: OptionalPlan = None,
) -> None:
    """Which model is better, and is that more than the noise of the prompts?

    Example: python cli.py eval vbench compare LongCat-Video "Vidu Q1"
    """
    from longtake.evaluation.vbench.scores import compare, read_side
    from longtake.evaluation.vbench.suites import SCORED_SUITES
    from longtake.evaluation.vbench.tables import comparison_report

    sides = [read_side(SCORED_SUITES[suite], name) for name in (first, second)]
    comparison = compare(SCORED_SUITES[suite], sides[0], sides[1], _read_plan(plan))
    _show(*comparison_report(SCORED_SUITES[suite], comparison, (first, second)))


@vbench.command("submit")
def submit_command(
    results: Results,
    out: Annotated[Path, Option(metavar="FILE", help="The zip to write.")],
    suite: ScoredSuite = "vbench2",
    plan: OptionalPlan = None,
) -> None:
    """Check results and pack them for the public leaderboard; incomplete ones are refused.

    Example: python cli.py eval vbench submit runs/scores --out submission.zip
    """
    from longtake.evaluation.vbench.scores import submit
    from longtake.evaluation.vbench.suites import SCORED_SUITES

    _show_scores(submit(SCORED_SUITES[suite], results, out, _read_plan(plan)))
    _show(str(out))


def _upstream(suite: str, pythons: list[str] | None, **options: Any) -> "Upstream":
    from longtake.evaluation.vbench.suites import find_suite
    from longtake.evaluation.vbench.upstream import Upstream, parse_pythons

    found = find_suite(suite)
    return Upstream(suite=found, pythons=parse_pythons(found, pythons or ()), **options)


def _read_plan(path: Path | None) -> "Plan | None":
    from longtake.evaluation.vbench.plan import read_plan

    return None if path is None else read_plan(path)


def _show_scores(scores: "Scores") -> None:
    from longtake.evaluation.vbench.tables import score_notes, score_table

    problems = [f"problem: {problem}" for problem in scores.problems]
    lines = (*scores.dimensions.values(), *scores.categories.values())
    _show(score_table(scores), *problems, *score_notes(lines))


def _show(*parts: object) -> None:
    """Print tables and lines to standard output."""
    from rich.console import Console

    for part in parts:  # lines go on for as long as they are, so that paths stay whole
        if isinstance(part, str):
            typer.echo(part)
        else:
            Console().print(part)
