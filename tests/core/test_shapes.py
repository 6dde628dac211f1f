"""Size arithmetic of pixels, latents and tokens."""

import pytest

from longtake.core.shapes import latent_frames, latent_shape, pixel_frames
from longtake.runtime.errors import UserError


def test_sizes_of_the_sandbox_and_of_the_release() -> None:
    assert latent_shape(17, 64, 64) == (16, 5, 8, 8)
    assert latent_shape(93, 480, 832) == (16, 24, 60, 104)


@pytest.mark.parametrize("frames", [1, 5, 17, 93, 189])
def test_latent_frames_invert(frames: int) -> None:
    assert pixel_frames(latent_frames(frames)) == frames


@pytest.mark.parametrize("frames", [0, -3, 2, 4, 16, 18])
def test_frames_that_do_not_fit(frames: int) -> None:
    with pytest.raises(UserError, match="4k"):
        latent_frames(frames)


def test_the_remedy_names_sizes_that_work() -> None:
    with pytest.raises(UserError, match="use 17 or 21 frames"):
        latent_frames(18)
    with pytest.raises(UserError, match="crop to 64"):
        latent_shape(17, 66, 64)
