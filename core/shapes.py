"""Axis legend and size arithmetic of pixels, latents and tokens (report section 3.1, Table 1).

Legend used by every shape comment in the package::

    B  samples (clips) of a batch      T  frames, pixel or latent     H W  height, width
    P  prompts   G  group members      K  rewards                     S    tokens of a clip
    N  attention heads                 D  head dimension              C    channels
    L  text tokens

The VAE compresses 4 frames into one latent frame after a first frame of its own, and 8x8 pixels
into one latent position; the DiT reads patches of 1x2x2 latents as one token.
"""

from longtake.runtime.errors import UserError

TEMPORAL_STRIDE = 4
SPATIAL_STRIDE = 8
LATENT_CHANNELS = 16


def latent_frames(num_frames: int) -> int:
    """Latent frames of a clip: T_lat = 1 + (T - 1) / 4."""
    if num_frames < 1 or (num_frames - 1) % TEMPORAL_STRIDE:
        below = max(1, num_frames - (num_frames - 1) % TEMPORAL_STRIDE)
        raise UserError(
            "the number of frames does not fit the temporal compression of the VAE",
            received=num_frames,
            expected=f"{TEMPORAL_STRIDE}k + 1 frames (1, 5, 9, 13, 17, ...)",
            remedy=f"use {below} or {below + TEMPORAL_STRIDE} frames",
        )
    return 1 + (num_frames - 1) // TEMPORAL_STRIDE


def pixel_frames(num_latent_frames: int) -> int:
    """Frames that ``num_latent_frames`` latent frames decode to."""
    return 1 + (num_latent_frames - 1) * TEMPORAL_STRIDE


def latent_shape(
    num_frames: int, height: int, width: int, channels: int = LATENT_CHANNELS
) -> tuple[int, int, int, int]:
    """Latent shape ``(C, T_lat, H/8, W/8)`` of one clip."""
    for name, size in (("height", height), ("width", width)):
        if size < SPATIAL_STRIDE or size % SPATIAL_STRIDE:
            raise UserError(
                f"the {name} does not fit the spatial compression of the VAE",
                received=size,
                expected=f"a positive multiple of {SPATIAL_STRIDE} pixels",
                remedy=f"resize or crop to {max(1, round(size / SPATIAL_STRIDE)) * SPATIAL_STRIDE}",
            )
    t = latent_frames(num_frames)
    return (channels, t, height // SPATIAL_STRIDE, width // SPATIAL_STRIDE)
