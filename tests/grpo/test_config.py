"""Presets against Tables 5 and 9 as printed, and the checks of every configuration group."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from longtake.grpo import config
from longtake.grpo.config import GRPOConfig
from longtake.rewards.registry import TINY_REWARDS
from longtake.runtime.config import Config, config_to_yaml, merge_config, settings, settings_list
from longtake.runtime.errors import ConfigError

# Parameter of Table 5 or 9 -> where it is in the configuration, and its printed value.
TABLES: dict[str, tuple[Callable[[GRPOConfig], object], object]] = {
    "group size": (lambda c: c.num_generations, 4),
    "sampling steps": (lambda c: c.rollout.num_steps, 16),
    "prompts per update": (lambda c: c.prompts_per_update, 64),
    "timeshift": (lambda c: c.rollout.shift, 12),
    "SDE steps range [0,6]": (lambda c: c.sde.num_sde_steps, 6),
    "CFG": (lambda c: c.rollout.guidance_scale, 4),
    "online training": (lambda c: c.num_iterations, 1),
    "learning rate": (lambda c: c.optimizer.learning_rate, 1e-4),
    "policy loss weight": (lambda c: c.loss.policy_weight, 1),
    "KL loss weight": (lambda c: c.loss.beta, 3e-4),
    "LoRA dim": (lambda c: c.lora.rank, 128),
    "LoRA alpha": (lambda c: c.lora.alpha, 64),
    "reward weights": (
        lambda c: c.rewards.reward_weights,
        {"hpsv3_general": 1, "hpsv3_percentile": 1, "videoalign_mq": 1, "videoalign_ta": 1},
    ),
    "frames": (lambda c: c.rollout.num_frames, 93),
    "size bucket": (lambda c: c.rollout.bucket_sizes(), [(480, 832), (720, 1280)]),
    "base size": (lambda c: (c.rollout.height, c.rollout.width), (480, 832)),
    "iterations 0.5k": (lambda c: c.num_updates, 500),
    "a (section 3.3.1)": (lambda c: c.sde.a, 1),
    "tau (section 3.3.1)": (lambda c: c.sde.tau, 0.45),
    "truncated schedule": (lambda c: c.sde.kind, "flow_truncated"),
    "max group std (section 3.3.1)": (lambda c: c.advantage.scale, "max_group"),
    "weighted advantages (Eq. 10)": (lambda c: c.advantage.aggregation, "weighted_advantages"),
    "no clip range is given": (lambda c: c.loss.epsilon, None),
}


@pytest.mark.parametrize("name", TABLES)
def test_table9_has_the_printed_value(name: str) -> None:
    read, printed = TABLES[name]
    assert read(config.table9()) == printed


def test_tiny_runs_the_same_algorithm() -> None:
    tiny, table9 = config.tiny(), config.table9()
    assert tiny.sde == table9.sde
    assert tiny.advantage == table9.advantage
    assert tiny.loss == table9.loss
    assert tiny.num_generations == table9.num_generations
    assert tiny.rollout.num_steps == table9.rollout.num_steps
    assert tiny.rollout.cfg == table9.rollout.cfg
    assert len(tiny.rewards.reward_weights) == len(table9.rewards.reward_weights)
    assert (tiny.rollout.num_frames, tiny.rollout.height, tiny.rollout.width) == (17, 64, 64)
    assert tiny.rollout.shift is None
    assert Path(tiny.checkpoint).parts[-2:] == ("checkpoints", "tiny")


@pytest.mark.parametrize("name", config.PRESETS)
def test_yaml_round_trip(name: str, tmp_path: Path) -> None:
    original = config.PRESETS[name]()
    file = tmp_path / "config.yaml"
    file.write_text(config_to_yaml(original))
    assert merge_config(original, file) == original


def test_the_tiny_presets_differ_in_their_rewards_alone(tmp_path: Path) -> None:
    tiny, analytic = config.tiny(), config.tiny_analytic()
    assert tiny.replace(rewards=analytic.rewards) == analytic
    assert set(tiny.rewards.sources) == set(tiny.rewards.reward_weights) == set(TINY_REWARDS)
    # The record of one run over the defaults of the other.
    file = tmp_path / "config.yaml"
    file.write_text(config_to_yaml(analytic))
    assert merge_config(tiny, file) == analytic


def unset(group: Config, prefix: str = "") -> list[str]:
    """Settings of a group, and of the groups in it, that keep the default of their field."""
    names = [f"{prefix}{n}" for n in type(group).model_fields if n not in group.model_fields_set]
    for name in group.model_fields_set:
        value = getattr(group, name)
        names += unset(value, f"{prefix}{name}.") if isinstance(value, Config) else []
    return names


def test_the_frozen_preset_depends_on_no_default() -> None:
    frozen = config.tiny_2026_11()
    assert unset(frozen) == [] and unset(config.table9()) != []
    assert (frozen.num_updates, frozen.optimizer.learning_rate, frozen.loss.beta) == (
        24,
        1e-3,
        3e-4,
    )


def test_overrides_reach_every_group() -> None:
    merged = merge_config(
        config.tiny(),
        None,
        [
            "sde.tau=0.3",
            "loss.epsilon=1e-3",
            "rewards.reward_weights.hpsv3_general=0",
            "rollout.shift=3",
        ],
    )
    assert merged.sde.tau == 0.3
    assert merged.loss.epsilon == 1e-3
    assert merged.rewards.reward_weights["hpsv3_general"] == 0
    assert merged.rewards.reward_weights["hpsv3_percentile"] == 1
    assert merged.rollout.shift == 3


BAD = {
    "num_updates=0": "num_updates",
    "num_generations=1": "no spread",
    "rollout.num_frames=16": "does not fit the VAE",
    "rollout.width=65": "video size",
    "rollout.cfg=apg": "rollout.cfg",
    "rollout.size_buckets=[480p]": "HEIGHTxWIDTH",
    "sde.num_sde_steps=17": "more SDE steps",
    "sde.kind=flow": "sde.kind",
    "sde.tau=0": "sde.tau",
    "loss.epsilon=1": "loss.epsilon",
    "optimizer.learnin_rate=1": "learning_rate",
    "rewards.reward_weights.general=-1": "general",
    "trackers=[mlflow]": "tensorboard",
}


@pytest.mark.parametrize("override", BAD)
def test_bad_values_are_refused(override: str) -> None:
    with pytest.raises(ConfigError) as error:
        merge_config(config.tiny(), None, [override])
    assert BAD[override] in str(error.value)


def test_combinations_are_refused() -> None:
    with pytest.raises(ConfigError, match="ratio to clip"):
        config.LossConfig(epsilon=0.1, ratio="score")
    with pytest.raises(ConfigError, match="no reward"):
        config.RewardConfig(reward_weights={"general": 0.0})
    with pytest.raises(ConfigError, match="finite"):
        config.SDEConfig(a=float("nan"))


def test_single_member_is_fine_without_a_std() -> None:
    merged = merge_config(config.tiny(), None, ["num_generations=1", "advantage.scale=none"])
    assert merged.num_generations == 1


def test_every_setting_is_explained() -> None:
    listed = list(settings(config.tiny()))
    assert len(listed) > 50
    assert [key for key, *_, meaning in listed if not meaning] == []


def test_settings_do_not_import_torch() -> None:
    """So that a mistyped setting is answered at once."""
    code = "import sys, longtake.grpo.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_source_without_a_weight_is_refused_before_anything_runs() -> None:
    wrong = ["rewards.reward_weights={general: 1.0}"]
    with pytest.raises(ConfigError, match="not used") as caught:
        merge_config(config.PRESETS["tiny"](), None, wrong)
    assert "videoalign_ta" in str(caught.value.received) and "sources={}" in str(
        caught.value.remedy
    )
    fine = merge_config(config.PRESETS["tiny"](), None, [*wrong, "rewards.sources={}"])
    assert fine.rewards.reward_weights == {"general": 1.0} and not fine.rewards.sources


def test_the_page_of_settings_is_up_to_date() -> None:
    page = Path(config.__file__).parents[1] / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8").endswith(f"\n\n{settings_list(config.tiny())}\n"), (
        "write it again: the list is what `grpo run --settings` prints"
    )
