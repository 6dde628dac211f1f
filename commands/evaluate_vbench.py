"""`eval vbench`: from a plan to a submission; without a command, a small sample."""

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
from longtake.commands.evaluate_vbench_run import doctor, run
from longtake.commands.evaluate_vbench_scores import (
    aggregate_results,
    compare_models,
    submit_results,
)
from longtake.commands.options import Checkpoint, Device, DryRun, Overrides

vbench = typer.Typer(
    invoke_without_command=True,
    help="VBench 2.0 and 1.0. Without a command: a small round trip that needs no download.",
)


@vbench.callback()
def sample(
    context: typer.Context,
    output_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Where everything goes; continued if it exists.")
    ] = Path("runs/vbench_sample"),
    prompts: Annotated[int, typer.Option(min=2, help="Number of prompts.")] = 4,
    samples: Annotated[int, typer.Option(min=1, help="Videos per prompt.")] = 2,
    source: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Your copy of VBench 1.0. Default: sandbox prompts."),
    ] = None,
    checkpoint: Checkpoint = None,
    overrides: Overrides = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Base of the videos' seeds.")] = 0,
) -> None:
    """VBench 2.0 and 1.0. Alone: plan, generate and score a small sample, without any download.

    Example: python cli.py eval vbench --prompts 4 --output-dir runs/vbench_sample
    """
    if context.invoked_subcommand is not None:
        return
    from longtake.evaluation.vbench.sample import run_sample
    from longtake.evaluation.vbench.tables import sample_report

    done = run_sample(
        output_dir,
        prompts=prompts,
        samples=samples,
        source=source,
        checkpoint=checkpoint,
        overrides=tuple(overrides or ()),
        device=device,
        seed=seed,
    )
    show(*sample_report(done.plan, done.scores))
    typer.echo(output_dir)


@vbench.command("plan")
def plan_command(
    source: Annotated[
        Path, typer.Option(metavar="PATH", help="Your copy: checkout, wheel or prompt JSON.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The plan to write, JSON.")],
    suite: SuiteOption = "vbench2",
    seed: Annotated[int, typer.Option(min=0, help="Base of the videos' seeds.")] = 0,
    dimension: Dimensions = None,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Only the first prompts of each dimension.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="At most so many videos per prompt.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Augmented prompts, one a line ...")
    ] = None,
    texts_of: Annotated[
        Path | None, typer.Option(metavar="FILE", help="... and the prompts they stand for.")
    ] = None,
) -> None:
    """List the videos of a suite: exact file names, prompts and seeds.

    Example: python cli.py eval vbench plan --source VBench --out runs/plan.json
    """
    from longtake.evaluation.vbench.plan import make_plan
    from longtake.evaluation.vbench.plan_file import write_plan
    from longtake.evaluation.vbench.suite_data import read_suite
    from longtake.evaluation.vbench.suites import find_suite
    from longtake.evaluation.vbench.texts import read_texts

    data = read_suite(find_suite(suite), source)
    made = make_plan(
        data,
        seed=seed,
        dimensions=dimension or (),
        prompts_per_dimension=prompts,
        samples=samples,
        texts=read_texts(texts, texts_of),
    )
    write_plan(made, out)
    typer.echo(f"{len(made.videos):,} videos, {made.copies:,} with one copy per dimension: {out}")
    for remark in made.remarks:
        typer.echo(f"note: {remark}")


@vbench.command("generate")
def generate_command(
    plan: PlanFile,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the videos.")],
    checkpoint: Checkpoint = None,
    lora: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="LoRA to add. Repeatable.")
    ] = None,
    overrides: Overrides = None,
    rank: Annotated[int, typer.Option(envvar="RANK", help="Number of this process.")] = 0,
    world: Annotated[int, typer.Option(envvar="WORLD_SIZE", help="Number of processes.")] = 1,
    dry_run: DryRun = False,
    device: Device = "auto",
) -> None:
    """Generate the videos of a plan that are not there yet; run it again to go on.

    Example: python cli.py eval vbench generate --plan runs/plan.json --out runs/videos
    --checkpoint LongCat-Video --set height=480 --set width=832 --set num_frames=93 --set fps=15
    """
    from longtake.evaluation.vbench.plan_file import read_plan
    from longtake.evaluation.vbench.shards import find_shard

    planned = read_plan(plan)
    if dry_run:
        shard = find_shard(planned, out, rank, world)
    else:
        from longtake.evaluation.vbench.generate import generate_videos

        shard = generate_videos(
            planned,
            out,
            checkpoint=checkpoint,
            loras=lora or (),
            overrides=overrides or (),
            device=device,
            rank=rank,
            world=world,
        )
    done = len(shard.videos) - len(shard.pending)
    verb = "to make" if dry_run else "made"
    typer.echo(f"process {rank} of {world}: {len(shard.pending)} {verb}, {done} were there: {out}")


@vbench.command("check")
def check_command(
    plan: PlanFile,
    videos: Videos,
    fps: Annotated[
        float | None, typer.Option(help="Rate that all should have. Default: the usual one.")
    ] = None,
) -> None:
    """Compare a folder of videos with a plan; exit 1 when something is missing or odd.

    Example: python cli.py eval vbench check --plan runs/plan.json --videos runs/videos
    """
    from longtake.evaluation.vbench.plan_file import read_plan
    from longtake.evaluation.vbench.probe import probe, unlike_the_rest
    from longtake.evaluation.vbench.video_files import find_videos

    files = find_videos(read_plan(plan), videos)
    facts = {str(path): probe(path) for path in dict.fromkeys(files.paths.values())}
    odd = unlike_the_rest(facts, fps)
    typer.echo(
        f"{len(facts)} videos are there, {len(files.missing_names)} are missing, {len(odd)} are "
        f"odd, {len(files.extra)} are not planned"
    )
    for name in files.missing_names:
        typer.echo(f"missing: {name}")
    for name, reason in odd.items():
        typer.echo(f"odd: {name}: {reason}")
    for path in files.extra:
        typer.echo(f"not planned: {path}")
    raise typer.Exit(1 if files.missing or odd else 0)


vbench.command("doctor")(doctor)
vbench.command("run")(run)
vbench.command("aggregate")(aggregate_results)
vbench.command("compare")(compare_models)
vbench.command("submit")(submit_results)
