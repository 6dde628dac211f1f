"""The trainer: first ratio, forwards, gradients against the per-sample oracle, resume, failures."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longtake.core.checkpoint import Checkpoint
from longtake.core.lora import adapters_off, lora_parameters, lora_state_dict
from longtake.grpo.config import GRPOConfig
from longtake.grpo.loss import group_loss
from longtake.grpo.nfe import ForwardCounter, rollout_evaluations
from longtake.grpo.plan import read_prompts
from longtake.grpo.state import load_state, save_state
from longtake.grpo.trainer import GRPOTrainer, NonFinite
from longtake.rewards.contract import Score, VideoBatch, scores_of
from longtake.rewards.suite import RewardSuite
from longtake.runtime.errors import CheckpointError

Load = Callable[[GRPOConfig], Checkpoint]


class Brightness:
    """Mean pixel, or failures on demand: a reward with known behaviour."""

    name, needs_prompt, needs_time = "brightness", False, False

    def __init__(self, sign: float = 1.0, broken: str = "") -> None:
        self.sign, self.broken = sign, broken

    def score(self, batch: VideoBatch) -> list[Score]:
        if self.broken == "raise":
            raise RuntimeError("the scorer fell over")
        value = self.sign * batch.video.float().mean((1, 2, 3, 4)).cpu() / 255
        if self.broken == "nan":
            value[0] = float("nan")
        return scores_of(value)

    def to(self, device: torch.device | str) -> "Brightness":
        return self

    def fingerprint(self) -> dict[str, object]:
        return {"name": self.name}


def trainer_of(config: GRPOConfig, model: Checkpoint, **rewards: Brightness) -> GRPOTrainer:
    named = rewards or {"brightness": Brightness()}
    suite = RewardSuite({name: (reward, 1.0) for name, reward in named.items()})
    return GRPOTrainer(model, suite, read_prompts(Path(config.prompts)), config)


def test_first_update_has_ratio_exactly_one_and_zero_kl(
    micro_config: GRPOConfig, load_micro: Load
) -> None:
    trainer = trainer_of(micro_config, load_micro(micro_config))
    first = trainer.update().record
    assert first["ratio/min"] == first["ratio/mean"] == first["ratio/max"] == 1.0
    assert first["kl"] == 0.0  # identity 20: the adapter starts as nothing
    second = trainer.update().record
    assert second["ratio/mean"] == 1.0  # one update per rollout stays on-policy
    assert second["kl"] is not None and second["kl"] > 0


def test_a_second_iteration_on_the_same_rollout_is_off_policy(
    micro_config: GRPOConfig, load_micro: Load
) -> None:
    config = micro_config.replace(num_iterations=2)
    record = trainer_of(config, load_micro(config)).update().record
    assert record["ratio/mean"] != 1.0
    assert abs(record["ratio/mean"] - 1.0) < 0.1  # type: ignore[operator]


def test_forwards_are_one_policy_and_one_reference_a_group(
    micro_config: GRPOConfig, load_micro: Load
) -> None:
    model = load_micro(micro_config)
    trainer = trainer_of(micro_config, model)
    with ForwardCounter(model.dit, 2) as counter:
        update = trainer.update()
    rollout = sum(rollout_evaluations(8, t.t_index, 4, shared=True) for t in update.tasks)
    assert counter.evaluations == rollout + 2 * 3
    counters = trainer.counters
    assert (counters.rollout, counters.rollout_naive) == (rollout, 3 * 4 * 8)
    assert (counters.train_forwards, counters.train_forwards_naive) == (6, 24)


@pytest.mark.parametrize("train_cfg, detach", [(True, True), (True, False), (False, True)])
def test_shared_forward_gradients_equal_per_sample_gradients(
    micro_config: GRPOConfig, load_micro: Load, train_cfg: bool, detach: bool
) -> None:
    """Identity 9 on the real model in float64: guidance, reference and KL included."""
    loss = micro_config.loss.replace(beta=0.3, train_cfg=train_cfg, detach_cfg_zero_scale=detach)
    config = micro_config.replace(loss=loss)
    model = load_micro(config)
    trainer = trainer_of(config, model)
    trainer.update()  # move the adapter away from its zero start
    _widen(model, trainer)
    task = trainer.rollout.sample
    group = task(_first_task(trainer), (4, 2, 4, 4))
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


def _first_task(trainer: GRPOTrainer):  # type: ignore[no-untyped-def]
    from longtake.grpo.plan import plan_update

    return plan_update(trainer.config, trainer.prompts, 1)[0]


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


def test_reward_rises_and_falls_with_its_sign(micro_config: GRPOConfig, load_micro: Load) -> None:
    """Identity 14 end to end: the loss has the sign that raises the reward."""
    brightness = {}
    for sign in (1.0, -1.0):
        config = micro_config.replace(
            prompts_per_update=6,
            num_generations=8,
            rollout=micro_config.rollout.replace(micro_batch=8),
            optimizer=micro_config.optimizer.replace(learning_rate=5e-2),
        )
        trainer = trainer_of(config, load_micro(config), brightness=Brightness(sign))
        rewards = [trainer.update().record["rewards/brightness/mean"] for _ in range(12)]
        brightness[sign] = [sign * reward for reward in rewards]  # type: ignore[operator]
    # The same noises in both runs, so the brightness of update i differs by training alone.
    assert brightness[1.0][0] == brightness[-1.0][0]
    rise = sum(brightness[1.0][-3:]) / 3 - sum(brightness[-1.0][-3:]) / 3
    assert rise > 1e-3


def test_two_runs_with_one_seed_are_bitwise_equal(
    micro_config: GRPOConfig, load_micro: Load
) -> None:
    results = []
    for _ in range(2):
        model = load_micro(micro_config)
        trainer = trainer_of(micro_config, model)
        records = [trainer.update().record for _ in range(3)]
        results.append((records, lora_state_dict(model.dit)))
    assert results[0][0] == results[1][0]
    assert_equal(results[0][1], results[1][1])


def test_18_resume_is_bitwise(micro_config: GRPOConfig, load_micro: Load, tmp_path: Path) -> None:
    config = micro_config.replace(
        optimizer=micro_config.optimizer.replace(ema_decay=0.9, warmup_updates=3)
    )
    model = load_micro(config)
    trainer = trainer_of(config, model)
    records = []
    for update in range(4):
        if update == 2:
            (tmp_path / "state").mkdir()
            save_state(
                tmp_path / "state", model.dit, trainer.optimizer, trainer.counters, trainer.average
            )
        records.append(trainer.update().record)
    other_model = load_micro(config)
    other = trainer_of(config, other_model)
    other.counters = load_state(tmp_path / "state", other_model.dit, other.optimizer, other.average)
    assert [other.update().record for _ in range(2)] == records[2:]
    assert_equal(lora_state_dict(model.dit), lora_state_dict(other_model.dit))
    assert trainer.average is not None and other.average is not None
    assert_equal(trainer.average.mean, other.average.mean)
    assert trainer.counters == other.counters


@pytest.mark.parametrize("damage", ["truncate", "delete", "garbage"])
def test_a_damaged_state_is_named(
    micro_config: GRPOConfig, load_micro: Load, tmp_path: Path, damage: str
) -> None:
    model = load_micro(micro_config)
    trainer = trainer_of(micro_config, model)
    save_state(tmp_path, model.dit, trainer.optimizer, trainer.counters, None)
    file = tmp_path / "state.pt"
    if damage == "delete":
        file.unlink()
    else:
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2] if damage == "truncate" else b"\0" * 100)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_state(tmp_path, model.dit, trainer.optimizer, None)


@pytest.mark.parametrize("broken, count", [("raise", 12), ("nan", 3)])
def test_a_failing_reward_leaves_samples_unscored_and_the_run_goes_on(
    micro_config: GRPOConfig, load_micro: Load, broken: str, count: int
) -> None:
    model = load_micro(micro_config)
    rewards = {"good": Brightness(), "bad": Brightness(broken=broken)}
    trainer = trainer_of(micro_config, model, **rewards)
    before = lora_state_dict(model.dit)
    record = trainer.update().record
    assert (record["unscored/good"], record["unscored/bad"]) == (0, count)
    assert trainer.counters.unscored == {"good": 0, "bad": count}
    after = lora_state_dict(model.dit)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(bool(value.isfinite().all()) for value in after.values())


def test_a_nan_gradient_stops_before_the_step(micro_config: GRPOConfig, load_micro: Load) -> None:
    model = load_micro(micro_config)
    trainer = trainer_of(micro_config, model)
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
