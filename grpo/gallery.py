"""Pictures of clips with their prompts and scores: groups of one update, and before against after.

Rows of a group grid are prompts and columns are the members of the group, so one look shows what
the rewards prefer. Small clips are enlarged by whole factors, large ones shrunk to fit.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.core.video import to_uint8, upscale, write_mp4, write_png
from longtake.grpo.lettering import Page, wrap
from longtake.runtime.errors import UserError

Scores = Mapping[str, float | None]

_SMALL_PX = 192  # a smaller clip is enlarged up to this width
_LARGE_PX = 320  # a larger clip is shrunk to this width
_GROUP_BYTES = 256 * 2**20  # frames of one group grid held in memory
_MAX_GROUPS = 8
_MARGIN, _GAP = 12, 8
_INK, _FAINT, _RISE, _FALL = (28, 30, 33), (110, 115, 122), (20, 112, 62), (190, 40, 40)
_FRAMES = 6  # shown of each clip in the still picture
_MAX_PAIRS = 8


def write_groups(
    folder: Path,
    update: int,
    prompts: Sequence[str],
    videos: Tensor,
    scores: Tensor,
    names: Sequence[str],
    fps: float,
) -> Path:
    """Write the groups of one update as ``folder/update-0010.mp4``.

    At most 8 groups are shown, fewer of large clips; the heading says how many of how many. The
    best score of each reward within a group is dark, the others are grey.

    Args:
        folder: where to write; created when missing.
        update: names the file.
        prompts: P texts.
        videos: [P, G, T, 3, H, W], uint8 or float in [0, 1].
        scores: [K, P, G], NaN = unscored.
        names: K reward names.
        fps: frames per second of the clips.

    Raises:
        UserError: shapes that do not fit each other, or a folder that cannot be written.
    """
    grid = _groups(prompts, videos, scores, names, f"update {update}")
    return write_mp4(grid, folder / f"update-{update:04d}.mp4", fps)


def groups_png(
    prompts: Sequence[str], videos: Tensor, scores: Tensor, names: Sequence[str], title: str = ""
) -> Tensor:
    """The grid of :func:`write_groups` as a still picture of the middle frames.

    Returns:
        uint8 [height, width, 3], for ``core.video.write_png``.

    Raises:
        UserError: shapes that do not fit each other.
    """
    middle = videos[:, :, videos.shape[2] // 2][:, :, None] if videos.ndim == 6 else videos
    return _groups(prompts, middle, scores, names, title)[0].permute(1, 2, 0).contiguous()


def before_after_png(
    before: Tensor,
    after: Tensor,
    prompts: Sequence[str],
    scores_before: Sequence[Scores],
    scores_after: Sequence[Scores],
    path: Path,
) -> Path:
    """Write a still picture: for each prompt 6 frames before above 6 frames after, in two columns.

    Args:
        before: [N, T, 3, H, W], uint8 or float in [0, 1]; the first 8 clips are shown.
        after: the same samples of the trained model, of the same shape.
        prompts: N texts.
        scores_before: N mappings name -> score; None or NaN = unscored.
        scores_after: likewise.
        path: of the png.

    Raises:
        UserError: shapes that do not fit each other, or a path that cannot be written.
    """
    _check_pairs(before, after, prompts, scores_before, scores_after)
    count = min(len(before), _MAX_PAIRS)
    pick = torch.linspace(0, before.shape[1] - 1, min(_FRAMES, before.shape[1])).round().long()
    strips = [
        [_fit(to_uint8(side[i, pick].nan_to_num(0)), 128, 128) for side in (before, after)]
        for i in range(count)
    ]
    gap, gutter, big, small = 4, 84, 23, 19
    height, step = strips[0][0].shape[-2], strips[0][0].shape[-1] + gap
    width = gutter + len(pick) * step - gap
    columns, per_row = min(2, count), 4 if width > 800 else 2
    lines = [wrap(prompt, big, width, max_lines=3) for prompt in prompts[:count]]
    score_px = _score_height(scores_before[0], per_row, small)
    margin, space = 36, (64, 44)
    tops, bottom = _stack(
        [len(wrapped) * (big + 8) + 6 for wrapped in lines],
        2 * height + gap + 12 + score_px,
        columns,
        space[1],
    )
    page = Page(columns * (width + space[0]) - space[0] + 2 * margin, bottom + 2 * margin)
    for i, (first, second) in enumerate(strips):
        x, y = margin + i % columns * (width + space[0]), margin + tops[i]
        for n, line in enumerate(reversed(lines[i])):  # prompts stand on their strips
            page.text(x, y - 6 - (n + 1) * (big + 8), line, big, _INK, bold=True)
        for label, strip in (("before", first), ("after", second)):
            page.text(x, y + (height - small) // 2, label, small, _FAINT)
            for n, frame in enumerate(strip):
                page.image(x + gutter + n * step, y, frame)
            y += height + gap
        changes = (scores_before[i], scores_after[i])
        _score_change(page, x + gutter, y + 12 - gap, width - gutter, small, per_row, *changes)
    return write_png(page.pixels().permute(1, 2, 0).contiguous(), path)


def before_after_mp4(
    before: Tensor,
    after: Tensor,
    prompts: Sequence[str],
    scores_before: Sequence[Scores],
    scores_after: Sequence[Scores],
    path: Path,
    fps: float,
) -> Path:
    """Write a video of the pairs, each with before on the left and after on the right.

    Args and errors are those of :func:`before_after_png`; ``fps`` in frames per second.
    """
    _check_pairs(before, after, prompts, scores_before, scores_after)
    count = min(len(before), _MAX_PAIRS)
    pairs = [
        [_fit(to_uint8(side[i].nan_to_num(0)), _SMALL_PX, _LARGE_PX) for side in (before, after)]
        for i in range(count)
    ]
    height, clip_width = pairs[0][0].shape[-2:]
    width, big, small, space = 2 * clip_width + _GAP, 14, 12, 32
    columns, per_row = min(2, count), 4 if width > 480 else 2
    lines = [wrap(prompt, big, width, max_lines=3) for prompt in prompts[:count]]
    score_px = _score_height(scores_before[0], per_row, small)
    label_px = small + 8
    tops, bottom = _stack(
        [len(wrapped) * (big + 5) + label_px for wrapped in lines],
        height + 6 + score_px,
        columns,
        space,
    )
    page = Page(columns * (width + space) - space + 2 * _MARGIN, bottom + 2 * _MARGIN)
    places = []
    for i in range(count):
        x, y = _MARGIN + i % columns * (width + space), _MARGIN + tops[i]
        places.append((x, y))
        for n, line in enumerate(reversed(lines[i])):
            page.text(x, y - label_px - (n + 1) * (big + 5), line, big, _INK, bold=True)
        page.text(x, y - label_px, "before", small, _FAINT)
        page.text(x + clip_width + _GAP, y - label_px, "after", small, _FAINT)
        changes = (scores_before[i], scores_after[i])
        _score_change(page, x, y + height + 6, width, small, per_row, *changes)
    sheet = page.pixels()[None].repeat(before.shape[1], 1, 1, 1)
    for (x, y), (first, second) in zip(places, pairs, strict=True):
        sheet[:, :, y : y + height, x : x + clip_width] = first
        sheet[:, :, y : y + height, x + clip_width + _GAP : x + width] = second
    return write_mp4(sheet, path, fps)


def _groups(
    prompts: Sequence[str], videos: Tensor, scores: Tensor, names: Sequence[str], title: str
) -> Tensor:
    """uint8 [T, 3, height, width] with even sides."""
    _check_groups(prompts, videos, scores, names)
    num_groups, size, num_frames = videos.shape[:3]
    first = _fit(to_uint8(videos[0, 0].nan_to_num(0)), _SMALL_PX, _LARGE_PX)
    height, width = first.shape[-2:]
    row_width = size * (width + _GAP) - _GAP
    big, small = 14, 12
    score_px = len(names) * (small + 4) + 4
    memory = num_frames * 3 * (row_width + 2 * _MARGIN) * (height + score_px + 60)
    shown = max(1, min(num_groups, _MAX_GROUPS, _GROUP_BYTES // memory))
    lines = [wrap(prompt, big, row_width, max_lines=3) for prompt in prompts[:shown]]
    if shown < num_groups:
        title += f"{', ' if title else ''}{shown} of {num_groups} prompts"
    top = _MARGIN + (24 if title else 0)
    tops = []
    y = top
    for wrapped in lines:
        tops.append(y)
        y += len(wrapped) * (big + 5) + 4 + height + 4 + score_px + 16
    page = Page(row_width + 2 * _MARGIN, y - 16 + _MARGIN)
    page.text(_MARGIN, 8, title, small, _FAINT)
    places = []
    for p, wrapped in enumerate(lines):
        y = tops[p]
        for line in wrapped:
            page.text(_MARGIN, y, line, big, _INK, bold=True)
            y += big + 5
        places.append(y + 4)
        for g in range(size):
            x = _MARGIN + g * (width + _GAP)
            _member_scores(page, x, y + 4 + height + 4, width, small, scores[:, p], g, names)
    sheet = page.pixels()[None].repeat(num_frames, 1, 1, 1)
    for p, y in enumerate(places):
        for g in range(size):
            x = _MARGIN + g * (width + _GAP)
            clip = _fit(to_uint8(videos[p, g].nan_to_num(0)), _SMALL_PX, _LARGE_PX)
            sheet[:, :, y : y + height, x : x + width] = clip
    return sheet


def _member_scores(
    page: Page,
    x: int,
    y: int,
    width: int,
    size: int,
    scores_KG: Tensor,
    member: int,
    names: Sequence[str],
) -> None:
    """One line per reward: name on the left, score on the right."""
    for k, name in enumerate(names):
        value = float(scores_KG[k, member])
        finite = scores_KG[k][scores_KG[k].isfinite()]
        best = len(finite) > 0 and value == float(finite.max())
        text = f"{value:.3f}" if value == value else "unscored"
        ink = _INK if best else _FALL if value != value else _FAINT
        page.text(x, y + k * (size + 4), name.replace("_", " "), size, _FAINT)
        page.text(x + width, y + k * (size + 4), text, size, ink, bold=best, right=True)


def _stack(
    text_px: Sequence[int], block_px: int, columns: int, space: int
) -> tuple[list[int], int]:
    """Tops of the clips of each pair when rows are as high as their longest text; total height."""
    tops: list[int] = []
    y = 0
    for start in range(0, len(text_px), columns):
        row = text_px[start : start + columns]
        tops += [y + max(row)] * len(row)
        y += max(row) + block_px + space
    return tops, y - space


def _score_height(scores: Scores, per_row: int, size: int) -> int:
    rows = -(-len(scores) // per_row)
    return rows * (2 * size + 14) - 4


def _score_change(
    page: Page,
    x: int,
    y: int,
    width: int,
    size: int,
    per_row: int,
    before: Scores,
    after: Scores,
) -> None:
    """Cells of a name over "0.42 → 0.71  +0.29"."""
    for n, name in enumerate(before):
        left = x + n % per_row * (width // per_row)
        top = y + n // per_row * (2 * size + 14)
        page.text(left, top, name.replace("_", " "), size, _FAINT)
        first, second = before[name], after.get(name)
        if first is None or second is None or first != first or second != second:
            page.text(left, top + size + 5, "unscored", size, _FAINT)
            continue
        end = page.text(left, top + size + 5, f"{first:.2f} → {second:.2f} ", size, _INK)
        change = round(second, 2) - round(first, 2)
        ink = _RISE if change > 0.005 else _FALL if change < -0.005 else _FAINT
        page.text(end, top + size + 5, f"{change:+.2f}", size, ink, bold=True)


def _fit(frames: Tensor, small: int, large: int) -> Tensor:
    """uint8 [..., 3, H, W] enlarged to at most ``small`` px wide or shrunk to ``large``."""
    height, width = frames.shape[-2:]
    if width <= large:
        return upscale(frames, max(1, small // width))
    size = (max(1, round(height * large / width)), large)
    # A few frames at a time: a float copy of a whole 480p clip is half a GiB.
    parts = [F.interpolate(part.float(), size, mode="area") for part in frames.split(16)]
    return torch.cat(parts).round().to(torch.uint8)


def _check_groups(
    prompts: Sequence[str], videos: Tensor, scores: Tensor, names: Sequence[str]
) -> None:
    fits = videos.ndim == 6 and videos.shape[3] == 3 and videos.numel() > 0
    if not fits or (len(names), *videos.shape[:2]) != tuple(scores.shape):
        raise UserError(
            "clips and scores of the groups do not fit",
            received=f"videos {tuple(videos.shape)}, scores {tuple(scores.shape)}",
            expected=f"[P, G, T, 3, H, W] and [{len(names)}, P, G]",
        )
    _check_length("prompts", len(prompts), len(videos))


def _check_pairs(
    before: Tensor,
    after: Tensor,
    prompts: Sequence[str],
    scores_before: Sequence[Scores],
    scores_after: Sequence[Scores],
) -> None:
    if before.ndim != 5 or before.shape != after.shape or before.numel() == 0:
        raise UserError(
            "clips before and after do not fit",
            received=f"{tuple(before.shape)} and {tuple(after.shape)}",
            expected="two tensors [N, T, 3, H, W] of one shape",
        )
    _check_length("prompts", len(prompts), len(before))
    _check_length("scores before", len(scores_before), len(before))
    _check_length("scores after", len(scores_after), len(before))


def _check_length(what: str, received: int, expected: int) -> None:
    if received != expected:
        raise UserError(
            f"{what} and clips differ in number", received=received, expected=str(expected)
        )
