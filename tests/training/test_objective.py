import math

import pytest
import torch

from longtake.core import flow
from longtake.training.objective import (
    draw_times,
    flow_matching_loss,
    noisy_input,
    perturb_condition,
)


def clips(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shape = (3, 4, 5, 2, 2)
    return (
        torch.randn(shape, generator=g, dtype=torch.float64),
        torch.randn(shape, generator=g, dtype=torch.float64),
    )


@pytest.mark.parametrize("num_cond", [0, 1, 2])
def test_loss_leaves_condition_frames_out(num_cond: int) -> None:
    z, eps = clips()
    v = torch.zeros_like(z, requires_grad=True)
    flow_matching_loss(v, z, eps, torch.ones(3, dtype=torch.float64), num_cond).backward()
    assert v.grad is not None
    touched = v.grad.abs().sum(dim=(0, 1, 3, 4)) > 0
    assert touched.tolist() == [frame >= num_cond for frame in range(5)]


def test_loss_equals_the_weighted_mean_written_out() -> None:
    z, eps = clips()
    v, _ = clips(1)
    weight = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)
    total = 0.0
    for sample in range(3):
        errors = [
            float(v[sample, c, t, y, x] - (z[sample, c, t, y, x] - eps[sample, c, t, y, x])) ** 2
            for c in range(4)
            for t in range(1, 5)
            for y in range(2)
            for x in range(2)
        ]
        total += float(weight[sample]) * sum(errors) / len(errors)
    # The loss is computed in float32 whatever the inputs are.
    assert float(flow_matching_loss(v, z, eps, weight, 1)) == pytest.approx(total / 3, rel=1e-6)


def test_true_velocity_has_no_loss() -> None:
    z, eps = clips()
    assert float(flow_matching_loss(z - eps, z, eps, torch.ones(3), 0)) == 0


def test_noisy_input_mixes_only_the_noisy_frames() -> None:
    z, eps = clips()
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    x_t, timestep = noisy_input(z, eps, t, None, 2)
    assert torch.equal(x_t[:, :, :2], z[:, :, :2])
    assert torch.equal(timestep[:, :2], torch.zeros(3, 2, dtype=torch.float64))
    assert torch.equal(timestep[:, 2:], 1000 * t[:, None].expand(3, 3))
    torch.testing.assert_close(x_t[1, :, 2:], 0.75 * z[1, :, 2:] + 0.25 * eps[1, :, 2:])
    assert torch.equal(x_t[0], z[0])
    assert torch.equal(x_t[2, :, 2:], eps[2, :, 2:])


def test_each_condition_frame_has_its_own_noise_level() -> None:
    z, eps = clips()
    level = torch.tensor([[0.0, 0.1], [0.2, 0.0], [0.1, 0.1]], dtype=torch.float64)
    x_t, timestep = noisy_input(z, eps, torch.full((3,), 0.5, dtype=torch.float64), level, 2)
    for sample in range(3):
        for frame in range(2):
            a = float(level[sample, frame])
            expected = (1 - a) * z[sample, :, frame] + a * eps[sample, :, frame]
            torch.testing.assert_close(x_t[sample, :, frame], expected)
    assert not timestep[:, :2].any()  # the model is not told about the noise
    assert torch.equal(perturb_condition(z, eps, torch.zeros(3, 5, dtype=torch.float64)), z)


def test_shift_moves_the_logit_of_time_by_its_logarithm() -> None:
    u = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    moved = torch.logit(draw_times(u, 3.0)) - torch.logit(u)
    torch.testing.assert_close(moved, torch.full_like(u, math.log(3.0)))


def test_weight_is_the_logit_normal_density() -> None:
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    weight = flow.logit_normal_weight(u)
    assert float(weight.mean()) == pytest.approx(1.0, abs=1e-4)
    # Its mean of any function equals the mean over sigmoid of a standard normal.
    normal = torch.special.ndtri(u)
    assert float((weight * u.square()).mean()) == pytest.approx(
        float(torch.sigmoid(normal).square().mean()), abs=1e-4
    )


def test_shift_grows_with_the_number_of_noisy_tokens() -> None:
    def shift(tokens: int) -> float:
        return flow.resolution_shift(tokens, reference_shift=3.0, reference_tokens=80, maximum=12.0)

    assert shift(80) == 3.0
    assert shift(320) == pytest.approx(6.0)
    assert shift(16) == pytest.approx(3.0 / math.sqrt(5))
    assert shift(1) == 1.0
    assert shift(100_000) == 12.0
