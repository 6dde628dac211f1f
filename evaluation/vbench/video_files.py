"""The videos of a plan on disk: which are there, which are missing, which nobody asked for."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from longtake.evaluation.vbench.plan import Plan
from longtake.runtime.errors import RunDirectoryError, UserError

Key = tuple[str, str]
"""(dimension, file name): in the layout with one folder per dimension, files may differ."""


@dataclass(frozen=True, kw_only=True)
class VideoFiles:
    """What a folder holds of a plan."""

    paths: Mapping[Key, Path]
    """The file of each (dimension, name) that is there."""
    missing: tuple[Key, ...]
    """Planned, but not there."""
    extra: tuple[Path, ...]
    """There, but not planned: other names, or a dimension that does not score it."""

    @property
    def missing_names(self) -> list[str]:
        """Each missing file name once, in plan order."""
        return list(dict.fromkeys(name for _, name in self.missing))


def find_videos(plan: Plan, folder: Path) -> VideoFiles:
    """Look for the videos that the plan's dimensions score.

    A video of dimension D is taken from ``folder/D/``, where the official layout has it, else from
    ``folder/`` itself. Names are compared byte by byte.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(
            "the folder of videos does not exist",
            received=str(folder),
            remedy="make it with `eval vbench generate`, or give the folder of your videos",
        )
    here = {"": _names(folder)}
    here |= {name: _names(folder / name) for name in plan.dimensions}
    paths: dict[Key, Path] = {}
    missing: list[Key] = []
    wanted: set[Path] = set()
    for video in plan.videos:
        for dimension in video.dimensions:
            places = [sub for sub in (dimension, "") if video.name in here[sub]]
            wanted.update(folder / sub / video.name for sub in places)
            if video.index >= plan.scored_samples_of(dimension):
                continue  # raw material of the static filter
            if places:
                paths[dimension, video.name] = folder / places[0] / video.name
            else:
                missing.append((dimension, video.name))
    found = {folder / sub / name for sub, names in here.items() for name in names}
    extra = sorted(p for p in found - wanted if p.suffix.lower() in (".mp4", ".gif", ".avi"))
    return VideoFiles(paths=paths, missing=tuple(missing), extra=tuple(extra))


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def link_view(files: Mapping[Key, Path], dimension: str, folder: Path) -> dict[str, Path]:
    """Give one dimension a folder of its own with links to its videos; nothing is copied.

    The public code lists whole folders and takes the third last part of a path as the model's
    name, so each dimension must see its own videos only, below a folder of the model.

    Args:
        files: paths by (dimension, name).
        dimension: which one.
        folder: where ``<dimension>/<name>`` links go.

    Returns:
        Path of the link by file name.

    Raises:
        RunDirectoryError: links cannot be made.
    """
    view = folder / dimension
    links: dict[str, Path] = {}
    try:
        view.mkdir(parents=True, exist_ok=True)
        for (owner, name), path in files.items():
            if owner != dimension:
                continue
            link = links[name] = view / name
            target = path.resolve()
            if not link.is_symlink() or Path(os.readlink(link)) != target:
                link.unlink(missing_ok=True)
                link.symlink_to(target)
        for old in view.iterdir():
            if old.name not in links:
                old.unlink()
    except OSError as error:
        raise RunDirectoryError(
            f"cannot link the videos of {dimension}: {error.strerror or error}",
            received=str(view),
            remedy="choose an --output-dir on a file system with symbolic links",
        ) from error
    return links
