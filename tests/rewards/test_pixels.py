import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from longtake.rewards.pixels import (
    HPSV3_PIXELS,
    VIDEOALIGN_PIXELS,
    PixelConfig,
    bicubic_weights,
    clip_patches,
    patchify,
    resize,
    resized_size,
)
from longtake.runtime.errors import UserError

RESIZES = [
    ((120, 208), (84, 147)),
    ((64, 64), (112, 112)),
    ((45, 80), (21, 140)),
    ((84, 90), (84, 61)),
    ((90, 84), (61, 84)),
]


def noise(seed, *shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.manual_seed(seed))


def natural(seed, *shape):
    """Smooth 8-bit frames without overshoot: blurred noise away from black and white."""
    blurred = torch.nn.functional.avg_pool2d(noise(seed, *shape).float(), 9, 1, 4)
    return blurred.clamp(30, 225).round().to(torch.uint8)


def pillow(frame, size):
    """Pillow's bicubic, width first: one axis per call, as the order depends on its version."""
    image = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
    wide = image.resize((size[1], image.height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(wide.resize(size[::-1], Image.Resampling.BICUBIC))).permute(
        2, 0, 1
    )


@pytest.mark.parametrize(
    ("height", "width", "expected", "tokens"),
    [
        (480, 832, (336, 588), 252),
        (720, 1280, (336, 588), 252),
        (1080, 1920, (336, 588), 252),
        (512, 512, (448, 448), 256),
        (1024, 1024, (448, 448), 256),
        (768, 768, (420, 420), 225),
    ],
)
def test_the_published_table_of_sizes(height, width, expected, tokens):
    # 768 is 420 and not 448: 768 / (768 / 448) / 28 is 15.999... in floating point. The public
    # scorers round the same way, so the order of the divisions is part of the format.
    for config in (HPSV3_PIXELS, VIDEOALIGN_PIXELS):
        assert resized_size(height, width, config.min_pixels, config.max_pixels) == expected
    assert expected[0] * expected[1] // 28**2 == tokens


def test_sizes_keep_the_limits_and_the_shape():
    generator = torch.Generator().manual_seed(0)
    low, high = VIDEOALIGN_PIXELS.min_pixels, VIDEOALIGN_PIXELS.max_pixels
    for _ in range(200):
        height = int(torch.randint(32, 1100, (), generator=generator))
        width = int(height * (0.4 + 2.1 * float(torch.rand((), generator=generator))))
        rows, columns = resized_size(height, width, low, high)
        assert rows % 28 == columns % 28 == 0
        assert low <= rows * columns <= high
        # Each side is within one step of 28 of the side that keeps the shape exactly.
        exact = math.sqrt(rows * columns * height / width)
        assert abs(rows - exact) < 28


@pytest.mark.parametrize(("source", "target"), RESIZES)
@pytest.mark.parametrize("make", [noise, natural])
def test_the_pil_resize_is_pillows_on_every_pixel(source, target, make):
    frames = make(sum(source), 2, 3, *source)
    ours = resize(frames, target, "pil")
    for frame, resized in zip(frames, ours, strict=True):
        assert torch.equal(resized, pillow(frame, target))


@pytest.mark.parametrize(("source", "target"), RESIZES)
def test_the_torch_resize_is_within_one_level_of_pillows_on_smooth_frames(source, target):
    frames = natural(sum(target), 2, 3, *source)
    difference = resize(frames, target, "torch").int() - resize(frames, target, "pil").int()
    assert difference.abs().max() <= 1
    # Two roundings against one: with both axes resized the two are not the same resampler.
    both_axes = source[0] != target[0] and source[1] != target[1]
    assert (difference.ne(0).float().mean() > 0.01) == both_axes


@pytest.mark.parametrize(("source", "target"), RESIZES)
def test_the_torch_resize_rounds_the_exact_filter_once(source, target):
    frames = noise(sum(target), 1, 3, *source)
    rows, columns = (bicubic_weights(s, t) for s, t in zip(source, target, strict=True))
    exact = (rows @ frames.double() @ columns.T).clamp(0, 255)
    assert (resize(frames, target, "torch").double() - exact).abs().max() < 0.502


def test_frames_do_not_depend_on_their_batch_or_the_chunks(monkeypatch):
    frames = noise(5, 2, 3, 3, 40, 52)
    for resample in ("pil", "torch"):
        whole = resize(frames, (56, 28), resample)
        monkeypatch.setattr("longtake.rewards.pixels._PIXELS_PER_CHUNK", 1)
        assert torch.equal(resize(frames, (56, 28), resample), whole)
        monkeypatch.undo()
        assert torch.equal(resize(frames[1, 2], (56, 28), resample), whole[1, 2])


@pytest.mark.parametrize(("height", "width"), [(56, 84), (120, 208), (35, 140)])
def test_still_images_match_the_processor_with_pillow(height, width):
    # The processor resizes with Pillow too; on smooth frames the version's pass order is invisible.
    exact = (height, width) == (56, 84)
    low, high = (3136, 200704) if exact else (9800, 9800)
    frame = natural(3, 1, 3, height, width)
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": low, "longest_edge": high})
    image = Image.fromarray(frame[0].permute(1, 2, 0).contiguous().numpy())
    theirs = processor(images=[image], return_tensors="pt")
    config = PixelConfig(min_pixels=low, max_pixels=high, resample="pil")
    patches, grid = clip_patches(frame.unsqueeze(1), config)
    assert theirs["image_grid_thw"].tolist() == [list(grid)]
    level = 0 if exact else 1 / 255 / min(config.std)
    assert (patches[0] - theirs["pixel_values"]).abs().max() <= level + 1e-6


def test_patch_rows_follow_the_documented_order():
    clips = torch.randn(2, 4, 3, 56, 84, generator=torch.manual_seed(1))
    rows = patchify(clips)
    assert rows.shape == (2, 2 * 4 * 6, 1176)
    expected = []
    for pair in range(2):
        for group_y in range(2):
            for group_x in range(3):
                for y in range(2):
                    for x in range(2):
                        top, left = (2 * group_y + y) * 14, (2 * group_x + x) * 14
                        patch = clips[
                            1, 2 * pair : 2 * pair + 2, :, top : top + 14, left : left + 14
                        ]
                        expected.append(patch.transpose(0, 1).flatten())
    assert torch.equal(rows[1], torch.stack(expected))


@pytest.mark.parametrize(
    "wrong", [{"min_pixels": 100}, {"max_pixels": 3000}, {"std": (1.0, 0.0, 1.0)}]
)
def test_configs_and_frames_that_cannot_work_are_refused(wrong):
    with pytest.raises(UserError, match="10x2001"):
        resized_size(10, 2001, 3136, 200704)
    values = {"min_pixels": 3136, "max_pixels": 6272, "resample": "pil"}
    with pytest.raises(UserError):
        PixelConfig(**{**values, **wrong})
