"""The SDE step against textbook Gaussians, autograd, the report's formulas and Monte Carlo.

Numbers in the test names are the identities of the maths notes (section 2.6). Reference formulas
are written here in the report's own convention, u = eps - x0, never through the code under test.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from longtake.core.flow import euler_step, sigmas
from longtake.grpo import sde

# (t, dt, sigma): clipped, unclipped, weak and strong noise, the first and the last step.
STEPS = [
    (1.0, 0.0059, 5.85),
    (0.97, 0.011, 4.3),
    (0.8, 0.05, 2.0),
    (0.5, 0.1, 0.3),
    (0.2, 0.2, 0.05),
]
TAU = 0.45


def report_mean(x: Tensor, u: Tensor, t: float, dt: float, sigma: float) -> Tensor:
    """Appendix A.1.2 for u = eps - x0: x - dt * (u + sigma^2/(2t) * (x + (1-t) u))."""
    return x - dt * (u + sigma**2 / (2 * t) * (x + (1 - t) * u))


def draw(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, v, eps = torch.randn(3, *shape, dtype=torch.float64, generator=generator)
    return x, v, eps


def table9_step(index: int, **options: object) -> sde.StepCoefficients:
    return sde.step_coefficients(sigmas(16, 12.0).double(), index, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("t", "dt", "sigma"), STEPS)
def test_01_score_is_plus_c_eps(t: float, dt: float, sigma: float) -> None:
    x, v_old, eps = draw(3, 7)
    x_next = sde.sde_step(x, v_old, t, dt, sigma, eps)
    v = v_old.clone().requires_grad_()
    mean = report_mean(x, -v, t, dt, sigma)
    log_p = Normal(mean, sigma * math.sqrt(dt)).log_prob(x_next).sum()
    (score,) = torch.autograd.grad(log_p, v)
    torch.testing.assert_close(score, sde.coefficient(t, dt, sigma) * eps, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("t", "dt", "sigma"), STEPS)
def test_02_log_ratio_is_the_difference_of_log_densities(t: float, dt: float, sigma: float) -> None:
    x, v_old, eps = draw(3, 7)
    dv = 0.3 * draw(3, 7, seed=1)[0]
    std = sigma * math.sqrt(dt)
    x_next = report_mean(x, -v_old, t, dt, sigma) + std * eps
    new = Normal(report_mean(x, -(v_old + dv), t, dt, sigma), std).log_prob(x_next).sum(1)
    old = Normal(report_mean(x, -v_old, t, dt, sigma), std).log_prob(x_next).sum(1)
    c = sde.coefficient(t, dt, sigma)
    torch.testing.assert_close(sde.log_ratio(eps, dv, c, "sum"), new - old, rtol=1e-8, atol=1e-9)
    mean = sde.log_ratio(eps, dv, c, "mean")
    torch.testing.assert_close(mean, (new - old) / 7, rtol=1e-8, atol=1e-9)


def test_02_log_ratio_shares_one_velocity_over_the_group() -> None:
    _, dv, _ = draw(1, 5)
    _, _, eps = draw(4, 5, seed=2)
    shared = sde.log_ratio(eps, dv, 0.3)
    assert torch.equal(shared, sde.log_ratio(eps, dv.expand(4, 5), 0.3))


@pytest.mark.parametrize(("t", "dt", "sigma"), STEPS)
def test_03_kl_is_the_gaussian_kl_and_eq_25(t: float, dt: float, sigma: float) -> None:
    x, v, v_ref = draw(3, 7)
    std = sigma * math.sqrt(dt)
    ours = sde.kl(v - v_ref, sde.coefficient(t, dt, sigma), "sum")
    new = Normal(report_mean(x, -v, t, dt, sigma), std)
    ref = Normal(report_mean(x, -v_ref, t, dt, sigma), std)
    torch.testing.assert_close(ours, kl_divergence(new, ref).sum(1), rtol=1e-8, atol=1e-10)
    eq_25 = dt / 2 * (sigma * (1 - t) / (2 * t) + 1 / sigma) ** 2 * (v - v_ref).square().sum(1)
    torch.testing.assert_close(ours, eq_25, rtol=1e-12, atol=0)


@pytest.mark.parametrize("a", [0.3, 0.7, 1.0, math.sqrt(2)])
@pytest.mark.parametrize(("t", "dt"), [(0.95, 0.02), (0.6, 0.1), (0.1, 0.1)])
def test_04_unclipped_coefficient(t: float, dt: float, a: float) -> None:
    sigma = sde.noise_scale(t, dt, a=a, tau=math.inf)
    kappa = math.sqrt(dt * (1 - t) / t)
    assert sde.coefficient(t, dt, sigma) / kappa == pytest.approx(1 / a + a / 2, rel=1e-12)
    if a == 1:
        assert sde.coefficient(t, dt, sigma) / kappa == pytest.approx(1.5, rel=1e-12)
        # Eq. 36-40: with nothing clipped, every reweighting is the report's.
        expected = (1 / kappa, 1 / kappa**2)
        for mode in ("exact", "sigma", "paper"):
            assert sde.reweight(t, dt, sigma, mode=mode) == pytest.approx(expected, rel=1e-12)


# Table 9 (T=16, shift 12, a=1, tau=.45), from the maths notes, section 2.4:
# t, dt, unclipped std r, sigma, c, paper lambda_policy, exact lambda_policy, exact lambda_KL.
TABLE = [
    (1.0, 0.00591, math.inf, 5.85, 0.01314, None, 114.2, 13041),
    (0.99409, 0.00673, 1.064, 5.48, 0.01630, 158.0, 92.0, 8469),
    (0.98736, 0.00774, 0.777, 5.12, 0.02008, 100.4, 74.7, 5580),
    (0.97962, 0.00899, 0.657, 4.75, 0.02466, 73.1, 60.8, 3700),
    (0.97063, 0.01057, 0.591, 4.38, 0.03030, 55.9, 49.5, 2451),
    (0.96006, 0.01261, 0.551, 4.01, 0.03737, 43.7, 40.1, 1611),
]


@pytest.mark.parametrize("index", range(6))
def test_05_table_of_the_truncated_schedule(index: int) -> None:
    t, dt, r, sigma, c, paper, exact, exact_kl = TABLE[index]
    step = table9_step(index)
    assert step.std == pytest.approx(TAU, rel=1e-15)
    assert round(step.t, 5) == t
    assert round(step.dt, 5) == dt
    assert round(step.sigma, 2) == sigma
    assert round(step.c, 5) == c
    assert round(step.lambda_policy, 1) == exact
    assert round(step.lambda_kl) == exact_kl
    if paper is None:
        return
    as_printed = table9_step(index, mode="paper")
    assert round(as_printed.lambda_policy, 1) == paper
    unclipped = math.sqrt(step.t * step.dt / (1 - step.t))
    assert unclipped == pytest.approx(r, abs=6e-4)
    gain = unclipped / TAU + TAU / (2 * unclipped)
    assert as_printed.lambda_policy * step.c == pytest.approx(gain, rel=1e-12)
    assert as_printed.lambda_kl * step.c**2 == pytest.approx(gain**2, rel=1e-12)


def test_05_truncation_is_active_up_to_step_14() -> None:
    stds = [table9_step(index).std for index in range(16)]
    assert stds[:15] == pytest.approx([TAU] * 15, rel=1e-15)
    assert stds[15] < TAU


@pytest.mark.parametrize("index", [0, 1, 5, 14, 15])
@pytest.mark.parametrize("kind", ["flow_truncated", "constant"])
def test_06_exact_reweighting_gives_eq_3_and_42(index: int, kind: str) -> None:
    step = table9_step(index, kind=kind)
    assert step.lambda_policy * step.c == pytest.approx(3 / 2, rel=1e-12)
    assert step.lambda_kl * step.c**2 == pytest.approx(9 / 4, rel=1e-12)


def test_06_other_modes_are_finite_at_t_1() -> None:
    paper = table9_step(0, mode="paper")
    assert paper.lambda_policy * paper.c == pytest.approx(2.22, abs=5e-3)
    assert paper.lambda_kl * paper.c**2 == pytest.approx(4.9, abs=5e-2)
    by_sigma = [table9_step(index, mode="sigma") for index in range(6)]
    gains = [step.lambda_policy * step.c for step in by_sigma]
    assert gains == pytest.approx([1.000, 1.089, 1.168, 1.234, 1.290, 1.334], abs=5e-4)
    weights = [step.lambda_policy for step in by_sigma]
    assert weights == pytest.approx([76.1, 66.8, 58.1, 50.1, 42.6, 35.7], abs=0.05)
    none = table9_step(0, mode="none")
    assert (none.lambda_policy, none.lambda_kl) == (1.0, 1.0)


@pytest.mark.parametrize(("t", "dt", "sigma"), STEPS)
def test_07_sign_conventions_agree(t: float, dt: float, sigma: float) -> None:
    x, v, _ = draw(3, 7)
    ours = sde.sde_mean(x, v, t, dt, sigma)
    torch.testing.assert_close(ours, report_mean(x, -v, t, dt, sigma), rtol=1e-12, atol=1e-12)


def test_08_no_noise_is_the_euler_step() -> None:
    x, v, eps = draw(3, 7)
    assert torch.equal(sde.sde_step(x, v, 0.6, 0.1, 0.0, eps), euler_step(x, v, 0.1))
    near = sde.sde_step(x, v, 0.6, 0.1, 1e-9, eps)
    torch.testing.assert_close(near, euler_step(x, v, 0.1), rtol=0, atol=1e-8)


def gaussian_gain(t: float, data_std: float) -> float:
    """E[x0 - eps | x_t] = gain * x_t for x0 ~ N(0, data_std^2)."""
    variance = (1 - t) ** 2 * data_std**2 + t**2
    return ((1 - t) * data_std**2 - t) / variance


@pytest.mark.parametrize("index", [0, 2, 5, 15])
def test_17_marginal_std_of_a_million_samples(index: int) -> None:
    data_std, count = 0.7, 1_000_000
    step = table9_step(index)
    std_t = math.hypot((1 - step.t) * data_std, step.t)
    generator = torch.Generator().manual_seed(index)
    x, eps = torch.randn(2, count, generator=generator, dtype=torch.float32)
    x = std_t * x
    k = gaussian_gain(step.t, data_std)
    x_next = sde.sde_step(x, k * x, step.t, step.dt, step.sigma, eps)
    # E[x0 | x] = x + t v and E[eps | x] = x - (1-t) v, so the drift of x' is linear in x.
    slope = 1 + step.dt * (k - step.sigma**2 / (2 * step.t) * (1 - (1 - step.t) * k))
    expected = math.sqrt(slope**2 * std_t**2 + step.std**2)
    standard_error = expected / math.sqrt(2 * count)
    assert float(x_next.double().std()) == pytest.approx(expected, abs=4 * standard_error)


def test_17_small_steps_keep_the_marginal() -> None:
    data_std, t, sigma = 0.7, 0.7, 1.5
    k = gaussian_gain(t, data_std)
    variance = (1 - t) ** 2 * data_std**2 + t**2
    errors = []
    for dt in (1e-3, 5e-4):
        one = torch.ones(1, dtype=torch.float64)
        slope = float(sde.sde_mean(one, k * one, t, dt, sigma))
        got = slope**2 * variance + sigma**2 * dt
        target = (1 - t + dt) ** 2 * data_std**2 + (t - dt) ** 2
        errors.append(abs(got - target))
    # The local error is second order; a wrong score term would leave a first-order one.
    assert errors[0] < 1e-5
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    ("kind", "a", "expected"),
    [
        ("ode", 1.0, 0.697),
        ("flow_truncated", 1.0, 0.700),
        ("unbounded", 1.0, 0.805),
        ("unbounded", 0.7, 0.724),
    ],
)
def test_17_truncation_keeps_the_final_spread(kind: str, a: float, expected: float) -> None:
    """16 steps, shift 12, unit data: the spread after one SDE step at t'=1.

    The expected numbers are the notes' simulation, good to about 0.3 %; 15 % separates the cases.
    """
    schedule = sigmas(16, 12.0).double()
    variance = 1.0
    one = torch.ones(1, dtype=torch.float64)
    for index in range(16):
        t = float(schedule[index])
        dt = t - float(schedule[index + 1])
        noise = 0.0
        if index == 1 and kind != "ode":
            noise = sde.noise_scale(t, dt, a=a, tau=math.inf if kind == "unbounded" else TAU)
        slope = float(sde.sde_mean(one, gaussian_gain(t, 1.0) * one, t, dt, noise))
        variance = slope**2 * variance + noise**2 * dt
    assert math.sqrt(variance) == pytest.approx(expected, rel=3e-3)


def test_half_precision_is_widened() -> None:
    x, v, eps = (tensor.bfloat16() for tensor in draw(3, 7))
    out = sde.sde_step(x, v, 0.9, 0.01, 3.0, eps)
    assert out.dtype == torch.float32
    wide = sde.sde_step(x.double(), v.double(), 0.9, 0.01, 3.0, eps.double())
    torch.testing.assert_close(out.double(), wide, rtol=1e-5, atol=1e-6)


def test_constant_kind_is_the_amplitude() -> None:
    assert sde.noise_scale(1.0, 0.1, a=0.3, kind="constant") == 0.3
