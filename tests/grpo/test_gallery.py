import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from longtake.core.video import read_video, to_uint8, upscale, write_png
from longtake.grpo.gallery import before_after_mp4, before_after_png, groups_png, write_groups
from longtake.grpo.lettering import Page, font, wrap
from longtake.runtime.errors import UserError
from longtake.sandbox.captions import caption
from longtake.sandbox.render import render
from longtake.sandbox.scene import sample_scenes

NAMES = ["general", "text_alignment"]


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return render(sample_scenes(5, 0, 6))  # uint8 [6, 17, 3, 64, 64]


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return [caption(scene, i) for i, scene in enumerate(sample_scenes(5, 0, 6))]


def pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).view(
            image.height, image.width, 3
        )


def find(picture: Tensor, patch: Tensor) -> tuple[int, int] | None:
    """Top left corner of an exact copy of ``patch`` [h, w, 3] in ``picture`` [H, W, 3]."""
    (height, width), size = patch.shape[:2], picture.shape
    y, x = torch.meshgrid(
        torch.arange(size[0] - height + 1), torch.arange(size[1] - width + 1), indexing="ij"
    )
    y, x = y.flatten(), x.flatten()
    for i in torch.randperm(height * width, generator=torch.Generator().manual_seed(0))[:500]:
        dy, dx = divmod(int(i), width)
        hits = (picture[y + dy, x + dx] == patch[dy, dx]).all(-1)
        y, x = y[hits], x[hits]
    for top, left in zip(y.tolist(), x.tolist(), strict=True):
        if bool((picture[top : top + height, left : left + width] == patch).all()):
            return top, left
    return None


def test_group_grid_has_every_frame_of_every_member(
    tmp_path: Path, clips: Tensor, prompts: list[str]
) -> None:
    videos = clips.view(2, 3, 17, 3, 64, 64)
    scores = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0))
    path = write_groups(tmp_path / "new", 10, prompts[:2], videos, scores, NAMES, fps=8)
    assert path == tmp_path / "new" / "update-0010.mp4"
    grid, fps = read_video(path)
    assert fps == 8 and grid.shape[0] == 17
    still = groups_png(prompts[:2], videos, scores, NAMES, "update 10")
    assert still.shape == (*grid.shape[2:], 3)
    corners = {}
    for p in range(2):
        for g in range(3):
            corner = find(still, upscale(videos[p, g, 8], 3).permute(1, 2, 0))
            assert corner is not None, (p, g)
            corners[p, g] = corner
            y, x = corner
            shown = grid[:, :, y : y + 192, x : x + 192].float()
            error = (shown - upscale(videos[p, g], 3).float()).abs().mean()
            assert error < 4, (p, g)  # 4:2:0 chroma moves colours at edges
    for (p, g), (y, x) in corners.items():  # rows are prompts, columns are members
        assert y == corners[p, 0][0] and x == corners[0, g][1]
    assert corners[0, 0][0] < corners[1, 0][0] and corners[0, 0][1] < corners[0, 1][1]


def test_scores_and_prompts_are_written(clips: Tensor, prompts: list[str]) -> None:
    videos = clips.view(2, 3, 17, 3, 64, 64)
    scores = torch.full((2, 2, 3), 0.5)
    plain = groups_png(prompts[:2], videos, scores, NAMES)
    changed = scores.clone()
    changed[1, 0, 2] = math.nan
    difference = (groups_png(prompts[:2], videos, changed, NAMES) != plain).any(-1)
    ys, xs = difference.nonzero().unbind(1)
    y, x = find(plain, upscale(videos[0, 2, 8], 3).permute(1, 2, 0)) or (0, 0)
    # Only under the unscored member, and there "unscored" is red.
    assert y + 192 < int(ys.min()) and int(ys.max()) < y + 192 + 40
    assert x <= int(xs.min()) and int(xs.max()) < x + 192
    region = groups_png(prompts[:2], videos, changed, NAMES)[y + 192 : y + 232, x : x + 192].int()
    assert bool((region[..., 0] > region[..., 1] + 100).any())
    other = groups_png(["another text", prompts[1]], videos, scores, NAMES)
    assert other.shape != plain.shape or bool((other != plain)[:y].any())


def test_the_best_of_a_group_is_dark(clips: Tensor) -> None:
    videos = clips[:3].view(1, 3, 17, 3, 64, 64)
    picture = groups_png(["p"], videos, torch.tensor([[[0.1, 0.9, 0.2]]]), ["r"])
    y, _ = find(picture, upscale(videos[0, 0, 8], 3).permute(1, 2, 0)) or (0, 0)
    darkest = []
    for g in range(3):
        _, x = find(picture, upscale(videos[0, g, 8], 3).permute(1, 2, 0)) or (0, 0)
        darkest.append(int(picture[y + 192 :, x + 130 : x + 192].min()))
    assert darkest[1] < 60 and min(darkest[0], darkest[2]) > 90


def test_many_groups_are_cut_and_large_clips_shrunk(tmp_path: Path) -> None:
    videos = torch.zeros(10, 2, 1, 3, 8, 8, dtype=torch.uint8)
    grid = groups_png(["p"] * 10, videos, torch.zeros(1, 10, 2), ["r"])
    eight = groups_png(["p"] * 8, videos[:8], torch.zeros(1, 8, 2), ["r"])
    assert grid.shape[0] == eight.shape[0] + 24  # the heading that says 8 of 10
    large = torch.rand(1, 2, 3, 3, 48, 640)
    path = write_groups(tmp_path, 0, ["p"], large, torch.zeros(1, 1, 2), ["r"], fps=15)
    video, fps = read_video(path)
    assert video.shape[0] == 3 and fps == 15
    assert 2 * 320 < video.shape[3] < 2 * 320 + 60


def test_float_clips_with_nan_are_drawn(clips: Tensor) -> None:
    videos = clips[:2].view(1, 2, 17, 3, 64, 64).float() / 255
    scores = torch.tensor([[[0.5, math.nan]]])
    same = groups_png(["p"], videos, scores, ["r"])
    assert bool((same == groups_png(["p"], to_uint8(videos), scores, ["r"])).all())
    videos[0, 1] = math.nan
    black = groups_png(["p"], videos, scores, ["r"])
    y, x = find(black, upscale(to_uint8(videos[0, 0, 8]), 3).permute(1, 2, 0)) or (0, 0)
    assert int(black[y : y + 192, x + 200 : x + 392].max()) == 0


def test_before_stands_above_after(tmp_path: Path, clips: Tensor, prompts: list[str]) -> None:
    before, after = clips[:3], clips[3:]
    first = [{"alignment": 0.2, "motion": 0.5}] * 3
    second = [{"alignment": 0.6, "motion": None}] * 3
    path = before_after_png(before, after, prompts[:3], first, second, tmp_path / "s" / "ba.png")
    picture = pixels(path)
    for i in range(3):
        corners = []
        for side in (before, after):
            for frame in (0, 3, 6, 10, 13, 16):
                corner = find(picture, upscale(side[i, frame], 2).permute(1, 2, 0))
                assert corner is not None, (i, frame)
                corners.append(corner)
        (top, left), (bottom, under) = corners[0], corners[6]
        assert bottom == top + 128 + 4 and under == left
    # A change upwards is green; the missing score leaves no colour.
    green = (picture[..., 1].int() - picture[..., 0].int() > 60) & (picture[..., 2] < 120)
    assert bool(green.any())


def test_pairs_play_side_by_side(tmp_path: Path, clips: Tensor, prompts: list[str]) -> None:
    scores = [{"m": 0.5}] * 3
    path = tmp_path / "ba.mp4"
    args = (clips[:3], clips[3:].float() / 255, prompts[:3], scores, scores)
    assert before_after_mp4(*args, path, fps=8) == path
    video, fps = read_video(path)
    assert fps == 8 and video.shape[0] == 17
    left, right = upscale(clips[0], 3).float(), upscale(clips[3], 3).float()
    errors = [
        (video[:, :, y : y + 192, 12:204].float() - left).abs().mean()
        + (video[:, :, y : y + 192, 212:404].float() - right).abs().mean()
        for y in range(20, 120)
    ]
    assert min(errors) < 8


def test_wrong_shapes_are_refused(tmp_path: Path, clips: Tensor) -> None:
    videos = clips.view(2, 3, 17, 3, 64, 64)
    with pytest.raises(UserError, match=r"\[P, G, T, 3, H, W\] and \[2, P, G\]"):
        groups_png(["a", "b"], videos, torch.zeros(2, 3, 2), NAMES)
    with pytest.raises(UserError, match="prompts and clips differ"):
        groups_png(["a"], videos, torch.zeros(2, 2, 3), NAMES)
    with pytest.raises(UserError, match="one shape"):
        before_after_png(clips[:2], clips[:3], ["a", "b"], [{}] * 2, [{}] * 2, tmp_path / "x.png")
    with pytest.raises(UserError, match="scores after"):
        before_after_png(clips[:2], clips[:2], ["a", "b"], [{}] * 2, [{}], tmp_path / "x.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_groups(tmp_path / "file", 0, ["a", "b"], videos, torch.zeros(2, 2, 3), NAMES, 8)


@pytest.mark.parametrize("text", ["a b c", "word " * 100, "x" * 500, "", "猫" * 300])
def test_lines_fit_their_width(text: str) -> None:
    lines = wrap(text, 14, 200, max_lines=3)
    assert 1 <= len(lines) <= 3
    assert all(font(14, bold=True).getlength(line) <= 200 for line in lines)
    if len(text) < 10:
        assert lines == [text]
    else:
        assert lines[-1].endswith(" ...")


def test_pages_have_even_sides(tmp_path: Path) -> None:
    page = Page(11, 7)
    assert page.pixels().shape == (3, 8, 12)
    page.text(0, 0, "", 10, (0, 0, 0))
    assert pixels(write_png(page.pixels().permute(1, 2, 0), tmp_path / "p.png")).min() == 255
