"""Advantages against numpy written from Eq. 9-10, their invariances, and 1, 2 and 4 ranks."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from longtake.grpo.advantage import (
    advantages,
    group_statistics,
    max_group_std,
)

NAN = float("nan")
WEIGHTS = (1.0, 0.5, 2.0)


def random_rewards(rewards: int = 3, prompts: int = 8, members: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rewards, prompts, members, generator=generator)


def by_hand(reward: np.ndarray, weights: tuple[float, ...]) -> np.ndarray:
    """Algorithm 1 l.19-30, one scalar at a time; NaN members are left out."""
    num_rewards, num_prompts, num_members = reward.shape
    total = np.zeros((num_prompts, num_members))
    for k in range(num_rewards):
        rows = [reward[k, p][~np.isnan(reward[k, p])] for p in range(num_prompts)]
        largest = max((float(np.std(row)) for row in rows if len(row) > 1), default=0.0)
        for p in range(num_prompts):
            for g in range(num_members):
                value = reward[k, p, g]
                if np.isnan(value) or len(rows[p]) < 2 or largest == 0:
                    continue
                total[p, g] += weights[k] * (value - np.mean(rows[p])) / largest
    return total


@pytest.mark.parametrize("masked", [False, True])
def test_matches_algorithm_1(masked: bool) -> None:
    reward = random_rewards()
    if masked:
        reward[0, 0, 1] = NAN
        reward[1, 2, :3] = NAN  # one scored member left
        reward[2, 3] = NAN
    out = advantages(reward, WEIGHTS)
    expected = by_hand(reward.double().numpy(), WEIGHTS)
    np.testing.assert_allclose(out.advantage_PG.numpy(), expected, rtol=1e-6, atol=1e-7)
    assert out.advantage_PG.dtype == torch.float32


def test_group_scale_has_unit_population_std() -> None:
    out = advantages(random_rewards().double(), (1.0, 0.0, 0.0), scale="group")
    std = out.advantage_PG.std(1, correction=0)
    torch.testing.assert_close(std, torch.ones_like(std))


def test_max_group_scale_bounds_every_group_by_the_widest() -> None:
    out = advantages(random_rewards().double(), (0.0, 1.0, 0.0))
    std = out.advantage_PG.std(1, correction=0)
    assert float(std.max()) == pytest.approx(1.0)
    assert int((std < 0.999).sum()) == 7
    assert torch.equal(out.max_std_K, out.std_KP.amax(1))


def test_batch_and_none_scales() -> None:
    reward = random_rewards().double()
    centred = reward[0] - reward[0].mean(1, keepdim=True)
    none = advantages(reward, (1.0, 0.0, 0.0), scale="none").advantage_PG
    torch.testing.assert_close(none, centred)
    batch = advantages(reward, (1.0, 0.0, 0.0), scale="batch").advantage_PG
    torch.testing.assert_close(batch, centred / reward[0].std(correction=0))


def test_total_is_the_weighted_sum_of_the_rewards_parts() -> None:
    out = advantages(random_rewards().double(), WEIGHTS)
    total = torch.einsum("k,kpg->pg", torch.tensor(WEIGHTS).double(), out.per_reward_KPG)
    torch.testing.assert_close(out.advantage_PG, total)
    torch.testing.assert_close(out.advantage_PG.sum(1), torch.zeros(8).double(), atol=1e-12, rtol=0)


def test_weighted_rewards_scales_the_sum() -> None:
    reward = random_rewards().double()
    reward[0] *= 100  # dominates a sum of rewards, not a sum of advantages
    total = torch.einsum("k,kpg->pg", torch.tensor(WEIGHTS).double(), reward)
    expected = (total - total.mean(1, keepdim=True)) / total.std(1, correction=0).max()
    out = advantages(reward, WEIGHTS, aggregation="weighted_rewards")
    torch.testing.assert_close(out.advantage_PG, expected)
    assert out.max_std_K.shape == (3,)
    other = advantages(reward, WEIGHTS).advantage_PG
    assert not torch.allclose(out.advantage_PG, other, atol=1e-2)


def test_weighted_rewards_leaves_out_incomplete_samples() -> None:
    reward = random_rewards()
    reward[1, 0, 2] = NAN
    out = advantages(reward, WEIGHTS, aggregation="weighted_rewards")
    assert out.advantage_PG[0, 2] == 0
    assert not out.valid_PG[0, 2]
    unused = advantages(reward, (1.0, 0.0, 2.0), aggregation="weighted_rewards")
    assert unused.valid_PG.all()


def test_unscored_member_enters_no_statistic() -> None:
    reward = random_rewards()
    reward[0, 0, 3] = NAN
    mean, std, count = group_statistics(reward.double())
    assert count[0, 0] == 3
    kept = reward[0, 0, :3].double()
    assert float(mean[0, 0]) == pytest.approx(float(kept.mean()), rel=1e-12)
    assert float(std[0, 0]) == pytest.approx(float(kept.std(correction=0)), rel=1e-12)
    out = advantages(reward, (1.0, 0.0, 0.0))
    assert out.per_reward_KPG[0, 0, 3] == 0
    assert out.valid_PG.all()  # the other two rewards scored the sample
    assert not out.advantage_PG.isnan().any()


def test_infinite_reward_is_unscored_too() -> None:
    reward = random_rewards()
    as_nan = reward.clone()
    reward[0, 0, 3], as_nan[0, 0, 3] = torch.inf, NAN
    got = advantages(reward, WEIGHTS).advantage_PG
    assert torch.equal(got, advantages(as_nan, WEIGHTS).advantage_PG)


def test_groups_below_two_members_and_dead_rewards_give_zero() -> None:
    reward = torch.full((2, 2, 3), NAN)
    reward[0, 0, 0] = 5.0
    out = advantages(reward, (1.0, 1.0))
    assert torch.equal(out.advantage_PG, torch.zeros(2, 3))
    assert not out.valid_PG.any()
    assert torch.equal(out.max_std_K, torch.zeros(2))
    assert out.std_KP.isnan().all()


@pytest.mark.parametrize("scale", ["max_group", "group", "batch", "none"])
@pytest.mark.parametrize("members", [3, 4, 7])
def test_11_constant_groups_give_exactly_zero(scale: str, members: int) -> None:
    reward = torch.tensor([[0.1], [0.7]], dtype=torch.float64).expand(1, 2, members)
    out = advantages(reward, (1.0,), scale=scale)
    assert torch.equal(out.advantage_PG, torch.zeros(2, members).double())


@pytest.mark.parametrize("scale", ["max_group", "group", "none"])
def test_11_shift_of_integer_rewards_is_bitwise_invisible(scale: str) -> None:
    generator = torch.Generator().manual_seed(3)
    reward = torch.randint(-9, 9, (3, 8, 4), generator=generator).float()
    shift = torch.tensor([7.0, -1000.0, 3.0]).view(3, 1, 1)
    base = advantages(reward, WEIGHTS, scale=scale).advantage_PG
    assert torch.equal(base, advantages(reward + shift, WEIGHTS, scale=scale).advantage_PG)


@pytest.mark.parametrize("scale", ["max_group", "group", "batch"])
def test_power_of_two_units_are_bitwise_invisible(scale: str) -> None:
    reward = random_rewards()
    base = advantages(reward, WEIGHTS, scale=scale).advantage_PG
    assert torch.equal(base, advantages(reward * 1024, WEIGHTS, scale=scale).advantage_PG)
    flipped = advantages(-reward, WEIGHTS, scale=scale).advantage_PG
    assert torch.equal(flipped, -base)


def test_any_shift_and_unit_agree_to_rounding() -> None:
    reward = random_rewards().double()
    base = advantages(reward, WEIGHTS).advantage_PG
    torch.testing.assert_close(advantages(3.3 * reward - 17.1, WEIGHTS).advantage_PG, base)


def test_prompts_permute_with_the_result() -> None:
    reward = random_rewards()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    base = advantages(reward, WEIGHTS).advantage_PG
    assert torch.equal(advantages(reward[:, order], WEIGHTS).advantage_PG, base[order])


def test_max_group_std_without_prompts() -> None:
    assert torch.equal(max_group_std(torch.empty(2, 0)), torch.zeros(2))


def test_one_member_needs_no_std() -> None:
    one = torch.tensor([[[3.0], [4.0]]])
    assert torch.equal(advantages(one, (1.0,), scale="none").advantage_PG, torch.zeros(2, 1))


def test_15_ranks_do_not_change_advantages(tmp_path: Path) -> None:
    """4 ranks (one without prompts) and 2 ranks equal 1 process bit for bit."""
    reward = random_rewards(prompts=8)
    reward[0, 0, 1] = NAN
    reward[1, 5] = NAN
    torch.save(reward, tmp_path / "reward.pt")
    worker = Path(__file__).with_name("rank_worker.py")
    done = subprocess.run(
        [sys.executable, str(worker), str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    alone = {scale: advantages(reward, WEIGHTS, scale=scale) for scale in ("max_group", "batch")}
    results = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(4)]
    for splits in ("ranks-4", "ranks-4-reversed", "ranks-2"):
        gathered = torch.full((8, 4), NAN)
        batch = torch.full((8, 4), NAN)
        for result in results:
            if splits in result:
                part = result[splits]
                gathered[part["rows"]] = part["max_group"]
                batch[part["rows"]] = part["batch"]
                assert torch.equal(part["max_std"], alone["max_group"].max_std_K)
        assert torch.equal(gathered, alone["max_group"].advantage_PG), splits
        torch.testing.assert_close(batch, alone["batch"].advantage_PG, msg=splits)
