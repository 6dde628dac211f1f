"""Video files: round trips, contact sheets, and what broken files raise."""

import math
from pathlib import Path

import av
import pytest
import torch
from PIL import Image
from torch import Tensor

from longtake.core.video import (
    read_video,
    to_uint8,
    upscale,
    write_mp4,
    write_png,
)
from longtake.runtime.errors import UserError


def moving_square(frames: int = 9, size: int = 64) -> Tensor:
    """A bright square that moves right on a dark ground, float in [0, 1]."""
    video = torch.full((frames, 3, size, size), 0.1)
    for t in range(frames):
        video[t, 0, 20:40, 4 + 4 * t : 24 + 4 * t] = 0.9
    return video


@pytest.mark.parametrize("scale", [1, 4])
def test_mp4_round_trip(tmp_path: Path, scale: int) -> None:
    video = moving_square()
    path = write_mp4(video, tmp_path / "deep" / "clip.mp4", fps=8, scale=scale)
    read, fps = read_video(path)
    assert read.dtype == torch.uint8 and read.shape == (9, 3, 64 * scale, 64 * scale)
    assert fps == 8
    error = (read.float() - upscale(to_uint8(video), scale).float()).abs()
    assert error.mean() < 3  # lossy, and colour is kept at half resolution
    red = read[:, 0].float()
    centres = [(frame > 128).float().mean(0).nonzero().float().mean() for frame in red]
    steps = torch.stack(centres).diff()
    torch.testing.assert_close(steps, torch.full((8,), 4.0 * scale), atol=0.6, rtol=0)


def test_mp4_bytes_are_reproducible_and_uint8_equals_float(tmp_path: Path) -> None:
    video = moving_square()
    first = write_mp4(video, tmp_path / "a.mp4", fps=8).read_bytes()
    assert write_mp4(to_uint8(video), tmp_path / "b.mp4", fps=8).read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]  # no leftovers


def test_a_file_without_a_frame_rate_has_none_invented(tmp_path: Path) -> None:
    path = tmp_path / "clip.ivf"
    with av.open(str(path), "w", format="ivf") as container:
        stream = container.add_stream("libvpx-vp9", rate=8)
        stream.width = stream.height = 64
        for frame in to_uint8(moving_square()).permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    read, fps = read_video(path)
    assert read.shape == (9, 3, 64, 64) and math.isnan(fps)


def test_frames_of_several_sizes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mjpeg"
    with path.open("wb") as file:
        for size in (32, 48):
            Image.new("RGB", (size, size)).save(file, format="JPEG")
    with pytest.raises(UserError, match="cannot decode"):
        read_video(path)


def test_read_stops_at_max_frames(tmp_path: Path) -> None:
    path = write_mp4(moving_square(), tmp_path / "clip.mp4", fps=8)
    assert len(read_video(path, max_frames=4)[0]) == 4


def test_to_uint8_clamps_and_rounds() -> None:
    values = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0])
    assert to_uint8(values).tolist() == [0, 0, 128, 255, 255]


def test_upscale_repeats_pixels() -> None:
    image = torch.arange(4).view(2, 2)
    assert upscale(image, 2).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_png_keeps_every_pixel(tmp_path: Path) -> None:
    picture = to_uint8(torch.rand(9, 7, 3, generator=torch.Generator().manual_seed(0)))
    path = write_png(picture, tmp_path / "picture.png")
    assert torch.equal(read_video(path)[0][0].permute(1, 2, 0), picture)


@pytest.mark.parametrize("content", [b"", b"not a video", None])
def test_unreadable_files_are_user_errors(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.mp4"):
        read_video(path)


def test_truncated_mp4_is_a_user_error(tmp_path: Path) -> None:
    path = write_mp4(moving_square(), tmp_path / "clip.mp4", fps=8)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot decode"):
        read_video(path)


def test_odd_sides_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="even"):
        write_mp4(torch.zeros(2, 3, 7, 8), tmp_path / "clip.mp4", fps=8)


def test_unwritable_target_and_bad_rate(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_mp4(moving_square(2), tmp_path / "file" / "clip.mp4", 8)
    with pytest.raises(UserError, match="frame rate"):
        write_mp4(moving_square(2), tmp_path / "clip.mp4", 0)
    with pytest.raises(UserError, match="cannot write"):
        write_png(torch.zeros(2, 2, 3, dtype=torch.uint8), tmp_path / "file" / "sheet.png")
