"""Rollout: counted evaluations, exact sharing, and independence of the batch split."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from longtake.core.checkpoint import Checkpoint
from longtake.grpo.config import GRPOConfig, table9
from longtake.grpo.plan import PromptTask, Ranks, plan_update, read_prompts
from longtake.grpo.rollout import Policy, Rollout
from longtake.grpo.trainer import mean_rollout_evaluations, rollout_evaluations
from longtake.runtime.errors import UserError

Load = Callable[[GRPOConfig], Checkpoint]
Count = Callable[..., Any]


def rollout_of(config: GRPOConfig, model: Checkpoint) -> Rollout:
    schedule = model.sigmas(config.rollout.num_steps, config.rollout.shift)
    return Rollout(Policy(model, config), schedule, config, torch.device("cpu"))


def tasks_of(config: GRPOConfig, update: int = 0) -> list[PromptTask]:
    return plan_update(config, read_prompts(Path(config.prompts)), update)


SHAPE = (4, 2, 4, 4)


def test_closed_form_of_the_report_setting() -> None:
    assert mean_rollout_evaluations(table9()) == 53.5
    assert rollout_evaluations(16, 3, 4, shared=False) == 64
    # Counted by hand: t' = 2 of T = 4, G = 3: two prefix steps, one shared velocity, 3 x 1 suffix.
    assert rollout_evaluations(4, 2, 3, shared=True) == 2 + 1 + 3


@pytest.mark.parametrize("cfg, branches", [("cfg_zero", 2), ("none", 1)])
def test_a_hook_counts_the_closed_form_at_every_critical_step(
    micro_config: GRPOConfig, load_micro: Load, count_forwards: Count, cfg: str, branches: int
) -> None:
    config = micro_config.replace(
        rollout=micro_config.rollout.replace(num_steps=16, cfg=cfg),
        sde=micro_config.sde.replace(num_sde_steps=6),
    )
    model = load_micro(config)
    rollout = rollout_of(config, model)
    counts = []
    for t_index in range(6):
        task = replace(tasks_of(config)[0], t_index=t_index)
        with count_forwards(model.dit) as samples:
            rollout.sample(task, SHAPE)
        counts.append(sum(samples) / branches)
        assert counts[-1] == rollout_evaluations(16, t_index, 4, shared=True)
    assert sum(counts) / 6 == 53.5


def test_19_prefix_shared_samples_equal_naive_samples_bitwise(
    micro_config: GRPOConfig, load_micro: Load, count_forwards: Count
) -> None:
    model = load_micro(micro_config)
    naive = micro_config.replace(sde=micro_config.sde.replace(share_prefix=False))
    for task in tasks_of(micro_config):
        shared = rollout_of(micro_config, model).sample(task, SHAPE)
        with count_forwards(model.dit) as samples:
            each = rollout_of(naive, model).sample(task, SHAPE)
        assert torch.equal(shared.z, each.z)
        assert torch.equal(shared.v_old, each.v_old)
        assert sum(samples) / 2 == rollout_evaluations(8, task.t_index, 4, shared=False)


def test_members_share_everything_up_to_the_critical_step(
    micro_config: GRPOConfig, load_micro: Load
) -> None:
    model = load_micro(micro_config)
    rollout = rollout_of(micro_config, model)
    task = tasks_of(micro_config)[0]
    group = rollout.sample(task, SHAPE)
    distances = torch.pdist(group.z.flatten(1))
    assert distances.min() > 1e-3  # the noise at t' tells them apart
    # With the noise switched off the members are one deterministic trajectory.
    silent = rollout_of(micro_config, model)
    silent.member_noise = lambda task, member, shape: torch.zeros(1, *shape[1:])  # type: ignore
    assert torch.pdist(silent.sample(task, SHAPE).z.flatten(1)).max() < 1e-5


def test_samples_do_not_depend_on_the_company(micro_config: GRPOConfig, load_micro: Load) -> None:
    model = load_micro(micro_config)
    rollout = rollout_of(micro_config, model)
    tasks = tasks_of(micro_config)
    together = [rollout.sample(task, SHAPE).z for task in tasks]
    alone = [rollout_of(micro_config, model).sample(task, SHAPE).z for task in reversed(tasks)]
    for a, b in zip(together, reversed(alone), strict=True):
        assert torch.equal(a, b)


def test_micro_batch_changes_rounding_only(micro_config: GRPOConfig, load_micro: Load) -> None:
    model = load_micro(micro_config)
    task = tasks_of(micro_config)[0]
    whole = rollout_of(micro_config, model).sample(task, SHAPE)
    for size in (1, 3):
        rollout = micro_config.rollout.replace(micro_batch=size)
        part = rollout_of(micro_config.replace(rollout=rollout), model).sample(task, SHAPE)
        assert (whole.z - part.z).abs().max() < 1e-4 * whole.z.abs().max()
        assert torch.equal(whole.v_old, part.v_old)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ranks_split_a_plan_without_changing_it(micro_config: GRPOConfig, size: int) -> None:
    tasks = tasks_of(micro_config, update=7)
    shares = [Ranks(rank=r, size=size).mine(tasks) for r in range(size)]
    assert [task for share in shares for task in share] == tasks


def test_every_prompt_is_seen_once_an_epoch(micro_config: GRPOConfig) -> None:
    config = micro_config.replace(prompts_per_update=2)
    seen = [task.prompt_id for update in range(5) for task in tasks_of(config, update)]
    assert sorted(seen[:5]) == sorted(seen[5:]) == list(range(5))
    other = [t.prompt_id for u in range(5) for t in tasks_of(config.replace(seed=1), u)]
    assert seen != other


@pytest.mark.parametrize("strategy", ["uniform", "stratified"])
def test_critical_steps_are_uniform_over_the_first_steps(
    micro_config: GRPOConfig, strategy: str
) -> None:
    sde = micro_config.sde.replace(num_sde_steps=4, timestep_strategy=strategy)
    config = micro_config.replace(sde=sde, prompts_per_update=8)
    draws = torch.tensor([[t.t_index for t in tasks_of(config, u)] for u in range(400)])
    counts = torch.bincount(draws.flatten(), minlength=4).double() / draws.numel()
    assert draws.max() == 3
    assert (counts - 0.25).abs().max() < 0.03  # 4 standard deviations of the uniform draw
    spread = torch.stack([torch.bincount(row, minlength=4) for row in draws]).double().std(0)
    assert (spread.max() < 1e-9) == (strategy == "stratified")


def test_size_buckets_never_mix_in_a_group(micro_config: GRPOConfig) -> None:
    rollout = micro_config.rollout.replace(size_buckets=["32x32", "32x48"])
    config = micro_config.replace(rollout=rollout)
    sizes = {(t.height, t.width) for u in range(20) for t in tasks_of(config, u)}
    assert sizes == {(32, 32), (32, 48)}


@pytest.mark.parametrize(
    "content, words",
    [(b" \n\n", "no prompts"), (b"caf\xe9\n", "UTF-8")],
)
def test_unusable_prompt_files_say_why(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_prompts(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "absent.txt")
