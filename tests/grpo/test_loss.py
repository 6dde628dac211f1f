"""The single vector-Jacobian product against autograd of textbook Gaussians, and a toy policy.

Numbers in the test names are the identities of the maths notes (section 2.6).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from longtake.core.flow import euler_step, sigmas
from longtake.core.guidance import cfg_zero
from longtake.grpo.advantage import advantages
from longtake.grpo.loss import policy_cotangent
from longtake.grpo.sde import StepCoefficients, sde_mean, sde_step, step_coefficients

Loss = Callable[..., Tensor]

SHAPE = (1, 2, 3, 4, 4)  # one prompt's velocity [1, C, T, H, W]
GROUP = 5
OPTIONS = [
    {},
    {"beta": 0.3},
    {"epsilon": 0.02},
    {"epsilon": 0.02, "beta": 0.3, "policy_weight": 0.7},
    {"ratio": "sum", "beta": 0.3},
    {"ratio": "score", "beta": 0.3},
]


def step_at(index: int = 2, mode: str = "exact") -> StepCoefficients:
    return step_coefficients(sigmas(16, 12.0).double(), index, mode=mode)


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def group(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """v_old, eps of the members, advantages."""
    eps = normal(GROUP, *SHAPE[1:], seed=seed)
    advantage = torch.tensor([1.3, -0.4, 0.9, -1.7, 0.1]).double()
    return normal(*SHAPE, seed=seed + 1), eps, advantage


def textbook_loss(
    v: Tensor,
    v_old: Tensor,
    v_ref: Tensor,
    eps: Tensor,
    advantage: Tensor,
    step: StepCoefficients,
    *,
    epsilon: float | None = None,
    policy_weight: float = 1.0,
    beta: float = 0.0,
    ratio: str = "mean",
) -> Tensor:
    """Eq. 43 from densities of Normal(mu_theta, std) at the sampled x', without c."""

    def transition(velocity: Tensor) -> Normal:
        # Appendix A.1.2, for u = -velocity.
        x = normal(*SHAPE, seed=99)
        u = -velocity
        drift = u + step.sigma**2 / (2 * step.t) * (x + (1 - step.t) * u)
        return Normal(x - step.dt * drift, step.std)

    def reduce(values: Tensor) -> Tensor:
        return values.flatten(1).sum(1) if ratio == "sum" else values.flatten(1).mean(1)

    x_next = transition(v_old).mean + step.std * eps
    log_r = reduce(transition(v).log_prob(x_next) - transition(v_old).log_prob(x_next))
    if ratio == "score":
        objective = log_r * advantage
    else:
        objective = log_r.exp() * advantage
        if epsilon is not None:
            clipped = log_r.exp().clamp(1 - epsilon, 1 + epsilon) * advantage
            objective = torch.minimum(objective, clipped)
    divergence = reduce(kl_divergence(transition(v), transition(v_ref))).mean()
    policy = policy_weight * step.lambda_policy * objective.mean()
    return beta * step.lambda_kl * divergence - policy


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("distance", [0.0, 0.5, 8.0])
@pytest.mark.parametrize("index", [0, 2, 15])
def test_10_single_vjp_is_the_autograd_gradient(
    group_loss: Loss, options: dict[str, object], distance: float, index: int
) -> None:
    step = step_at(index)
    v_old, eps, advantage = group()
    v_ref = normal(*SHAPE, seed=7)
    size = distance if options.get("ratio") != "sum" else distance / 10
    v = (v_old + size * normal(*SHAPE, seed=8)).requires_grad_()
    loss = textbook_loss(v, v_old, v_ref, eps, advantage, step, **options)
    (expected,) = torch.autograd.grad(loss, v)
    cotangent, stats = policy_cotangent(eps, advantage, v_old, v, v_ref, step, **options)
    scale = float(expected.abs().max())
    torch.testing.assert_close(cotangent, expected, rtol=1e-8, atol=1e-8 * scale)
    assert stats.loss == pytest.approx(float(loss.detach()), rel=1e-8, abs=1e-8)

    oracle = group_loss(v, v_old, v_ref, eps, advantage, step, **options)
    assert float(oracle.detach()) == pytest.approx(float(loss.detach()), rel=1e-8, abs=1e-8)
    (gradient,) = torch.autograd.grad(oracle, v)
    torch.testing.assert_close(gradient, cotangent, rtol=1e-10, atol=1e-12 * scale)


def test_10_clip_is_exercised_in_both_directions() -> None:
    v_old, eps, _ = group()
    step = step_at()
    # Steps along the first member's noise: its ratio rises, and against the second's: it falls.
    v = v_old + 0.1 / step.c * (eps[:1] - eps[1:2])
    signs = torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0]).double()
    up, stats = policy_cotangent(eps, signs, v_old, v, None, step, epsilon=0.02)
    assert stats.ratio_max > 1.02
    assert stats.ratio_min < 0.98
    assert stats.clip_fraction == pytest.approx(2 / GROUP)
    assert torch.equal(up, torch.zeros_like(up))
    # With the signs swapped both members pull back, and nothing is clipped.
    back, stats = policy_cotangent(eps, -signs, v_old, v, None, step, epsilon=0.02)
    assert stats.clip_fraction == 0
    assert float(back.abs().max()) > 0


def test_10_streamed_noise_equals_the_stacked_noise() -> None:
    v_old, eps, advantage = group()
    v, v_ref, step = v_old + 0.3, v_old - 0.1, step_at()

    def regenerate() -> Iterator[Tensor]:
        for member in range(GROUP):
            yield normal(GROUP, *SHAPE[1:], seed=0)[member]

    stacked = policy_cotangent(eps, advantage, v_old, v, v_ref, step, beta=0.1)
    streamed = policy_cotangent(regenerate(), advantage, v_old, v, v_ref, step, beta=0.1)
    assert torch.equal(stacked[0], streamed[0])
    assert stacked[1] == streamed[1]
    with pytest.raises(ValueError, match="zip"):
        policy_cotangent(eps[:3], advantage, v_old, v, v_ref, step)


class Velocity(nn.Module):
    """A small guided velocity model: two branches and CFG-Zero*."""

    def __init__(self, channels: int = 2, *, detach_scale: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv3d(channels, 6, 3, padding=1), nn.Tanh(), nn.Conv3d(6, channels, 3, padding=1)
        ).double()
        self.cond = nn.Parameter(normal(1, channels, 1, 1, 1, seed=5))
        self.detach_scale = detach_scale

    def forward(self, x: Tensor) -> Tensor:
        return cfg_zero(self.net(x + self.cond), self.net(x), 4.0, detach_scale=self.detach_scale)


@pytest.mark.parametrize("detach_scale", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_09_shared_forward_equals_one_forward_per_member(
    group_loss: Loss, options: dict[str, object], detach_scale: bool
) -> None:
    model, step = Velocity(detach_scale=detach_scale), step_at()
    x = normal(*SHAPE, seed=3)
    _, eps, advantage = group()
    v_old = (model(x) + 0.3 * normal(*SHAPE, seed=4)).detach()
    v_ref = (v_old - 0.2 * normal(*SHAPE, seed=6)).detach()

    per_member = model(x.expand(GROUP, *SHAPE[1:]))
    loss = group_loss(per_member, v_old, v_ref, eps, advantage, step, **options)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    v = model(x)
    cotangent, _ = policy_cotangent(eps, advantage, v_old, v, v_ref, step, **options)
    got = torch.autograd.grad(v, list(model.parameters()), cotangent)
    for name, a, b in zip(dict(model.named_parameters()), got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * float(b.abs().max()), msg=name)


def test_11_equal_rewards_give_a_zero_gradient() -> None:
    v_old, eps, _ = group()
    reward = torch.full((2, 1, GROUP), 0.3)
    advantage = advantages(reward, (1.0, 1.0)).advantage_PG[0]
    cotangent, _ = policy_cotangent(eps, advantage, v_old, v_old + 0.1, None, step_at())
    assert torch.equal(cotangent, torch.zeros_like(cotangent))


def test_11_constant_reward_shift_leaves_the_gradient_bitwise_unchanged() -> None:
    v_old, eps, _ = group()
    reward = torch.tensor([[[3.0, -1.0, 4.0, 2.0], [0.0, 8.0, -2.0, 2.0]]])
    cotangents = []
    for shift in (0.0, 1000.0):
        advantage = advantages(reward + shift, (1.0,)).advantage_PG[0]
        cotangents.append(policy_cotangent(eps[:4], advantage, v_old, v_old, None, step_at())[0])
    assert torch.equal(*cotangents)
    assert float(cotangents[0].abs().max()) > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ratio", ["mean", "sum"])
def test_12_ratio_is_exactly_one_on_policy(dtype: torch.dtype, ratio: str) -> None:
    v_old, eps, advantage = group()
    v_old = v_old.to(dtype)
    cotangent, stats = policy_cotangent(
        eps, advantage, v_old, v_old.clone(), None, step_at(), ratio=ratio, epsilon=1e-6
    )
    assert (stats.ratio_mean, stats.ratio_min, stats.ratio_max) == (1.0, 1.0, 1.0)
    assert stats.clip_fraction == 0
    assert stats.kl is None
    assert cotangent.dtype == dtype
    assert cotangent.shape == v_old.shape


def test_20_untouched_adapter_has_exactly_zero_kl() -> None:
    base, down, up = normal(6, 6, seed=0), normal(2, 6, seed=1), torch.zeros(6, 2).double()
    x = normal(1, 6, seed=2)
    v_ref = x @ base.T
    v = v_ref + (x @ down.T) @ up.T
    cotangent, stats = policy_cotangent(
        normal(4, 6, seed=3), torch.zeros(4), v, v, v_ref, step_at(), beta=1.0
    )
    assert stats.kl == 0.0
    assert torch.equal(cotangent, torch.zeros_like(cotangent))


def test_eq_3_and_42_gradients_in_exact_mode() -> None:
    """Reweighted gradients are -(3/2) A eps and (9/4) (v - v_ref), at every critical timestep."""
    v_old, eps, _ = group()
    v_ref = normal(*SHAPE, seed=7)
    one = torch.ones(1).double()
    for index in range(6):
        step = step_at(index)
        options = {"ratio": "sum"}
        policy, _ = policy_cotangent(eps[:1], one, v_old, v_old, None, step, **options)
        torch.testing.assert_close(policy, -1.5 * eps[:1])
        divergence, _ = policy_cotangent(
            eps[:1], 0 * one, v_old, v_old, v_ref, step, beta=1.0, **options
        )
        torch.testing.assert_close(divergence, 2.25 * (v_old - v_ref))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


def test_13_large_groups_find_the_reward_gradient() -> None:
    """E[A eps] = w / |w| for a linear reward, in direction and in length."""
    dims, members = 16, 4096
    w = normal(dims, seed=0)
    eps = normal(members, dims, seed=1)
    v, step = normal(1, dims, seed=2), step_at()
    x_next = sde_step(normal(1, dims, seed=3), v, step.t, step.dt, step.sigma, eps)
    advantage = advantages((x_next @ w).view(1, 1, members), (1.0,)).advantage_PG[0]
    ascent = -policy_cotangent(eps, advantage, v, v, None, step, ratio="sum")[0][0] / 1.5
    assert float(cosine(ascent, w)) > 0.995
    assert float(ascent.norm()) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(("prompts", "dims"), [(1, 1000), (16, 1000), (1, 4000)])
def test_13_cosine_law_of_small_groups(prompts: int, dims: int) -> None:
    """Root mean square cosine to the gradient is about sqrt(n (G-1) / D) at G = 4."""
    members, repeats = 4, 400 // prompts
    w = torch.zeros(dims).double()
    w[0] = 1.0
    cosines = []
    for repeat in range(repeats):
        eps = normal(prompts, members, dims, seed=repeat)
        advantage = advantages((eps @ w).unsqueeze(0), (1.0,), scale="group").advantage_PG
        cosines.append(float(cosine(torch.einsum("pg,pgd->d", advantage, eps), w)))
    law = math.sqrt(prompts * (members - 1) / dims)
    rms = math.sqrt(sum(value**2 for value in cosines) / repeats)
    # Over several prompts E[chi_3]^2 / 3 = 0.85 of the square survives instead of 1.
    expected = law * (1.0 if prompts == 1 else math.sqrt(0.849))
    assert rms == pytest.approx(expected, rel=0.12)


def train_toy(policy_weight: float, updates: int = 25) -> tuple[float, float]:
    """Algorithm 1 on an 8-dimensional flow; returns the mean reward before and after."""
    dims, members, prompts, num_sde_steps = 8, 8, 4, 6
    schedule = sigmas(16, 3.0).double()
    direction = normal(dims, seed=0) / math.sqrt(dims)
    offset = torch.zeros(1, dims, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([offset], lr=0.02)

    def velocity(x: Tensor, t: float) -> Tensor:
        # Exact for standard normal data, plus the trained offset.
        return ((1 - 2 * t) / ((1 - t) ** 2 + t**2)) * x + offset

    def run(x: Tensor, start: int, stop: int) -> Tensor:
        with torch.no_grad():
            for i in range(start, stop):
                t = float(schedule[i])
                x = euler_step(x, velocity(x, t), t - float(schedule[i + 1]))
        return x

    def mean_reward() -> float:
        return float((run(normal(64, dims, seed=1), 0, 16) @ direction).mean())

    before = mean_reward()
    for update in range(updates):
        reward, groups = [], []
        for prompt in range(prompts):
            index = (update + prompt) % num_sde_steps
            step = step_coefficients(schedule, index)
            x = run(normal(1, dims, seed=1000 * update + prompt), 0, index)
            eps = normal(members, dims, seed=1000 * update + 500 + prompt)
            v_old = velocity(x, step.t).detach()
            branches = sde_step(x, v_old, step.t, step.dt, step.sigma, eps)
            reward.append(run(branches, index + 1, 16) @ direction)
            groups.append((x, eps, v_old, step))
        advantage_PG = advantages(torch.stack(reward).unsqueeze(0), (1.0,)).advantage_PG
        optimizer.zero_grad()
        for (x, eps, v_old, step), advantage in zip(groups, advantage_PG, strict=True):
            v = velocity(x, step.t)
            cotangent, _ = policy_cotangent(
                eps, advantage, v_old, v, None, step, policy_weight=policy_weight, ratio="sum"
            )
            v.backward(cotangent / prompts)
        optimizer.step()
    return before, mean_reward()


def test_14_reward_rises_and_falls_with_the_sign() -> None:
    before, after = train_toy(1.0)
    assert after > before + 0.3
    before, after = train_toy(-1.0)
    assert after < before - 0.3


def test_14_one_step_raises_the_probability_of_better_samples() -> None:
    v_old, eps, advantage = group()
    step = step_at()
    cotangent, _ = policy_cotangent(eps, advantage, v_old, v_old, None, step)
    v = v_old - 0.1 * cotangent
    x = normal(*SHAPE, seed=9)
    args = (step.t, step.dt, step.sigma)
    x_next = sde_step(x, v_old, *args, eps)
    new = Normal(sde_mean(x, v, *args), step.std).log_prob(x_next).flatten(1).sum(1)
    old = Normal(sde_mean(x, v_old, *args), step.std).log_prob(x_next).flatten(1).sum(1)
    assert float((advantage * (new - old)).sum()) > 0


def test_16_loss_does_not_depend_on_the_resolution() -> None:
    v_old, eps, advantage = group()
    v, v_ref, step = v_old + 0.2 * eps[:1], v_old - 0.1 * eps[1:2], step_at()
    small = policy_cotangent(eps, advantage, v_old, v, v_ref, step, beta=0.1)[1]
    double = [torch.cat([tensor] * 2, dim=-1) for tensor in (eps, v_old, v, v_ref)]
    large = policy_cotangent(double[0], advantage, double[1], double[2], double[3], step, beta=0.1)[
        1
    ]
    for name in ("loss", "policy_loss", "kl", "ratio_mean", "ratio_min", "ratio_max"):
        assert getattr(large, name) == pytest.approx(getattr(small, name), rel=1e-12), name


def test_weights_scale_their_terms() -> None:
    v_old, eps, advantage = group()
    v_ref, step = v_old - 0.1, step_at()
    plain = policy_cotangent(eps, advantage, v_old, v_old, v_ref, step, beta=0.5)[1]
    heavy = replace(step, lambda_policy=2 * step.lambda_policy, lambda_kl=3 * step.lambda_kl)
    scaled = policy_cotangent(eps, advantage, v_old, v_old, v_ref, heavy, beta=0.5)[1]
    assert plain.kl is not None
    assert scaled.kl == plain.kl
    assert scaled.policy_loss == pytest.approx(2 * plain.policy_loss)
    assert scaled.loss - scaled.policy_loss == pytest.approx(3 * (plain.loss - plain.policy_loss))
