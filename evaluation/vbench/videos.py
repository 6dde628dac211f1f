"""Videos on disk: which of a plan are there, what their headers say, and one score without weights.

Everything but the score works without torch, so that plans and dry runs answer at once.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av

from longtake.evaluation.vbench.plan import Plan
from longtake.runtime.errors import UserError
from longtake.runtime.files import explained

Key = tuple[str, str]
"""(dimension, file name): in the layout with one folder per dimension, files may differ."""


@dataclass(frozen=True, kw_only=True)
class VideoFiles:
    """What a folder holds of a plan."""

    paths: Mapping[Key, Path]
    missing: tuple[Key, ...]
    """Planned, but not there."""
    extra: tuple[Path, ...]
    """There, but not planned: other names, or a dimension that does not score it."""

    @property
    def missing_names(self) -> list[str]:
        """Each missing file name once, in plan order."""
        return list(dict.fromkeys(name for _, name in self.missing))

    def of_dimension(self, dimension: str) -> dict[str, Path]:
        """Paths by file name."""
        return {name: path for (owner, name), path in self.paths.items() if owner == dimension}


def find_videos(plan: Plan, folder: Path) -> VideoFiles:
    """Look for the videos that the plan's dimensions score.

    A video of dimension D is taken from ``folder/D/``, where the official layout has it, else from
    ``folder/`` itself. Names are compared byte by byte.
    """
    if not folder.is_dir():
        raise UserError(
            "the folder of videos does not exist",
            received=str(folder),
            remedy="make it with `eval vbench generate`, or give the folder of your videos",
        )
    # One listing for each folder: 3,000 stat calls take long on network disks.
    names = {
        sub: set(os.listdir(folder / sub)) if (folder / sub).is_dir() else set()
        for sub in ("", *plan.dimensions)
    }
    paths: dict[Key, Path] = {}
    missing: list[Key] = []
    planned: set[Path] = set()
    for video in plan.videos:
        for dimension in video.dimensions:
            own = [folder / sub / video.name for sub in (dimension, "") if video.name in names[sub]]
            planned.update(own)
            if video.index >= plan.scored_samples_of(dimension):
                continue  # raw material of the static filter
            if own:
                paths[dimension, video.name] = own[0]
            else:
                missing.append((dimension, video.name))
    there = {folder / sub / name for sub, members in names.items() for name in members}
    extra = sorted(p for p in there - planned if p.suffix.lower() in (".mp4", ".gif", ".avi"))
    return VideoFiles(paths=paths, missing=tuple(missing), extra=tuple(extra))


def link_view(files: VideoFiles, dimension: str, folder: Path) -> dict[str, Path]:
    """Links ``<folder>/<dimension>/<name>`` to the videos of one dimension, by file name.

    The public code lists whole folders and takes the third last part of a path as the model's
    name, so each dimension must see its own videos only, below a folder of the model.
    """
    view = folder / dimension
    links: dict[str, Path] = {}
    with explained(f"link the videos of {dimension}", view):
        view.mkdir(parents=True, exist_ok=True)
        for name, path in files.of_dimension(dimension).items():
            link = links[name] = view / name
            # Links of an earlier run stay when they are right: the public code caches by path.
            if not link.is_symlink() or Path(os.readlink(link)) != path.resolve():
                link.unlink(missing_ok=True)
                link.symlink_to(path.resolve())
        for old in view.iterdir():
            if old.name not in links:
                old.unlink()
    return links


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What a file's header says."""

    frames: int = 0
    fps: float = math.nan
    """Frames per second; NaN when the file states none."""
    problem: str = ""
    """Why the file cannot be scored; empty when it can."""


def probe(path: Path) -> VideoFacts:
    """Read the header, count the packets and decode the first frames.

    A file that cannot be decoded has a ``problem`` instead of raising: one bad file of thousands is
    a result, not an accident.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                return VideoFacts(problem="no video stream")
            stream = container.streams.video[0]
            rate, stated = stream.average_rate, stream.frames
            frames, decodable = 0, False
            for packet in container.demux(video=0):
                frames += packet.size > 0  # the last packet is empty: it flushes the decoder
                decodable = decodable or bool(packet.decode())
    except (av.FFmpegError, OSError, ValueError) as error:
        return VideoFacts(problem=str(error))
    if not decodable:
        return VideoFacts(problem="no frame can be decoded")
    # A file cut off by a full disk decodes up to its end without an error.
    if frames < stated:
        return VideoFacts(problem=f"torn: {frames} of {stated} frames")
    return VideoFacts(frames=frames, fps=float(rate) if rate else math.nan)


def temporal_flickering(path: Path) -> float:
    """(255 - mean |x[t+1] - x[t]|) / 255 over frame pairs, pixels and channels.

    VBench (arXiv 2311.17982), the one dimension that needs no weights; exactly 1 for a clip without
    any change. Decoders differ in how they turn YUV into RGB: against the public code, which
    decodes by OpenCV, expect differences up to 1e-4.
    """
    from longtake.core.video import read_video  # needs torch

    video, _ = read_video(path)  # uint8 [T, 3, H, W]
    if len(video) < 2:
        raise UserError("one frame cannot flicker", received=str(path), expected=">= 2 frames")
    total = 0
    for before, after in pairwise(video):  # one pair at a time: memory
        total += int((after.short() - before.short()).abs().sum())
    mean = total / ((len(video) - 1) * video[0].numel())
    return (255.0 - mean) / 255.0
