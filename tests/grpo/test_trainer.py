"""The trainer: first ratio, forwards, gradients against the per-sample oracle, resume, failures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.core.checkpoint import Checkpoint
from longtake.core.lora import adapters_off, lora_parameters, lora_state_dict
from longtake.grpo.config import GRPOConfig
from longtake.grpo.plan import plan_update
from longtake.grpo.trainer import GRPOTrainer, NonFinite, rollout_evaluations
from longtake.runtime.errors import CheckpointError

Load = Callable[[GRPOConfig], Checkpoint]
Make = Callable[..., GRPOTrainer]


def test_first_update_has_ratio_exactly_one_and_zero_kl(
    micro_config: GRPOConfig, load_micro: Load, make_trainer: Make
) -> None:
    trainer = make_trainer(micro_config, load_micro(micro_config))
    first = trainer.update().record
    assert first["ratio/min"] == first["ratio/mean"] == first["ratio/max"] == 1.0
    assert first["kl"] == 0.0  # identity 20: the adapter starts as nothing
    second = trainer.update().record
    assert second["ratio/mean"] == 1.0  # one update per rollout stays on-policy
    assert second["kl"] is not None and second["kl"] > 0


def test_a_second_iteration_on_the_same_rollout_is_off_policy(
    micro_config: GRPOConfig, load_micro: Load, make_trainer: Make
) -> None:
    config = micro_config.replace(num_iterations=2)
    record = make_trainer(config, load_micro(config)).update().record
    assert record["ratio/mean"] != 1.0
    assert abs(record["ratio/mean"] - 1.0) < 0.1  # type: ignore[operator]


def test_forwards_are_one_policy_and_one_reference_a_group(
    micro_config: GRPOConfig,
    load_micro: Load,
    make_trainer: Make,
    count_forwards: Callable[..., Any],
) -> None:
    model = load_micro(micro_config)
    trainer = make_trainer(micro_config, model)
    with count_forwards(model.dit) as samples:
        update = trainer.update()
    rollout = sum(rollout_evaluations(8, t.t_index, 4, shared=True) for t in update.tasks)
    assert sum(samples) / 2 == rollout + 2 * 3  # two guidance branches
    counters = trainer.counters
    assert (counters.rollout, counters.rollout_naive) == (rollout, 3 * 4 * 8)
    assert (counters.train_forwards, counters.train_forwards_naive) == (6, 24)


@pytest.mark.parametrize("train_cfg, detach", [(True, True), (True, False), (False, True)])
def test_shared_forward_gradients_equal_per_sample_gradients(
    micro_config: GRPOConfig,
    load_micro: Load,
    make_trainer: Make,
    group_loss: Callable[..., Tensor],
    train_cfg: bool,
    detach: bool,
) -> None:
    """Identity 9 on the real model in float64: guidance, reference and KL included."""
    loss = micro_config.loss.replace(beta=0.3, train_cfg=train_cfg, detach_cfg_zero_scale=detach)
    config = micro_config.replace(loss=loss)
    model = load_micro(config)
    trainer = make_trainer(config, model)
    trainer.update()  # move the adapter away from its zero start
    _widen(model, trainer)
    task = plan_update(config, trainer.prompts, 1)[0]
    group = trainer.rollout.sample(task, (4, 2, 4, 4))
    advantage = torch.tensor([0.7, -1.1, 0.2, 0.9], dtype=torch.float64)
    trainer._backward(group, advantage)
    shared = {
        n: p.grad.clone() for n, p in lora_parameters(model.dit).items() if p.grad is not None
    }
    trainer.optimizer.zero_grad()

    k, prompt = group.coefficients, group.task.prompt
    eps = torch.cat([trainer.rollout.member_noise(group.task, g, group.x.shape) for g in range(4)])
    with adapters_off(model.dit), torch.no_grad():
        v_ref = trainer.policy.trained_velocity(group.x.expand(4, -1, -1, -1, -1), k.t, prompt)
    v = trainer.policy.trained_velocity(group.x.expand(4, -1, -1, -1, -1), k.t, prompt)
    scalar = group_loss(v, group.v_old, v_ref, eps.double(), advantage, k, beta=0.3)
    (scalar / config.prompts_per_update).backward()
    each = {n: p.grad for n, p in lora_parameters(model.dit).items()}
    assert shared.keys() == each.keys()
    for name, gradient in shared.items():
        reference = each[name]
        assert reference is not None
        assert (gradient - reference).abs().max() <= 1e-10 * max(1.0, float(reference.abs().max()))
    assert max(float(g.abs().max()) for g in shared.values()) > 1e-8


def _widen(model: Checkpoint, trainer: GRPOTrainer) -> None:
    """Run model and noise in float64; the float32 islands of the blocks follow their input."""
    torch.set_default_dtype(torch.float64)
    model.dit.double()
    model.text.double()
    trainer.policy.text.clear_cache()


@pytest.fixture(autouse=True)
def _float32_default():  # type: ignore[no-untyped-def]
    yield
    torch.set_default_dtype(torch.float32)


def test_reward_rises_and_falls_with_its_sign(
    micro_config: GRPOConfig, load_micro: Load, make_trainer: Make
) -> None:
    """Identity 14 end to end: the loss has the sign that raises the reward."""
    brightness = {}
    for sign in (1.0, -1.0):
        config = micro_config.replace(
            prompts_per_update=6,
            num_generations=8,
            rollout=micro_config.rollout.replace(micro_batch=8),
            optimizer=micro_config.optimizer.replace(learning_rate=5e-2),
        )
        trainer = make_trainer(config, load_micro(config), brightness={"sign": sign})
        rewards = [trainer.update().record["rewards/brightness/mean"] for _ in range(12)]
        brightness[sign] = [sign * reward for reward in rewards]  # type: ignore[operator]
    # The same noises in both runs, so the brightness of update i differs by training alone.
    assert brightness[1.0][0] == brightness[-1.0][0]
    rise = sum(brightness[1.0][-3:]) / 3 - sum(brightness[-1.0][-3:]) / 3
    assert rise > 1e-3


def test_the_average_stands_in_for_the_weights_and_leaves_them(
    micro_config: GRPOConfig, load_micro: Load, make_trainer: Make
) -> None:
    config = micro_config.replace(optimizer=micro_config.optimizer.replace(ema_decay=0.5))
    model = load_micro(config)
    trainer = make_trainer(config, model)
    first = lora_state_dict(model.dit)
    trainer.update()
    weights = lora_state_dict(model.dit)
    with trainer.averaged():
        inside = lora_state_dict(model.dit)
    assert_equal(lora_state_dict(model.dit), weights)
    for name, value in inside.items():
        torch.testing.assert_close(value, (first[name] + weights[name]) / 2)


def test_two_runs_with_one_seed_are_bitwise_equal(
    micro_config: GRPOConfig, load_micro: Load, make_trainer: Make
) -> None:
    results = []
    for _ in range(2):
        model = load_micro(micro_config)
        trainer = make_trainer(micro_config, model)
        records = [trainer.update().record for _ in range(3)]
        results.append((records, lora_state_dict(model.dit)))
    assert results[0][0] == results[1][0]
    assert_equal(results[0][1], results[1][1])


def test_18_resume_is_bitwise(
    micro_config: GRPOConfig, load_micro: Load, make_trainer: Make, tmp_path: Path
) -> None:
    config = micro_config.replace(
        optimizer=micro_config.optimizer.replace(ema_decay=0.9, warmup_updates=3)
    )
    model = load_micro(config)
    trainer = make_trainer(config, model)
    records = []
    for update in range(4):
        if update == 2:
            (tmp_path / "state").mkdir()
            trainer.save(tmp_path / "state")
        records.append(trainer.update().record)
    other_model = load_micro(config)
    other = make_trainer(config, other_model)
    other.load(tmp_path / "state")
    assert [other.update().record for _ in range(2)] == records[2:]
    assert_equal(lora_state_dict(model.dit), lora_state_dict(other_model.dit))
    assert trainer.average is not None and other.average is not None
    assert_equal(trainer.average, other.average)
    assert trainer.counters == other.counters


@pytest.mark.parametrize("damage", ["truncate", "delete", "garbage"])
def test_a_damaged_state_is_named(
    micro_config: GRPOConfig, load_micro: Load, make_trainer: Make, tmp_path: Path, damage: str
) -> None:
    model = load_micro(micro_config)
    trainer = make_trainer(micro_config, model)
    trainer.save(tmp_path)
    file = tmp_path / "state.pt"
    if damage == "delete":
        file.unlink()
    else:
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2] if damage == "truncate" else b"\0" * 100)
    with pytest.raises(CheckpointError, match="cannot be read"):
        trainer.load(tmp_path)


@pytest.mark.parametrize("broken, count", [("raise", 12), ("nan", 3)])
def test_a_failing_reward_leaves_samples_unscored_and_the_run_goes_on(
    micro_config: GRPOConfig, load_micro: Load, make_trainer: Make, broken: str, count: int
) -> None:
    model = load_micro(micro_config)
    rewards = {"good": {}, "bad": {"broken": broken}}
    trainer = make_trainer(micro_config, model, **rewards)
    before = lora_state_dict(model.dit)
    record = trainer.update().record
    assert (record["unscored/good"], record["unscored/bad"]) == (0, count)
    assert trainer.counters.unscored == {"good": 0, "bad": count}
    after = lora_state_dict(model.dit)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(bool(value.isfinite().all()) for value in after.values())


def test_a_nan_gradient_stops_before_the_step(
    micro_config: GRPOConfig, load_micro: Load, make_trainer: Make
) -> None:
    model = load_micro(micro_config)
    trainer = make_trainer(micro_config, model)
    trainer.update()
    before = lora_state_dict(model.dit)
    plain = trainer.policy.trained_velocity
    trainer.policy.trained_velocity = lambda x, t, p: plain(x, t, p) * float("nan")  # type: ignore
    with pytest.raises(NonFinite, match="update 1"):
        trainer.update()
    assert_equal(before, lora_state_dict(model.dit))
    assert trainer.counters.updates == 1


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
