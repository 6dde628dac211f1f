"""From pixels to sprites: background, connected components and their measurements.

Nothing here knows the scene or the caption. The background of a frame is its median colour; the
foreground is what stands clear of it after light smoothing; components are labelled inside each
frame, and each one gets a matte ``alpha`` (share of sprite colour in a pixel). Areas and centres
come from the matte, so that anti-aliasing, slight blur and slight noise do not move them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from longtake.sandbox.facts import SHAPES
from longtake.sandbox.oracles.soft import Array
from longtake.sandbox.render import (
    CROSS_ARM,
    CROSS_HALF,
    SQUARE_HALF,
    TRIANGLE_INRADIUS,
    signed_distance,
)

MIN_CONTRAST = 0.18  # RGB distance from the background; the palest sprite stands 0.41 away
MIN_AREA_PX = 12  # anything smaller is background noise
SPRITE_AREA_PX = 25.0  # anything smaller is not taken for a sprite (the smallest one has 107)
HALO_PX = 2  # the matte is read this far outside of the thresholded component
EDGE_GAIN = 2.5  # silhouettes are compared on steepened mattes, which blur hardly changes

# Area in units of radius**2, in the order of SHAPES.
UNIT_AREA: Array = np.array(
    [
        np.pi,
        4 * SQUARE_HALF**2,
        3 * 3**0.5 * TRIANGLE_INRADIUS**2,
        8 * CROSS_HALF * CROSS_ARM - 4 * CROSS_ARM**2,
    ]
)

_WINDOW_PX = 38  # silhouettes are compared in a window of this side


@dataclass(frozen=True, kw_only=True, slots=True)
class Segmentation:
    """Measurements of one clip: T frames, L components over all frames."""

    video: NDArray[np.float32]  # [T, 3, H, W] in [0, 1]
    background: Array  # [T, 3]
    background_rms: Array  # [T] RMS deviation of the pixels outside of all components
    labels: NDArray[np.int64]  # [T, H, W], 0 is background, l + 1 is component l with its halo
    alpha: NDArray[np.float32]  # [T, H, W]
    frame: NDArray[np.int64]  # [L]
    area: Array  # [L] px
    centre: Array  # [L, 2] (x, y) px
    colour: Array  # [L, 3] of the core
    spread: Array  # [L] RMS deviation of the core's pixels from its colour
    fit: Array  # [L, 4] overlap (IoU) with each of SHAPES at the same area and centre

    @property
    def num_frames(self) -> int:
        """T."""
        return int(self.video.shape[0])


def segment_batch(video: Tensor) -> list[Segmentation | None]:
    """Segment clips [B, T, 3, H, W], uint8 or float in [0, 1]; None where a pixel is not finite."""
    assert video.ndim == 5 and video.shape[2] == 3, video.shape
    pixels = video.detach().to(device="cpu", dtype=torch.float32)
    if video.dtype == torch.uint8:
        pixels = pixels / 255
    return [segment(clip) if np.isfinite(clip).all() else None for clip in pixels.numpy()]


def segment(video: NDArray[np.float32]) -> Segmentation:
    """Segment one clip [T, 3, H, W]."""
    background = _background(video)
    difference = video - background[:, :, None, None].astype(np.float32)
    smooth = _box_mean(difference)
    distance = np.sqrt(np.einsum("tchw,tchw->thw", smooth, smooth))
    # Noise lifts the threshold with it, or every grain would become a component.
    threshold = max(MIN_CONTRAST, 2.5 * float(np.median(distance)))
    core_labels = _components(distance > threshold)
    count = int(core_labels.max())
    labels = _grow(core_labels)

    where = np.nonzero(core_labels)
    owner = core_labels[where]
    frame = np.zeros(count + 1, dtype=np.int64)
    frame[owner] = where[0]
    peak = np.zeros(count + 1, dtype=np.float32)
    np.maximum.at(peak, owner, distance[where])
    # The core alone: pixels of the rim are blends with the background.
    is_core = distance[where] > 0.85 * peak[owner]
    pixels = video.transpose(0, 2, 3, 1)[where][is_core].astype(np.float64)
    colour, spread = _core_colours(pixels, owner[is_core], count)
    alpha = _matte(difference, labels, colour - background[frame])
    area, centre = _moments(labels, alpha, count)
    outside = labels == 0
    rms = _background_rms(difference, outside)
    return Segmentation(
        video=video,
        background=background,
        background_rms=rms,
        labels=labels,
        alpha=alpha,
        frame=frame[1:],
        area=area,
        centre=centre,
        colour=colour[1:],
        spread=spread[1:],
        fit=_fit_shapes(labels, alpha, frame[1:], area, centre),
    )


def _background(video: NDArray[np.float32]) -> Array:
    """Median colour of each frame, [T, 3]; every fourth pixel is enough."""
    sparse = video[:, :, ::2, ::2].reshape(*video.shape[:2], -1)
    return np.median(sparse, axis=-1).astype(np.float64)


def _box_mean(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over 3 x 3 pixels of [T, C, H, W], borders repeated."""
    padded = np.pad(planes, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
    mean: NDArray[np.float32] = rows[..., :-2] + rows[..., 1:-1]
    mean += rows[..., 2:]
    mean *= np.float32(1 / 9)
    return mean


def _components(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Label 4-connected components inside each frame and drop the smallest ones."""
    within = np.zeros((3, 3, 3), dtype=bool)
    within[1] = [[False, True, False], [True, True, True], [False, True, False]]
    labels, count = ndimage.label(mask, structure=within)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    keep = sizes >= MIN_AREA_PX
    keep[0] = False
    renumbered = np.where(keep, np.cumsum(keep), 0)
    return np.asarray(renumbered[labels], dtype=np.int64)


def _grow(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the pixels around each component to it; touching components keep their own pixels."""
    side = 2 * HALO_PX + 1
    grown = ndimage.maximum_filter(labels.astype(np.int32), size=(1, side, side))
    return np.where(labels > 0, labels, grown).astype(np.int64)


def _core_colours(pixels: Array, owner: NDArray[np.int64], count: int) -> tuple[Array, Array]:
    """Mean colour [L + 1, 3] and RMS deviation [L + 1] of the core pixels [P, 3] by owner [P]."""
    number = np.maximum(np.bincount(owner, minlength=count + 1), 1)
    sums = [np.bincount(owner, pixels[:, c], minlength=count + 1) for c in range(3)]
    colour = np.stack(sums, axis=1) / number[:, None]
    squared = np.square(pixels - colour[owner]).sum(axis=1) / 3
    return colour, np.sqrt(np.bincount(owner, squared, minlength=count + 1) / number)


def _matte(
    difference: NDArray[np.float32], labels: NDArray[np.int64], contrast: Array
) -> NDArray[np.float32]:
    """Projection of each pixel on the line from the background to its component's colour."""
    alpha = np.zeros(labels.shape, dtype=np.float32)
    inside = np.nonzero(labels)
    owner = labels[inside]
    power = np.maximum(np.square(contrast).sum(axis=1), 1e-6)
    pixels = difference.transpose(0, 2, 3, 1)[inside]
    projected = (pixels * contrast[owner]).sum(axis=1) / power[owner]
    alpha[inside] = np.clip(projected, 0, 1)
    return alpha


def _moments(
    labels: NDArray[np.int64], alpha: NDArray[np.float32], count: int
) -> tuple[Array, Array]:
    """Area [L] and centre [L, 2] of the mattes."""
    where = np.nonzero(labels)
    _, rows, columns = where
    owner = labels[where]
    weight = alpha[where].astype(np.float64)
    weight = np.where(weight > 0.1, weight, 0.0)  # the noise of the halo must not pull the centre
    area: Array = np.bincount(owner, weight, minlength=count + 1)[1:].astype(np.float64)
    x = np.bincount(owner, weight * (columns + 0.5), minlength=count + 1)[1:]
    y = np.bincount(owner, weight * (rows + 0.5), minlength=count + 1)[1:]
    return area, np.stack([x, y], axis=1) / np.maximum(area, 1e-6)[:, None]


def _background_rms(difference: NDArray[np.float32], outside: NDArray[np.bool_]) -> Array:
    """RMS deviation per frame outside of the components; of the whole frame if none is left."""
    power = np.square(difference).sum(axis=1) / 3  # [T, H, W]
    number = outside.sum(axis=(1, 2))
    clear = (power * outside).sum(axis=(1, 2)) / np.maximum(number, 1)
    whole = power.mean(axis=(1, 2))
    enough = number > 0.25 * outside[0].size
    return np.asarray(np.sqrt(np.where(enough, clear, whole)), dtype=np.float64)


def _fit_shapes(
    labels: NDArray[np.int64],
    alpha: NDArray[np.float32],
    frame: NDArray[np.int64],
    area: Array,
    centre: Array,
) -> Array:
    """Overlap of each silhouette with each shape of the same area and centre, [L, 4]."""
    count = len(area)
    if count == 0:
        return np.zeros((0, len(SHAPES)))
    half = _WINDOW_PX // 2
    corner = np.floor(centre).astype(np.int64) - half  # [L, 2] (x, y)
    ramp = np.arange(_WINDOW_PX)
    rows = corner[:, 1, None] + ramp  # [L, W]
    columns = corner[:, 0, None] + ramp
    height, width = labels.shape[1:]
    index = (
        frame[:, None, None],
        np.clip(rows, 0, height - 1)[:, :, None],
        np.clip(columns, 0, width - 1)[:, None, :],
    )
    in_frame = ((rows >= 0) & (rows < height))[:, :, None]
    in_frame = in_frame & ((columns >= 0) & (columns < width))[:, None, :]
    own = in_frame & (labels[index] == np.arange(1, count + 1)[:, None, None])
    steep = np.clip((alpha[index] - 0.5) * EDGE_GAIN + 0.5, 0, 1) * own  # [L, W, W]
    silhouette = torch.from_numpy(steep.astype(np.float32))
    x = torch.from_numpy((columns + 0.5 - centre[:, 0, None]).astype(np.float32))[:, None, :]
    y = torch.from_numpy((rows + 0.5 - centre[:, 1, None]).astype(np.float32))[:, :, None]
    own_area = silhouette.sum(dim=(1, 2))
    overlaps = []
    for shape, unit_area in zip(SHAPES, UNIT_AREA, strict=True):
        radius = (own_area / float(unit_area)).sqrt()[:, None, None]
        template = (0.5 - EDGE_GAIN * signed_distance(shape, x, y, radius)).clamp(0, 1)
        shared = torch.minimum(template, silhouette).sum(dim=(1, 2))
        union = template.sum(dim=(1, 2)) + own_area - shared
        overlaps.append((shared / union.clamp(min=1e-6)).numpy())
    return np.stack(overlaps, axis=1).astype(np.float64)
