"""Video files: H.264 mp4, gif and png, through PyAV and Pillow.

A clip is [T, 3, H, W], uint8 or float in [0, 1]. Small clips are enlarged by whole factors with
nearest neighbour, so that a 64x64 clip can be watched without a player smoothing it.
"""

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image
from torch import Tensor

from longtake.runtime.errors import UserError
from longtake.runtime.files import replacing

_CRF = "12"  # visually lossless for flat sprites; mp4 files stay a few kB
_SMALL_FRAME = 1 << 17  # pixels; starting a thread per core takes longer than decoding such frames


def to_uint8(video: Tensor) -> Tensor:
    """Pixels in [0, 1] (clamped; NaN becomes 0) on 256 levels, on their device; uint8 as it is."""
    if video.dtype == torch.uint8:
        return video
    levels = video.detach().float().mul(255).round().clamp(0, 255)
    return levels.nan_to_num(0).to(torch.uint8)  # the cast makes NaN another level on each device


def upscale(video: Tensor, scale: int) -> Tensor:
    """Repeat each pixel of [..., H, W] ``scale`` times along both axes."""
    return video.repeat_interleave(scale, -1).repeat_interleave(scale, -2)


def write_mp4(
    video: Tensor, path: str | Path, fps: float, scale: int = 1, *, lossless: bool = False
) -> Path:
    """Write one clip [T, 3, H, W] as H.264 yuv420p; the file appears only when complete.

    ``lossless`` keeps every 8-bit RGB value (H.264 in RGB): for data, since few players show it.
    """
    frames = _frames(video, fps, scale)
    height, width = frames.shape[1:3]
    if (height % 2 or width % 2) and not lossless:
        raise UserError(
            "H.264 yuv420p needs even sides",
            received=f"{width}x{height}",
            expected="even width and height",
            remedy="pass scale=2 or crop one pixel",
        )
    target = Path(path)
    # 1001 covers the rates of television, 30000/1001 and its kin.
    rate = Fraction(fps).limit_denominator(1001)
    try:
        with (
            replacing(target) as temporary,
            av.open(str(temporary), "w", format="mp4") as container,
        ):
            # One thread: x264 splits work by threads, and bytes should not depend on the machine.
            options = {"preset": "veryfast", "threads": "1"}
            # With AVX-512, x264's macroblock tree reads memory it never wrote: equal frames gave up
            # to five different files (measured on a Xeon), so a clip was not repeatable.
            options |= {"qp": "0"} if lossless else {"crf": _CRF, "x264-params": "mbtree=0"}
            codec, pix_fmt = ("libx264rgb", "rgb24") if lossless else ("libx264", "yuv420p")
            stream = container.add_stream(codec, rate=rate, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            for image in frames:
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    except (OSError, av.FFmpegError) as error:
        raise _unwritable(target, error) from error
    return target


def read_video(path: str | Path, max_frames: int | None = None) -> tuple[Tensor, float]:
    """Decode a video, gif or image file, or its first ``max_frames`` frames.

    Returns uint8 [T, 3, H, W] and the frame rate per second, NaN when the file states none.
    """
    source = Path(path)
    if not source.is_file():
        raise UserError(
            "video file not found",
            received=str(source),
            expected="an existing file",
            remedy="check the path",
        )
    frames: list[np.ndarray] = []
    rate: Fraction | None = None
    try:
        with av.open(str(source)) as container:
            if container.streams.video:
                stream = container.streams.video[0]
                rate = stream.average_rate
                if stream.width * stream.height < _SMALL_FRAME:
                    stream.codec_context.thread_count = 1
                to_rgb = VideoReformatter()
                for frame in container.decode(video=0):
                    rgb = to_rgb.reformat(frame, format="rgb24", threads=1)
                    frames.append(rgb.to_ndarray())
                    if max_frames is not None and len(frames) >= max_frames:
                        break
        video = torch.from_numpy(np.stack(frames)) if frames else None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _undecodable(source, str(error)) from error
    if video is None:
        raise _undecodable(source, "it has no video frames")
    return video.permute(0, 3, 1, 2).contiguous(), float(rate) if rate else math.nan


def write_png(image: Tensor, path: str | Path) -> Path:
    """Write uint8 [H, W, 3]."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.cpu().numpy()).save(target, format="PNG")
    except OSError as error:
        raise _unwritable(target, error) from error
    return target


def _frames(video: Tensor, fps: float, scale: int) -> np.ndarray:
    """[T, 3, H, W] -> uint8 [T, H, W, 3], checked."""
    assert video.ndim == 4 and video.shape[1] == 3 and len(video), video.shape
    if not 0 < fps <= 1000:
        raise UserError(
            "the frame rate is not usable",
            received=fps,
            expected="0 < fps <= 1000 frames per second",
            remedy="pass the frame rate the clip was made for",
        )
    return upscale(to_uint8(video).cpu(), scale).permute(0, 2, 3, 1).contiguous().numpy()


def _unwritable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"cannot write {path.name}: {error}",
        received=str(path),
        expected="a writable folder with free space",
        remedy="choose another output folder",
    )


def _undecodable(path: Path, reason: str) -> UserError:
    return UserError(
        f"cannot decode {path.name}: {reason}",
        received=str(path),
        expected="a complete video file with at least one frame",
        remedy="play it once to check it, or copy it again from its source",
    )
