"""The command line: parse, then call one function. `--help` imports no torch.

`python cli.py grpo run` in a checkout, or `longtake grpo run` once installed.
"""

import sys

if not __package__:  # `python cli.py`: this checkout *is* the package `longtake`
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    root = Path(__file__).resolve().parent
    # Hidden, or `import kernels` would find our folder in place of Hugging Face's package.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != root]
    spec = spec_from_file_location(
        "longtake", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["longtake"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["longtake"])

from pathlib import Path
from typing import Annotated, Literal

import typer

from longtake import __version__
from longtake.runtime.commands import Commands


def _group(help_text: str) -> typer.Typer:
    return typer.Typer(no_args_is_help=True, help=help_text)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="longtake: evaluation and reward-driven post-training around a video generation model.",
)
grpo = _group("Reward-driven post-training (Algorithm 1 of the report).")
check = _group("Compare this implementation with recorded ones.")
sandbox = _group("The synthetic world whose truth is computable.")
app.add_typer(grpo, name="grpo")
app.add_typer(check, name="check")
app.add_typer(sandbox, name="sandbox")

# Names of grpo/presets.py and sandbox/facts.py, repeated so that --help need not import them;
# tests/test_cli.py compares.
Preset = Literal["tiny", "table9"]
Split = Literal["train", "held_out"]

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output directory.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost, then stop.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N. auto prefers a GPU.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Model directory in the public layout. Default: tiny."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def longtake(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Evaluation and reward-driven post-training around a video generation model."""


@grpo.command("run")
def grpo_run(
    preset: Annotated[Preset, typer.Option(help="Settings to start from.")] = "tiny",
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML laid over the preset.")
    ] = None,
    overrides: Overrides = None,
    output_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run directory. Default: a new one in runs/.")
    ] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Training prompts, one a line, UTF-8.")
    ] = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Align a video model to rewards and measure held-out prompts before and after.

    Example: python cli.py grpo run --output-dir runs/first --set seed=1
    """
    from longtake.grpo.run import run_grpo
    from longtake.sandbox.oracles import ORACLES  # held-out only: grpo never imports the sandbox

    run_grpo(
        preset=preset,
        config_file=config,
        overrides=overrides or [],
        output_dir=output_dir,
        resume=resume,
        dry_run=dry_run,
        prompts=prompts,
        checkpoint=checkpoint,
        device=device,
        metrics=ORACLES,
    )


@check.command("golden")
def check_golden(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Golden .safetensors.")],
    tolerance: Annotated[
        float | None, typer.Option(help="Largest absolute error. Default: by kind of output.")
    ] = None,
) -> None:
    """Run our modules on recorded weights and inputs; exit 1 when an output differs.

    Example: python cli.py check golden golden/dit.safetensors --tolerance 1e-5
    """
    from rich.console import Console

    from longtake.core.golden import check_file
    from longtake.runtime.progress import result_table

    columns = ["output", "max abs error", "tolerance", "result"]
    failed = 0
    for file in files:
        rows: list[tuple[str, float, str, str]] = []
        for result in check_file(file, tolerance):
            bound = f"{'>' if result.is_control else '<='} {result.tolerance:g}"
            verdict = "ok" if result.passed else "FAILED"
            rows.append((result.name, result.max_abs_error, bound, verdict))
            failed += not result.passed
        Console().print(result_table(str(file), columns, rows))
    raise typer.Exit(1 if failed else 0)


@sandbox.command("render")
def sandbox_render(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the clips go.")],
    count: Annotated[int, typer.Option(min=1, help="Number of clips.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Scenes are named by (seed, index).")] = 0,
    split: Annotated[Split | None, typer.Option(help="Only this part of the world.")] = None,
    corrupt: Annotated[bool, typer.Option("--corrupt", help="Damage the clips.")] = False,
) -> None:
    """Render captioned clips and a contact sheet.

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
    from rich import print_json

    from longtake.training.pretrain_tiny import pretrain

    record = pretrain(out, overrides or [], resume=resume, dry_run=dry_run, device=device)
    if dry_run:
        print_json(data=record)


@sandbox.command("oracles")
def sandbox_oracles(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A clip: mp4 or gif.")],
    prompt: Annotated[str, typer.Option(help="The caption it should show.")],
) -> None:
    """Score one clip by the three oracles, each in [0, 1].

    Example: python cli.py sandbox oracles clip.mp4 --prompt "a red circle moves left"
    """
    from longtake.sandbox.clip_file import score_file

    for name, score in score_file(video, prompt).items():
        typer.echo(f"{name:<12}{score:.4f}")


@app.command("generate")
def generate(
    prompt: Annotated[str, typer.Argument(help="What the video should show.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The mp4 to write.")],
    checkpoint: Checkpoint = None,
    lora: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="LoRA to add. Repeatable.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="First frame (image-to-video).")
    ] = None,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Clip to continue (continuation).")
    ] = None,
    overrides: Overrides = None,
    seed: Annotated[int, typer.Option(min=0, help="Noise is named by the seed.")] = 0,
    device: Device = "auto",
) -> None:
    """Generate one video from text, from text and an image, or as the continuation of a clip.

    Example: python cli.py generate "a red circle moves left" --out red.mp4
    """
    from longtake.core.generation import generate_to_file

    generate_to_file(
        prompt,
        out,
        checkpoint=checkpoint,
        loras=lora or [],
        image=image,
        video=video,
        overrides=overrides or [],
        seed=seed,
        device=device,
    )


def main() -> None:
    """Entry point of the installed command `longtake`."""
    app()


if __name__ == "__main__":
    main()
