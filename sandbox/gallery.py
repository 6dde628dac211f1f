"""Clips a person can look at: mp4 files, their captions and one contact sheet."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.core.video import contact_sheet, to_uint8, write_mp4, write_png
from longtake.runtime.errors import RunDirectoryError, UserError
from longtake.runtime.rng import derive_key, generator
from longtake.sandbox.captions import caption
from longtake.sandbox.corruptions import apply_damage, draw_damage
from longtake.sandbox.facts import FPS, Split
from longtake.sandbox.render import render
from longtake.sandbox.scene import sample_scenes

CLIP_SCALE = 4  # 256 x 256 px mp4 files
SHEET_SCALE = 2
SHEET_FRAMES = (0, 4, 8, 12, 16)
SHEET_COLUMNS = 3


def render_to_directory(
    out: Path,
    count: int,
    seed: int,
    split: Split | None = None,
    corrupt: bool = False,
) -> Path:
    """Write ``count`` clips to ``out``: clips/0000.mp4 ..., captions.jsonl, contact_sheet.png.

    Args:
        out: directory; created when missing, files of the same name are replaced.
        count: number of clips, at least 1.
        seed: names scenes, captions and damage.
        split: None, "train" or "held_out".
        corrupt: damage every clip by one random corruption; the label then names it.

    Returns:
        The path of the contact sheet.

    Raises:
        UserError: count below 1 or unknown split.
        RunDirectoryError: ``out`` cannot be written.
    """
    if count < 1:
        raise UserError(
            "nothing to render",
            received=count,
            expected="count of at least 1",
            remedy="pass --count 24",
        )
    scenes = sample_scenes(seed, 0, count, split)
    texts = [caption(scene, derive_key(seed, "gallery", i)) for i, scene in enumerate(scenes)]
    video = render(scenes)
    labels, damage = list(texts), [("none", 0.0)] * count
    if corrupt:
        video, damage = _damaged(video, seed)
        labels = [
            f"{name.replace('_', ' ')} {strength:.2f}: {text}"
            for text, (name, strength) in zip(texts, damage, strict=True)
        ]
    records = [
        {
            "clip": f"clips/{i:04d}.mp4",
            "caption": texts[i],
            "corruption": damage[i][0],
            "strength": round(damage[i][1], 4),
            "seed": seed,
            "index": i,
            "split": split,
        }
        for i in range(count)
    ]
    # A white column at the right of each frame keeps the frames of a strip apart.
    framed = F.pad(video, (0, 1), value=255)
    sheet = contact_sheet(
        framed, frames=SHEET_FRAMES, labels=labels, columns=SHEET_COLUMNS, scale=SHEET_SCALE
    )
    try:
        (out / "clips").mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (out / "captions.jsonl").write_text(lines, encoding="ascii")
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write to the output directory ({error.strerror})",
            received=str(out),
            expected="a writable directory with free space",
            remedy="choose another --out",
        ) from error
    for clip, record in zip(video, records, strict=True):
        write_mp4(clip, out / str(record["clip"]), fps=FPS, scale=CLIP_SCALE)
    return write_png(sheet, out / "contact_sheet.png")


def _damaged(video: Tensor, seed: int) -> tuple[Tensor, list[tuple[str, float]]]:
    """Damage uint8 clips; returns the clips and (corruption, strength) of each."""
    names, strengths = draw_damage(len(video), generator(seed, "gallery", "damage"))
    floats = video.to(torch.float32) / 255
    floats = apply_damage(floats, names, strengths, generator(seed, "gallery", "noise"))
    return to_uint8(floats), list(zip(names, strengths.tolist(), strict=True))
