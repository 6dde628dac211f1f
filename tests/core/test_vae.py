"""VideoVAE: normalisation, chunking, saving, and what broken folders and clips raise."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from longtake.core.vae import WEIGHTS_STEM, VideoVAE
from longtake.runtime.errors import CheckpointError, UserError


@pytest.fixture(scope="module")
def vae() -> VideoVAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoencoderKLWan(
            base_dim=4,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1 * i for i in range(16)],
            latents_std=[1.0 + 0.1 * i for i in range(16)],
        )
    return VideoVAE(model.eval().requires_grad_(False))


def clips(batch: int = 3, frames: int = 5, size: int = 16) -> Tensor:
    return torch.rand(batch, frames, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_encode_is_the_normalised_posterior_mean(vae: VideoVAE) -> None:
    video = clips()
    raw = vae.model.encode((video * 2 - 1).transpose(1, 2)).latent_dist.mean
    expected = torch.stack([(raw[:, c] - 0.1 * c) / (1 + 0.1 * c) for c in range(16)], dim=1)
    z = vae.encode(video)
    assert z.shape == (3, *vae.latent_shape(5, 16, 16)) == (3, 16, 2, 2, 2)
    torch.testing.assert_close(z, expected)


def test_decode_undoes_the_normalisation_and_the_pixel_range(vae: VideoVAE) -> None:
    z = torch.randn(2, 16, 2, 2, 2, generator=torch.Generator().manual_seed(2))
    raw = torch.stack([z[:, c] * (1 + 0.1 * c) + 0.1 * c for c in range(16)], dim=1)
    expected = (vae.model.decode(raw).sample.transpose(1, 2) + 1) / 2
    video = vae.decode(z)
    assert video.shape == (2, 5, 3, 16, 16)
    assert video.min() >= 0 and video.max() <= 1
    torch.testing.assert_close(video, expected)


def test_chunk_size_changes_rounding_only(vae: VideoVAE) -> None:
    video = clips()
    z = vae.encode(video, chunk=8)
    torch.testing.assert_close(vae.encode(video, chunk=1), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vae.decode(z, chunk=2), vae.decode(z), atol=1e-5, rtol=1e-5)


def test_posterior_draws_do_not_depend_on_the_chunk(vae: VideoVAE) -> None:
    video = clips()
    draws = [
        vae.encode(video, generator=torch.Generator().manual_seed(5), chunk=chunk)
        for chunk in (1, 3)
    ]
    torch.testing.assert_close(draws[0], draws[1], atol=1e-5, rtol=1e-5)
    assert (draws[0] - vae.encode(video)).abs().max() > 1e-3


def test_uint8_equals_float(vae: VideoVAE) -> None:
    pixels = (clips() * 255).round().to(torch.uint8)
    torch.testing.assert_close(vae.encode(pixels), vae.encode(pixels.float() / 255))


def test_gradients_reach_the_latents(vae: VideoVAE) -> None:
    z = torch.zeros(1, 16, 1, 2, 2, requires_grad=True)
    vae.decode(z).sum().backward()
    assert z.grad is not None and z.grad.abs().max() > 0


def test_empty_batches_keep_their_shape(vae: VideoVAE) -> None:
    assert vae.encode(torch.rand(0, 5, 3, 16, 16)).shape == (0, 16, 2, 2, 2)
    assert vae.decode(torch.rand(0, 16, 2, 2, 2)).shape == (0, 5, 3, 16, 16)


def test_save_and_load_are_exact_and_keep_new_statistics(vae: VideoVAE, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "vae")
    copy = VideoVAE.from_pretrained(tmp_path)  # the checkpoint directory works as well
    assert torch.equal(copy.encode(clips()), vae.encode(clips()))
    copy.set_latent_statistics([0.5] * 16, [2.0] * 16)
    copy.save_pretrained(tmp_path / "other")
    again = VideoVAE.from_pretrained(tmp_path / "other")
    assert torch.equal(again.encode(clips()), copy.encode(clips()))
    assert (again.encode(clips()) - vae.encode(clips())).abs().max() > 0.05


def test_dead_channels_are_refused(vae: VideoVAE) -> None:
    with pytest.raises(UserError, match="positive"):
        vae.set_latent_statistics([0.0] * 16, [0.0] * 16)


@pytest.mark.parametrize("shape", [(1, 4, 3, 16, 16), (1, 5, 3, 20, 16)])
def test_sizes_that_do_not_fit_are_user_errors(vae: VideoVAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="remedy"):
        vae.encode(torch.rand(shape))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        VideoVAE.from_pretrained(tmp_path / "nothing")


def test_truncated_weights_name_the_file(vae: VideoVAE, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    file = tmp_path / f"{WEIGHTS_STEM}.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=file.name):
        VideoVAE.from_pretrained(tmp_path)


def test_weights_of_another_size_are_refused(vae: VideoVAE, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "base_dim": 8}))
    with pytest.raises(CheckpointError, match="shape"):
        VideoVAE.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_res_blocks": 2}))
    with pytest.raises(CheckpointError, match="missing"):
        VideoVAE.from_pretrained(tmp_path)
