"""`eval`: evaluations of video models; here the groups around the ratings of people."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from longtake.commands.evaluate_judge import judge
from longtake.commands.evaluate_report import compare_command, report_command
from longtake.commands.evaluate_vbench import vbench
from longtake.commands.options import (
    AsJson,
    Device,
    Overrides,
    Seed,
    file_option,
    folder_option,
    group,
    names_option,
)

if TYPE_CHECKING:
    from PIL import Image

    from longtake.evaluation.annotation.study_pages import PagesReport
    from longtake.evaluation.benchmark import ReferenceImage
    from longtake.evaluation.mos import MosSettings
    from longtake.evaluation.ratings import Finding

evaluate = group("Evaluate video models.")
mos = group("Mean opinion scores: assign videos to raters, collect, aggregate.")
gsb = group("Good-same-bad: plan blind pairs, collect answers, aggregate.")
bench = group("Prompts and reference images of the internal benchmark.")

# Names of evaluation/, repeated so that --help need not import it.
TextSet = Literal["t2v_human", "t2v_auto"]
Resolution = Literal["listed", "720p", "1080p", "2K"]

Task = Annotated[Literal["t2v", "i2v"], typer.Option(help="Whose dimensions are rated.")]
Dimensions = Annotated[list[str] | None, names_option("--dimension", "Your own; repeatable.")]
Raters = Annotated[list[str] | None, names_option("--rater", "Who rates; repeatable.")]
Samples = Annotated[
    Path,
    file_option(
        "A folder of videos with a subfolder for each model and the same file names in each; or a "
        "list (.csv, .jsonl): sample, model, prompt; optionally cluster, caption, video, image."
    ),
]
Sheet = Annotated[Path, file_option("A filled sheet, or a file saved from a page.")]
SheetRater = Annotated[str, typer.Option(help="Who filled in rows without a rater.")]
OutputDir = Annotated[Path | None, folder_option("Write JSON, CSV and the figure.")]
Plan = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the plan.")]
Page = Annotated[bool, typer.Option("--page/--no-page", help="Pages to answer on in a browser.")]
EmbedMegabytes = Annotated[float, typer.Option(min=0, help="Videos that need more are linked.")]
BenchFolder = Annotated[Path | None, typer.Option("--dir", metavar="DIR", help="Of the suite.")]
BenchCategory = Annotated[str | None, typer.Option(help="Only the prompts of this category.")]


def _mos_settings(
    task: str, dimensions: list[str] | None, overrides: list[str] | None
) -> "MosSettings":
    from longtake.evaluation.dimensions import dimension_names
    from longtake.evaluation.mos import MosSettings
    from longtake.runtime.config import merge_config

    default = MosSettings(dimensions=dimension_names(task, dimensions or ()))
    return merge_config(default, None, overrides or ())


def _show_pages(report: "PagesReport") -> "tuple[Finding, ...]":
    for path in report.pages:
        more = "send it with the folders beside it" if path in report.linking else "videos inside"
        typer.echo(f"{path} ({more})")
    return report.findings


def _bring_in(what: str, source: Path, log: Path, dimensions: tuple[str, ...], **how: Any) -> None:
    from longtake.evaluation.ratings import import_ratings
    from longtake.evaluation.tables import print_findings

    report = import_ratings(source, log, dimensions, **how)
    typer.echo(f"{report.added} {what} added to {log}, {report.present} were there already")
    print_findings(report.findings)


@mos.command("assign")
def mos_assign(
    samples: Samples,
    output_dir: Annotated[Path, folder_option("For the sheets and videos.")],
    rater: Raters = None,
    ratings: Annotated[list[Path] | None, file_option("Ratings so far; repeatable.")] = None,
    task: Task = "t2v",
    dimension: Dimensions = None,
    page: Page = True,
    embed_mb: EmbedMegabytes = 20.0,
    seed: Seed = 0,
    overrides: Overrides = None,
) -> None:
    """Write each rater a page and a sheet with what the protocol asks now; videos get blind names.

    Example: python cli.py eval mos assign --samples videos --output-dir round1
    --set protocol.threshold=3 --set protocol.scope=dimension
    """
    from longtake.evaluation import protocol, tables
    from longtake.evaluation.annotation.study_pages import write_mos_pages
    from longtake.evaluation.ratings import read_samples

    settings = _mos_settings(task, dimension, overrides)
    rule, names = settings.protocol, settings.dimensions
    listed, earlier = read_samples(samples), ratings or ()
    raters = rater or [f"rater{number}" for number in range(1, rule.first_raters + 1)]
    report = protocol.write_assignments(listed, earlier, names, rule, raters, output_dir, seed=seed)
    states = ", ".join(f"{count} {state}" for state, count in report.status.states.items())
    typer.echo(f"{'videos' if rule.scope == 'video' else 'videos and dimensions'}: {states}")
    for line in report.sheets or ["nothing to rate"]:
        typer.echo(line)
    findings = report.findings
    if page:
        embed = round(embed_mb * 1e6)
        pages = write_mos_pages(output_dir, listed, report.assignments, report.files, embed)
        findings += _show_pages(pages)
    tables.print_findings(findings)


@mos.command("score")
def mos_score(
    sheet: Sheet,
    ratings: Annotated[Path, file_option("The log, .jsonl; continued.")],
    rater: SheetRater = "",
    task: Task = "t2v",
    dimension: Dimensions = None,
) -> None:
    """Bring a filled sheet or page into the log of ratings; twice changes nothing.

    Example: python cli.py eval mos score --sheet round1/sheet-ann.csv --ratings ratings.jsonl
    """
    from longtake.evaluation.dimensions import dimension_names

    _bring_in("ratings", sheet, ratings, dimension_names(task, dimension or ()), rater=rater)


@mos.command("report")
def mos_report(
    ratings: Annotated[list[Path], file_option("Log or sheet of ratings; repeatable.")],
    samples: Annotated[Path | None, file_option("Folder of videos or list of samples.")] = None,
    automatic: Annotated[Path | None, file_option("Scores of a calibrated judge.")] = None,
    output_dir: OutputDir = None,
    task: Task = "t2v",
    dimension: Dimensions = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Aggregate ratings: means with intervals, which models differ, raters, agreement, progress.

    Example: python cli.py eval mos report --ratings ratings.jsonl --samples videos
    --output-dir report --set comparison.confidence=0.9 --set rules.exclude_raters=[ann]
    """
    from longtake.evaluation import figures, tables
    from longtake.evaluation.mos import mos_from_files, mos_tables

    settings = _mos_settings(task, dimension, overrides)
    result = mos_from_files(ratings, settings, samples=samples, automatic=automatic)
    tables.present(
        "mos",
        result.as_record(),
        mos_tables(result),
        result.findings,
        inputs=[path for path in (*ratings, samples, automatic) if path is not None],
        folder=output_dir,
        draw=lambda path: figures.write_mos_figure(result, path),
        as_json=as_json,
        shown=("overview", "comparisons", "merged_overview", "agreement", "protocol"),
    )


@mos.command("simulate")
def mos_simulate(
    output_dir: Annotated[Path, folder_option("For the study.")],
    model: Annotated[list[str] | None, names_option("--model", "NAME=QUALITY, true mean.")] = None,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts, one video of each model.")] = 100,
    raters: Annotated[int, typer.Option(min=5, help="Raters in the pool.")] = 12,
    task: Task = "t2v",
    seed: Seed = 0,
) -> None:
    """Write a study of simulated raters whose truth is known, to try the other commands on.

    Example: python cli.py eval mos simulate --output-dir study --model A=3.6 --model B=3.3
    """
    from longtake.evaluation.dimensions import dimension_names
    from longtake.sandbox import raters as simulated

    truth = simulated.parse_qualities(model or ["A=3.7", "B=3.4", "C=3.4"], dimension_names(task))
    study = simulated.SimulatedStudy(
        quality=truth, raters=simulated.rater_pool(raters, seed), num_prompts=prompts
    )
    for path in simulated.write_study(study, output_dir, seed=seed):
        typer.echo(path)


@gsb.command("plan")
def gsb_plan_command(
    samples: Samples,
    output_dir: Annotated[Path, folder_option("Folder of the plan.")],
    reference: Annotated[str | None, typer.Option(help="Its wins are G. Default: all.")] = None,
    rival: Annotated[list[str] | None, names_option("--rival", "Its rivals; repeatable.")] = None,
    task: Task = "t2v",
    dimension: Dimensions = None,
    rater: Raters = None,
    page: Page = True,
    embed_mb: EmbedMegabytes = 20.0,
    seed: Seed = 0,
) -> None:
    """Pair the videos of every prompt: balanced sides, opaque names, pages, a sheet, a key to keep.

    Example: python cli.py eval gsb plan --samples samples.csv --reference A --output-dir plan
    """
    from longtake.evaluation import dimensions, gsb_plan, ratings, tables
    from longtake.evaluation.annotation.study_pages import write_gsb_pages

    listed = ratings.read_samples(samples)
    pairs, findings = gsb_plan.plan_pairs(
        listed, reference=reference, rivals=rival or (), seed=seed
    )
    names = dimensions.dimension_names(task, dimension or ())
    sheet = gsb_plan.write_plan(output_dir, pairs, listed, names)
    typer.echo(f"{len(pairs)} pairs; give raters a page, or {sheet} with the videos; keep the key")
    if page:
        embed = round(embed_mb * 1e6)
        pages = write_gsb_pages(output_dir, listed, pairs, names, rater or (), embed)
        findings += _show_pages(pages)
    tables.print_findings((*listed.findings, *findings))


@gsb.command("score")
def gsb_score(
    plan: Plan,
    answers: Sheet,
    rater: SheetRater = "",
    task: Task = "t2v",
    dimension: Dimensions = None,
) -> None:
    """Bring a filled sheet (left, same, right) or page into the plan's log; twice changes nothing.

    Example: python cli.py eval gsb score plan --answers sheet-ann.csv --rater ann
    """
    from longtake.evaluation.dimensions import dimension_names
    from longtake.evaluation.gsb import ANSWER_LOG, read_answer
    from longtake.evaluation.gsb_plan import plan_study, read_key

    study = plan_study(read_key(plan))  # answers without a key mean nothing
    names, how = dimension_names(task, dimension or ()), {"read_cell": read_answer, "study": study}
    _bring_in("answers", answers, plan / ANSWER_LOG, names, rater=rater, **how)


@gsb.command("report")
def gsb_report(
    plan: Plan,
    answers: Annotated[list[Path] | None, file_option("Default: the plan's log.")] = None,
    output_dir: OutputDir = None,
    task: Task = "t2v",
    dimension: Dimensions = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Aggregate answers: counts, both formulas, sign test, win share, ranking, position bias.

    Example: python cli.py eval gsb report plan --output-dir report --set confidence=0.9
    """
    from longtake.evaluation import dimensions, figures, gsb_plan, tables
    from longtake.evaluation import gsb as study
    from longtake.runtime.config import merge_config

    files = answers or [plan / study.ANSWER_LOG]
    settings = merge_config(study.GsbSettings(), None, overrides or ())
    names = dimensions.dimension_names(task, dimension or ())
    result = study.gsb_from_files(plan, files, names, settings)
    tables.present(
        "gsb",
        result.as_record(),
        study.gsb_tables(result),
        result.findings,
        inputs=[plan / gsb_plan.KEY_FILE, *files],
        folder=output_dir,
        draw=lambda path: figures.write_gsb_figure(result, path),
        as_json=as_json,
        shown=("overview", "tests", "ranking", "position", "agreement"),
    )


@bench.command("list")
def bench_list(directory: BenchFolder = None, category: BenchCategory = None) -> None:
    """List the sets with their sizes, and the categories with the number of their prompts.

    Example: python cli.py eval bench list --category inductive_reasoning
    """
    from rich.console import Console

    from longtake.evaluation import benchmark
    from longtake.runtime.progress import result_table

    folder = directory or benchmark.INTERNAL_SUITE
    sets = {name: benchmark.read_text_set(name, folder) for name in ("t2v_human", "t2v_auto")}
    if category is not None:
        prompts = [prompt for part in sets.values() for prompt in part]
        for prompt in benchmark.of_category(prompts, category):
            typer.echo(f"{prompt.id}\t{prompt.prompt}")
        return
    images = benchmark.read_records(folder / benchmark.I2V_FILE, benchmark.ImagePrompt)
    sizes = [*((name, len(part)) for name, part in sets.items()), ("i2v", len(images))]
    rows: list[list[str | int]] = [
        [entry.name, *(sum(entry.name in p.categories for p in part) for part in sets.values())]
        for entry in benchmark.read_taxonomy(folder / benchmark.TAXONOMY_FILE)
    ]
    Console().print(result_table("sets", ["set", "samples"], sizes))
    Console().print(result_table("categories", ["category", *sets], rows))


@bench.command("sample")
def bench_sample(
    count: Annotated[int, typer.Argument(min=1, help="Number of prompts.")] = 8,
    name: Annotated[TextSet, typer.Option("--set", help="The set.")] = "t2v_human",
    category: BenchCategory = None,
    seed: Seed = 0,
    directory: BenchFolder = None,
    as_json: AsJson = False,
) -> None:
    """Draw some prompts of a text-to-video set, one per line.

    Example: python cli.py eval bench sample 8 --set t2v_auto --category lighting
    """
    import json
    from dataclasses import asdict

    from longtake.evaluation import benchmark

    prompts = benchmark.read_text_set(name, directory or benchmark.INTERNAL_SUITE)
    if category is not None:
        prompts = benchmark.of_category(prompts, category)
    for prompt in benchmark.sample_prompts(prompts, count, seed):
        line = json.dumps(asdict(prompt), ensure_ascii=False) if as_json else prompt.prompt
        typer.echo(line)


@bench.command("render-images")
def bench_render_images(
    out: Annotated[Path, folder_option("Where images and manifest go.")],
    resolution: Annotated[Resolution, typer.Option(help="Of all images.")] = "listed",
    directory: BenchFolder = None,
) -> None:
    """Draw the default reference images from the sandbox, with a manifest of their digests.

    Exit code 1 if a picture drawn as listed is not the listed one.

    Example: python cli.py eval bench render-images --out runs/i2v_images
    """
    from longtake.evaluation import benchmark

    manifest = (directory or benchmark.INTERNAL_SUITE) / benchmark.IMAGES_FILE
    listed = benchmark.read_records(manifest, benchmark.ReferenceImage)
    size = None if resolution == "listed" else resolution
    written = benchmark.write_images(listed, _draw, out, size)
    typer.echo(f"{len(written)} images: {out}")
    if size is None:
        same = sum(a.sha256 == b.sha256 for a, b in zip(listed, written, strict=True))
        typer.echo(f"{same} of {len(listed)} have the listed digest")
        raise typer.Exit(1 if same < len(listed) else 0)


def _draw(image: "ReferenceImage") -> "Image.Image":
    """Picture of one entry whose origin names a scene; evaluation itself never sees the sandbox."""
    from PIL import Image

    from longtake.evaluation.benchmark import scene_name
    from longtake.sandbox.scene import sample_scene
    from longtake.sandbox.stills import draw_still

    scene = sample_scene(*scene_name(image))
    pixels = draw_still(scene, *image.size(), image.style, coarse=image.quality == "standard")
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


@evaluate.command("rescore")
def rescore_command(
    samples: Samples,
    output: Annotated[Path, file_option("Log of scores, .jsonl; continued if it exists.")],
    reward: Annotated[list[str], names_option("--reward", "NAME[=SOURCE]; repeatable.")],
    device: Device = "auto",
) -> None:
    """Score the videos of a study again with reward models; no video is generated.

    Example: python cli.py eval rescore --samples samples.csv --reward motion_quality
    --output scores.jsonl
    """
    from longtake.evaluation import ratings, score, tables
    from longtake.runtime.progress import progress_bar

    listed = ratings.read_samples(samples)
    scorer = score.RewardScorer(reward, device=device)
    with progress_bar("scoring", len(listed.samples)) as bar:
        report = score.rescore(listed, scorer, output, bar.update)
    already = f"{report.kept} were there already, {report.unscored} without a score"
    typer.echo(f"{report.scored} scores added to {output}, {already}")
    tables.print_findings((*listed.findings, *report.findings))
    raise typer.Exit(1 if report.unscored else 0)


@evaluate.command("power")
def power_command(
    kind: Annotated[Literal["mos", "gsb", "correlation"], typer.Argument(help="Of study.")],
    n: Annotated[int | None, typer.Option("-n", help="Prompts (mos) or pairs.")] = None,
    effect: Annotated[float | None, typer.Option(help="Points, win share, correlation.")] = None,
    overrides: Overrides = None,
) -> None:
    """How large a study must be (--effect), or what one of size -n can see.

    Example: python cli.py eval power mos --effect 0.1 --set sd=0.8 --set power=0.9
    """
    from longtake.evaluation.power import USUAL, power_statement
    from longtake.runtime.config import merge_config

    assumed = merge_config(USUAL, None, overrides or ())
    typer.echo(power_statement(kind, n=n, effect=effect, settings=assumed))


for name, commands in (
    ("mos", mos), ("gsb", gsb), ("judge", judge), ("vbench", vbench), ("bench", bench),
):  # fmt: skip
    evaluate.add_typer(commands, name=name)
evaluate.command("report")(report_command)
evaluate.command("compare")(compare_command)
