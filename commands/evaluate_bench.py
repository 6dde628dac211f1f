"""`eval bench`: the open replica of the report's internal benchmark."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from longtake.commands.options import group

if TYPE_CHECKING:
    from PIL import Image

    from longtake.evaluation.internal_benchmark.schema import ReferenceImage
    from longtake.evaluation.internal_benchmark.validator import Check

bench = group("Prompts and reference images of the internal benchmark.")

# Names of evaluation/internal_benchmark, repeated so that --help need not import it.
TextSet = Literal["t2v_human", "t2v_auto"]
SuiteName = Literal["t2v_compbench", "moviegen", "vbench"]
Resolution = Literal["listed", "720p", "1080p", "2K"]

Folder = Annotated[
    Path | None,
    typer.Option("--dir", metavar="DIR", help="Folder of the suite. Default: the shipped one."),
]
Rows = list[list[str | float | int | None]]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


@bench.command("validate")
def bench_validate(
    directory: Folder = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="t2v_human, t2v_auto or i2v; repeatable. Default: all."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also check the image files there by their manifest."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the prompt sets against the counts of section 5.1; exit code 1 if one is violated.

    Example: python cli.py eval bench validate --images runs/i2v_images
    """
    from longtake.evaluation.internal_benchmark.schema import INTERNAL_SUITE
    from longtake.evaluation.internal_benchmark.suite import SETS, check_suite

    checks = check_suite(directory or INTERNAL_SUITE, sets or SETS, images)
    if as_json:
        content = {name: [asdict(check) for check in found] for name, found in checks.items()}
        typer.echo(json.dumps(content, indent=2))
    else:
        _print_checks(checks)
    if not all(check.passed for found in checks.values() for check in found):
        raise typer.Exit(1)


def _print_checks(checks: dict[str, list["Check"]]) -> None:
    from rich.console import Console
    from rich.text import Text

    from longtake.runtime.progress import result_table

    console = Console()
    for name, found in checks.items():
        cells = [
            [check.rule, check.expected, check.found, "yes" if check.passed else "NO"]
            for check in found
        ]
        console.print(result_table(name, ["rule", "expected", "found", "holds"], cells))
        for check in found:
            if not check.passed:
                examples = f": {'; '.join(check.examples)}" if check.examples else ""
                console.print(Text(f"violated: {check.rule}{examples}"), soft_wrap=True)


@bench.command("list")
def bench_list(
    directory: Folder = None,
    category: Annotated[
        str | None, typer.Option(help="Print the prompts of this category instead.")
    ] = None,
) -> None:
    """List the sets with their sizes, and the categories with the number of their prompts.

    Example: python cli.py eval bench list --category inductive_reasoning
    """
    from rich.console import Console

    from longtake.evaluation.internal_benchmark.schema import (
        INTERNAL_SUITE,
        TAXONOMY_FILE,
        read_taxonomy,
    )
    from longtake.evaluation.internal_benchmark.suite import (
        of_category,
        read_image_set,
        read_text_set,
    )
    from longtake.runtime.progress import result_table

    folder = directory or INTERNAL_SUITE
    human, auto = read_text_set("t2v_human", folder), read_text_set("t2v_auto", folder)
    if category is not None:
        for prompt in of_category([*human, *auto], category):
            typer.echo(f"{prompt.id}\t{prompt.prompt}")
        return
    console = Console()
    sizes: Rows = [
        ["t2v_human", len(human)],
        ["t2v_auto", len(auto)],
        ["i2v", len(read_image_set(folder))],
    ]
    console.print(result_table("sets", ["set", "samples"], sizes))
    rows: Rows = [
        [
            entry.name,
            *(sum(entry.name in p.categories for p in prompts) for prompts in (human, auto)),
        ]
        for entry in read_taxonomy(folder / TAXONOMY_FILE)
    ]
    console.print(result_table("categories", ["category", "t2v_human", "t2v_auto"], rows))


@bench.command("import")
def bench_import(
    suite: Annotated[SuiteName, typer.Argument(help="The public suite.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Your copy of it.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSON lines to write.")],
) -> None:
    """Turn your copy of a public prompt suite into records of this benchmark.

    Example: python cli.py eval bench import t2v_compbench T2V-CompBench --out compbench.jsonl
    """
    from longtake.evaluation.internal_benchmark.importers import UNSORTED, import_suite
    from longtake.evaluation.internal_benchmark.schema import write_jsonl

    found = import_suite(suite, path)
    write_jsonl(found.prompts, out)
    typer.echo(f"{len(found.prompts)} prompts of {found.rows} rows: {out}")
    if found.unsorted:
        labels = ", ".join(f"{label} ({count})" for label, count in found.unmapped.items())
        typer.echo(f"{found.unsorted} prompts are marked {UNSORTED}; sort them by hand")
        typer.echo(f"labels without a category here: {labels or 'the file has no labels'}")


@bench.command("sample")
def bench_sample(
    count: Annotated[int, typer.Argument(min=1, help="Number of prompts.")] = 8,
    name: Annotated[TextSet, typer.Option("--set", help="The set.")] = "t2v_human",
    category: Annotated[str | None, typer.Option(help="Only this category.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Names the subset.")] = 0,
    directory: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Draw some prompts of a text-to-video set, one per line.

    Example: python cli.py eval bench sample 8 --set t2v_auto --category lighting
    """
    from longtake.evaluation.internal_benchmark.schema import INTERNAL_SUITE
    from longtake.evaluation.internal_benchmark.suite import (
        of_category,
        read_text_set,
        sample_prompts,
    )

    prompts = read_text_set(name, directory or INTERNAL_SUITE)
    if category is not None:
        prompts = of_category(prompts, category)
    for prompt in sample_prompts(prompts, count, seed):
        line = json.dumps(asdict(prompt), ensure_ascii=False) if as_json else prompt.prompt
        typer.echo(line)


@bench.command("render-images")
def bench_render_images(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where images and manifest go.")],
    resolution: Annotated[
        Resolution, typer.Option(help="All at this one, or each as listed.")
    ] = "listed",
    directory: Folder = None,
) -> None:
    """Draw the default reference images from the sandbox, with a manifest of their digests.

    Exit code 1 if a picture drawn as listed is not the listed one.

    Example: python cli.py eval bench render-images --out runs/i2v_images
    """
    from longtake.evaluation.internal_benchmark.images import write_images
    from longtake.evaluation.internal_benchmark.schema import INTERNAL_SUITE
    from longtake.evaluation.internal_benchmark.suite import read_images

    listed = read_images(directory or INTERNAL_SUITE)
    wanted = None if resolution == "listed" else resolution
    written = write_images(listed, _draw, out, wanted)
    typer.echo(f"{len(written)} images: {out}")
    if wanted is None:
        same = sum(a.sha256 == b.sha256 for a, b in zip(listed, written, strict=True))
        typer.echo(f"{same} of {len(listed)} have the listed digest")
        if same < len(listed):
            raise typer.Exit(1)


def _draw(image: "ReferenceImage") -> "Image.Image":
    """Picture of one entry whose origin names a scene; evaluation itself never sees the sandbox."""
    from PIL import Image

    from longtake.evaluation.internal_benchmark.images import scene_name
    from longtake.sandbox.scene import sample_scene
    from longtake.sandbox.stills import draw_still

    scene = sample_scene(*scene_name(image))
    pixels = draw_still(scene, *image.size(), image.style, coarse=image.quality == "standard")
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
