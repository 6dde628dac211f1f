from pathlib import Path
from typing import Annotated, Literal, Self

import pytest
from pydantic import Field, model_validator

from longtake.runtime.config import Config, config_to_yaml, merge_config, settings
from longtake.runtime.errors import ConfigError


class Sampler(Config):
    num_steps: int = Field(16, ge=1)
    """Steps."""
    shift: Annotated[float, Field(gt=0)] | None = None
    betas: tuple[float, float] = (0.9, 0.99)
    rule: Literal["cfg", "cfg_zero"] = "cfg_zero"


class Run(Config):
    seed: int = Field(0, ge=0)
    """Names every
    draw."""
    name: str = "tiny"
    resume: bool = False
    learning_rate: float = 1e-4
    sizes: list[str] = []
    weights: dict[str, float] = {"motion": 1.0}
    sampler: Sampler = Sampler()

    @model_validator(mode="after")
    def _name_and_seed_agree(self) -> Self:
        if self.name == "unlucky" and self.seed == 13:
            raise ConfigError("an unlucky seed", received=13, expected="another")
        return self


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_nothing_to_merge_gives_an_equal_config() -> None:
    assert merge_config(Run(seed=3)) == Run(seed=3)


def test_a_dictionary_is_replaced_whole_and_set_key_by_key(tmp_path: Path) -> None:
    recorded = Run(weights={"text": 0.5})  # of a version with another default
    file = write(tmp_path, config_to_yaml(recorded))
    assert merge_config(Run(), file) == recorded
    assert merge_config(Run(), file, ["weights.motion=2"]).weights == {"text": 0.5, "motion": 2.0}
    assert merge_config(Run(), None, ["weights={}"]).weights == {}


def test_file_then_overrides_in_order(tmp_path: Path) -> None:
    file = write(tmp_path, "seed: 1\nname: file\nsampler: {num_steps: 4, betas: [0.5, 1]}\n")
    got = merge_config(Run(), file, ["name=override", "sampler.num_steps=8", "seed=2", "seed=5"])
    assert got == Run(seed=5, name="override", sampler=Sampler(num_steps=8, betas=(0.5, 1.0)))
    assert isinstance(got.sampler, Sampler)
    assert isinstance(got.sampler.betas, tuple)


@pytest.mark.parametrize(
    ("override", "field_name", "value"),
    [
        ("learning_rate=1e-3", "learning_rate", 1e-3),
        ("learning_rate=2", "learning_rate", 2.0),
        ("resume=true", "resume", True),
        ("name=a=b", "name", "a=b"),
        ("name='0x1'", "name", "0x1"),
        ("sizes=[480x832,720x1280]", "sizes", ["480x832", "720x1280"]),
        ("weights.text=0.5", "weights", {"motion": 1.0, "text": 0.5}),
        ("weights={text: 2}", "weights", {"text": 2.0}),
    ],
)
def test_override_values(override: str, field_name: str, value: object) -> None:
    got = getattr(merge_config(Run(), overrides=[override]), field_name)
    assert got == value
    assert type(got) is type(value)


def test_optional_can_be_set_and_cleared() -> None:
    assert merge_config(Run(), overrides=["sampler.shift=12"]).sampler.shift == 12.0
    with_shift = Run(sampler=Sampler(shift=3.0))
    assert merge_config(with_shift, overrides=["sampler.shift=null"]).sampler.shift is None


def test_yaml_round_trip_is_exact(tmp_path: Path) -> None:
    config = Run(learning_rate=1 / 3 * 1e-5, sizes=["64x64"], sampler=Sampler(betas=(0.1, 0.2)))
    other = Run(weights={"motion": 9.0}, sampler=Sampler(num_steps=1))
    assert merge_config(other, write(tmp_path, config_to_yaml(config))) == config


def test_the_default_is_not_changed() -> None:
    default = Run()
    merge_config(default, overrides=["weights.motion=7", "sizes=[1x1]"])
    assert default == Run()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sed: 1", ["`sed`", "did you mean `seed`?", "run.yaml"]),
        ("sampler: {num_step: 1}", ["`sampler.num_step`", "did you mean `sampler.num_steps`?"]),
        ("zzz: 1", ["`zzz`", "one of: seed, name"]),
        ("seed: 1.5", ["`seed`", "received: 1.5", "integer"]),
        ("seed: abc", ["`seed`", "received: abc"]),
        ("seed: null", ["`seed`"]),
        ("seed: [1]", ["`seed`"]),
        ("seed: -1", ["`seed`", "received: -1", "greater than or equal to 0"]),
        ("learning_rate: .nan", ["`learning_rate`", "finite"]),
        ("sampler: 3", ["`sampler`", "num_steps, shift, betas, rule"]),
        ("sampler: {shift: 0}", ["`sampler.shift`", "greater than 0"]),
        ("sampler: {betas: [1, 2, 3]}", ["`sampler.betas`", "2 items"]),
        ("sampler: {rule: cgf}", ["`sampler.rule`", "cfg_zero"]),
        ("weights: {motion: x}", ["`weights.motion`", "number"]),
        ("{name: unlucky, seed: 13}", ["an unlucky seed"]),
        ("- 1\n- 2", ["not a mapping"]),
        ("7", ["not a mapping"]),
        ("seed: 1\nseed: 2", ["not valid YAML", "duplicate"]),
        ("seed: [1", ["not valid YAML", "run.yaml"]),
    ],
)
def test_bad_files_are_named_precisely(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        merge_config(Run(), write(tmp_path, text))
    for word in words:
        assert word in str(caught.value)


def test_values_given_in_python_are_checked_too() -> None:
    for attempt in (
        lambda: Sampler(num_steps=0),
        lambda: Sampler().replace(num_steps=0),
        lambda: Run(sampler={"num_steps": 0}),
        lambda: Run(sampler=Sampler(), sede=3),
    ):
        with pytest.raises(ConfigError):
            attempt()
    assert Run(seed=3).replace(name="b") == Run(seed=3, name="b")


def test_settings_are_listed_with_type_range_default_and_meaning() -> None:
    listed = {key: rest for key, *rest in settings(Run(sampler=Sampler(shift=2.5)))}
    assert list(listed)[-1] == "sampler.rule"
    assert listed["seed"] == ["int >= 0", "0", "Names every draw."]
    assert listed["sampler.shift"][:2] == ["float > 0 | null", "2.5"]
    assert listed["sampler.rule"][0] == "cfg | cfg_zero"
    assert listed["weights"][:2] == ["dict[str, float]", "{motion: 1.0}"]


@pytest.mark.parametrize("override", ["seed", "=1", "a..b=1", "", ".seed=1", "seed=[1", "sed=1"])
def test_bad_overrides_show_the_option(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        merge_config(Run(), overrides=[override])
    assert override in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        merge_config(Run(), tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        merge_config(Run(), tmp_path)
    file = tmp_path / "latin.yaml"
    file.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        merge_config(Run(), file)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_empty_file_changes_nothing(tmp_path: Path, text: str) -> None:
    assert merge_config(Run(), write(tmp_path, text)) == Run()
