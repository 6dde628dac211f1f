"""`generate`: one video from a prompt, an image or a clip."""

from pathlib import Path
from typing import Annotated

import typer

from longtake.commands.options import Checkpoint, Device, Overrides


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

    clip = generate_to_file(
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
    if clip.unknown_words:
        words = ", ".join(clip.unknown_words)
        typer.echo(f"note: the text encoder was never trained on: {words}", err=True)
    typer.echo(
        f"{clip.path}: {clip.width}x{clip.height}, {clip.num_frames} frames, "
        f"{clip.num_frames / clip.fps:.1f} s at {clip.fps:g} fps, seed {seed}"
    )
