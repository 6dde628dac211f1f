import pytest
import torch

from longtake.core import whole_clip
from longtake.training.vae import VAETrainingConfig, build_vae


@pytest.fixture(scope="module")
def vae():  # type: ignore[no-untyped-def]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_vae(VAETrainingConfig(base_dim=4, dim_mult=(1, 2, 2, 4), z_dim=6)).double()
        for p in model.parameters():  # norms start at 1 and biases near 0: make all count
            torch.nn.init.normal_(p, std=0.3)
    return model


def video(num_frames: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(num_frames)
    return torch.rand(2, 3, num_frames, 16, 24, generator=g, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("num_frames", [1, 5, 9, 17])
def test_equals_the_published_chunked_forward(vae, num_frames) -> None:  # type: ignore[no-untyped-def]
    clips = video(num_frames)
    with torch.no_grad():
        published = vae.encode(clips).latent_dist.parameters
        moments = whole_clip.encode_moments(vae, clips)
        torch.testing.assert_close(moments, published, rtol=1e-9, atol=1e-9)
        z = published[:, :6] * 0.1
        decoded = whole_clip.decode(vae, z)
        assert decoded.shape == clips.shape
        torch.testing.assert_close(
            decoded.clamp(-1, 1), vae.decode(z).sample, rtol=1e-6, atol=1e-6
        )  # WanUpsample works in float32


def test_gradients_equal_those_of_the_chunked_forward(vae) -> None:  # type: ignore[no-untyped-def]
    clips = video(5)

    def gradients(z_mean: torch.Tensor) -> list[torch.Tensor]:
        parameters = list(vae.encoder.parameters()) + list(vae.quant_conv.parameters())
        return list(torch.autograd.grad(z_mean.square().sum(), parameters))

    mine = gradients(whole_clip.encode_moments(vae, clips)[:, :6])
    published = gradients(vae.encode(clips).latent_dist.mean)
    for a, b in zip(mine, published, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_is_causal(vae) -> None:  # type: ignore[no-untyped-def]
    clips = video(9)
    changed = clips.clone()
    changed[:, :, 5:] = 0
    with torch.no_grad():
        a, b = whole_clip.encode_moments(vae, clips), whole_clip.encode_moments(vae, changed)
    torch.testing.assert_close(a[:, :, :2], b[:, :, :2])
    assert not torch.allclose(a[:, :, 2], b[:, :, 2])
