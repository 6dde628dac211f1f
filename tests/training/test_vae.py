import copy
import math

import pytest
import torch

from longtake.runtime.errors import ConfigError, DivergenceError
from longtake.training.vae import (
    VAETrainer,
    VAETrainingConfig,
    build_vae,
    crop_around_foreground,
    kl_divergence,
    reconstruction_loss,
)

CONFIG = VAETrainingConfig(
    base_dim=4,
    dim_mult=(1, 1, 1, 2),
    z_dim=4,
    stage_frames=(1, 5),
    stage_crop_px=(16, 8),
    stage_squared=(1.0, 0.0),
    stage_batch=(3, 2),
    stage_steps=(3, 3),
)


def trainer(config: VAETrainingConfig = CONFIG, seed: int = 0) -> VAETrainer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = build_vae(config)

    def clips(size: int, rng: torch.Generator) -> torch.Tensor:
        return torch.rand(size, 3, 9, 16, 16, generator=rng) * 2 - 1

    return VAETrainer(model, config, clips, seed)


def test_loss_without_weights_is_the_plain_l1() -> None:
    g = torch.Generator().manual_seed(0)
    output, target = torch.rand(2, 2, 3, 2, 8, 8, generator=g).unbind(0)
    loss = reconstruction_loss(output, target, foreground_weight=0.0, edge_weight=0.0)
    assert float(loss) == pytest.approx(float((output - target).abs().mean()), rel=1e-6)


def test_an_error_on_the_sprite_weighs_more_and_weights_have_mean_one() -> None:
    target = torch.full((1, 3, 1, 10, 10), -1.0)
    target[..., 2:4, 2:7] = 1.0  # 10 of 100 pixels
    on_sprite, elsewhere = target.clone(), target.clone()
    on_sprite[..., 2, 2] -= 0.5
    elsewhere[..., 8, 8] += 0.5

    def loss(output: torch.Tensor) -> float:
        return float(reconstruction_loss(output, target, foreground_weight=8.0, edge_weight=0.0))

    mean_weight = (90 * 1 + 10 * 9) / 100
    assert loss(elsewhere) == pytest.approx(0.5 / 100 / mean_weight, rel=1e-5)
    assert loss(on_sprite) == pytest.approx(9 * 0.5 / 100 / mean_weight, rel=1e-5)
    assert loss(target + 0.5) == pytest.approx(0.5, rel=1e-5)


def test_edge_term_sees_a_blurred_edge_that_l1_weighs_little() -> None:
    target = torch.zeros(1, 3, 1, 8, 8)
    shifted = target + 0.2
    assert float(reconstruction_loss(shifted, target, foreground_weight=0, edge_weight=1)) == (
        pytest.approx(0.2, rel=1e-5)
    )  # a constant offset has no edges
    step = target.clone()
    step[..., 4:] = 0.2
    expected = 0.5 * 0.2 + 0.2 / 7  # half of the pixels, one of seven columns of differences
    assert float(reconstruction_loss(step, target, foreground_weight=0, edge_weight=1)) == (
        pytest.approx(expected, rel=1e-5)
    )


def test_squared_term_is_the_weighted_squared_error() -> None:
    torch.manual_seed(0)
    output, target = torch.randn(2, 3, 1, 8, 8), torch.zeros(2, 3, 1, 8, 8)
    plain = reconstruction_loss(output, target, foreground_weight=0.0, edge_weight=0.0)
    both = reconstruction_loss(
        output, target, foreground_weight=0.0, edge_weight=0.0, squared_weight=2.0
    )
    assert float(both - plain) == pytest.approx(2 * float(output.square().mean()), rel=1e-5)


def test_kl_equals_the_closed_form_of_torch_distributions() -> None:
    g = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 50, generator=g, dtype=torch.float64).unbind(0)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(posterior, prior).mean()
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)


def test_posterior_starts_almost_deterministic() -> None:
    model = trainer().vae
    with torch.no_grad():
        posterior = model.encode(torch.rand(1, 3, 1, 16, 16)).latent_dist
    assert float(posterior.std.max()) == pytest.approx(math.exp(-3.0), rel=1e-4)


def test_loss_uses_the_given_posterior_noise() -> None:
    mine = trainer()
    video = torch.rand(2, 3, 5, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    zeros, ones = torch.zeros(2, 4, 2, 2, 2), torch.ones(2, 4, 2, 2, 2)
    with torch.no_grad():
        mine.vae.decoder.conv_out.weight.mul_(0.1)  # the published decoder clamps, the loss not
        a, b = mine.loss({"video": video, "eps": zeros}), mine.loss({"video": video, "eps": zeros})
        c = mine.loss({"video": video, "eps": ones})
        posterior = mine.vae.encode(video).latent_dist
        output = mine.vae.decode(posterior.mean).sample
    assert float(a) == float(b) != float(c)
    expected = reconstruction_loss(
        output,
        video,
        foreground_weight=mine.config.foreground_weight,
        edge_weight=mine.config.edge_weight,
        squared_weight=mine.config.stage_squared[0],
    ) + mine.config.kl_weight * kl_divergence(posterior.mean, posterior.logvar)
    assert float(a) == pytest.approx(float(expected), rel=1e-5)


def test_stages_run_in_order_and_learn() -> None:
    mine = trainer()
    before = [p.detach().clone() for p in mine.parameters]
    records = list(mine.train())
    assert [(r["stage"], r["step"]) for r in records] == [
        (stage, step) for stage in (0, 1) for step in (1, 2, 3)
    ]
    assert [("loss" in r) for r in records] == [False, False, True] * 2
    changed = [not torch.equal(a, b) for a, b in zip(before, mine.parameters, strict=True)]
    assert sum(changed) > 0.9 * len(changed)


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_resume_is_bitwise_equal(stop: int) -> None:
    whole = trainer()
    list(whole.train())
    first = trainer()
    run = first.train()
    for _ in range(stop):
        next(run)
    state = copy.deepcopy(first.state_dict())
    second = trainer()
    second.load_state_dict(state)
    list(second.train())
    for a, b in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(a, b)


def test_a_diverged_training_stops_with_the_step() -> None:
    mine = trainer()
    with torch.no_grad():
        mine.vae.decoder.conv_out.bias.fill_(math.nan)
    with pytest.raises(DivergenceError, match=r"gradient of the VAE is nan at step 1"):
        list(mine.train())


def test_bad_stages_are_refused() -> None:
    with pytest.raises(ConfigError, match="one length"):
        VAETrainingConfig(stage_batch=(1, 2))
    with pytest.raises(ConfigError, match="4 frames"):
        VAETrainingConfig(stage_frames=(1, 4, 9, 17))
    with pytest.raises(ConfigError, match="precision"):
        VAETrainingConfig(precision="fp8")


def test_crop_is_a_window_of_the_clip_that_shows_the_sprite() -> None:
    video = torch.zeros(6, 3, 2, 32, 32)
    for clip in range(6):  # a unique value per pixel of a small sprite, elsewhere flat
        video[clip, :, :, 20:24, 4 + clip : 8 + clip] = 0.5 + torch.arange(16.0).view(4, 4) / 64
    crops = crop_around_foreground(video, 16, torch.Generator().manual_seed(0))
    assert crops.shape == (6, 3, 2, 16, 16)
    for clip in range(6):
        windows = video[clip].unfold(2, 16, 1).unfold(3, 16, 1)  # [3, T, 17, 17, 16, 16]
        is_equal = (windows == crops[clip, :, :, None, None]).flatten(4).all(-1).all(0).all(0)
        assert is_equal.any()
        assert crops[clip].any()
    whole = crop_around_foreground(video, 32, torch.Generator())
    assert torch.equal(whole, video)
