"""Clips in files: rendered ones for people to look at, and what the oracles say about a file."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from longtake.core.video import read_video, to_uint8, write_mp4
from longtake.evaluation.ratings import Sample, write_samples
from longtake.runtime.errors import UserError
from longtake.runtime.files import explained, replacing, write_jsonl
from longtake.runtime.rng import derive_key, generator
from longtake.sandbox.captions import caption
from longtake.sandbox.corruptions import apply_damage, draw_damage
from longtake.sandbox.facts import FPS, FRAME_PX, Split
from longtake.sandbox.oracles import oracle_scores
from longtake.sandbox.render import render
from longtake.sandbox.scene import sample_scenes

CLIP_SCALE = 4  # 256 x 256 px mp4 files
SHEET_FRAMES = (0, 4, 8, 12, 16)
SHEET_COLUMNS = 3
SHEET_CLIPS = 60  # what is left to look at in one picture
STRIP_INCHES = (5.0, 1.45)  # five frames side by side, and their text
LABEL_CHARACTERS = 76


def render_to_directory(
    out: Path,
    count: int,
    seed: int,
    split: Split | None = None,
    corrupt: bool = False,
) -> Path:
    """Write clips/0000.mp4 ..., captions.jsonl, samples.csv (for ``eval``) and contact_sheet.png.

    ``corrupt`` damages every clip by one random corruption, which its label then names. Files of
    the same name are replaced. Returns the path of the contact sheet.
    """
    scenes = sample_scenes(seed, 0, count, split)
    texts = [caption(scene, derive_key(seed, "gallery", i)) for i, scene in enumerate(scenes)]
    video, labels = render(scenes), list(texts)
    names, strengths = ["none"] * count, [0.0] * count
    if corrupt:
        names, drawn = draw_damage(count, generator(seed, "gallery", "damage"))
        rng = generator(seed, "gallery", "noise")
        video, strengths = to_uint8(apply_damage(video / 255, names, drawn, rng)), drawn.tolist()
        labels = [
            f"{name.replace('_', ' ')} {strength:.2f}: {text}"
            for name, strength, text in zip(names, strengths, texts, strict=True)
        ]
    records = [
        {
            "clip": f"clips/{i:04d}.mp4",
            "caption": texts[i],
            "corruption": names[i],
            "strength": round(strengths[i], 4),
            "seed": seed,
            "index": i,
            "split": split,
        }
        for i in range(count)
    ]
    samples = [
        Sample(
            sample=f"{i:04d}",
            model="render" if names[i] == "none" else names[i],
            prompt=f"scene-{i}",
            caption=texts[i],
            video=f"clips/{i:04d}.mp4",
        )
        for i in range(count)
    ]
    write_jsonl(out / "captions.jsonl", records)
    write_samples(out / "samples.csv", samples)
    for i, clip in enumerate(video):
        write_mp4(clip, out / f"clips/{i:04d}.mp4", fps=FPS, scale=CLIP_SCALE)
    return contact_sheet(video[:SHEET_CLIPS], labels, out / "contact_sheet.png")


def contact_sheet(video: Tensor, labels: Sequence[str], path: Path) -> Path:
    """Draw uint8 clips [N, T, 3, H, W] as strips of five frames, each below its label."""
    rows = -(-len(video) // SHEET_COLUMNS)
    width, height = STRIP_INCHES
    figure = Figure(figsize=(SHEET_COLUMNS * width, rows * height), layout="constrained", dpi=100)
    # A white column at the right of each frame keeps the frames of a strip apart.
    strips = F.pad(video[:, list(SHEET_FRAMES)], (0, 1), value=255).permute(0, 3, 1, 4, 2)
    for axes in figure.subplots(rows, SHEET_COLUMNS, squeeze=False).flat:
        axes.set_axis_off()
    for axes, strip, label in zip(figure.axes, strips, labels, strict=False):
        axes.imshow(strip.flatten(1, 2).numpy(), interpolation="nearest")
        axes.set_title(textwrap.fill(label, LABEL_CHARACTERS), loc="left", fontsize=8)
    with explained("write the contact sheet", path), replacing(path) as temporary:
        figure.savefig(temporary)
    return path


def score_file(path: Path, caption: str) -> dict[str, float]:
    """Score a clip file by every oracle, each in [0, 1]; NaN where a clip cannot be judged.

    Files that were enlarged by a whole factor for human eyes are averaged back first, because the
    oracles measure speeds and sizes in pixels of the sandbox.
    """
    video, _ = read_video(path)  # [T, 3, H, W], uint8
    height, width = video.shape[-2:]
    if height != width or height % FRAME_PX:
        raise UserError(
            "not a sandbox clip",
            received=f"{height}x{width} pixels in {path}",
            expected=f"{FRAME_PX}x{FRAME_PX} pixels, or a whole multiple",
        )
    pixels = F.avg_pool2d(video.float() / 255, height // FRAME_PX)
    return {name: score.item() for name, score in oracle_scores(pixels[None], [caption]).items()}
