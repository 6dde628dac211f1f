from pathlib import Path

import pytest
import torch

from longtake.rewards import REWARDS, load_rewards, load_suite
from longtake.rewards.contract import VideoBatch
from longtake.rewards.remote_server import RewardServer, ServerConfig
from longtake.rewards.sources import split_sources
from longtake.runtime.errors import CheckpointError, UserError
from longtake.sandbox.recipes.tiny_vlm import tiny_spec, write_tiny_reward


@pytest.fixture(scope="module")
def hpsv3(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("hpsv3") / "reward"
    return str(write_tiny_reward(path, tiny_spec("hpsv3"), seed=1).path)


@pytest.fixture(scope="module")
def videoalign(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("videoalign") / "reward"
    return str(write_tiny_reward(path, tiny_spec("videoreward", color_mode="bt601"), seed=2).path)


def batch(seed: int = 0) -> VideoBatch:
    generator = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 256, (2, 5, 3, 48, 64), dtype=torch.uint8, generator=generator)
    return VideoBatch(video=video, prompts=["a red circle", "a blue square"], fps=8.0)


def test_entries_split_into_names_and_sources() -> None:
    names, sources = split_sources(["general", "mq=models/a=b", "x=http://h:1"])
    assert names == ["general", "mq", "x"]
    assert sources == {"mq": "models/a=b", "x": "http://h:1"}


@pytest.mark.parametrize("entries", [["=a"], ["a="], ["a", "a=b"]])
def test_unreadable_entries_are_named(entries: list[str]) -> None:
    with pytest.raises(UserError, match=entries[-1]):
        split_sources(entries)


def test_a_suite_mixes_registered_and_loaded_rewards(hpsv3: str, videoalign: str) -> None:
    weights = {
        "videoalign_ta": 1.0,
        "general": 0.5,
        "hpsv3_percentile": 1.0,
        "hpsv3_general": 1.0,
        "videoalign_mq": 0.0,
    }
    sources = {name: hpsv3 if "hpsv3" in name else videoalign for name in weights}
    del sources["general"]
    suite = load_suite(weights, sources)
    assert suite.names == tuple(weights) and suite.weights == weights
    scores = suite.score(batch())
    assert scores.valid.all()
    assert {name: reward.name for name, reward in suite.rewards.items()} == {n: n for n in weights}


def test_names_of_one_directory_share_its_model(hpsv3: str, videoalign: str) -> None:
    names = ("hpsv3_general", "hpsv3_percentile")
    rewards = load_rewards(names, dict.fromkeys(names, hpsv3))
    assert len({id(reward._scorer) for reward in rewards.values()}) == 1  # type: ignore[attr-defined]
    names = ("videoalign_mq", "videoalign_ta")
    rewards = load_rewards(names, dict.fromkeys(names, videoalign))
    assert len({id(reward._model) for reward in rewards.values()}) == 1  # type: ignore[attr-defined]


def test_a_server_is_a_source() -> None:
    local = load_rewards(["general"])
    with RewardServer(local, ServerConfig(port=0)) as server:
        remote = load_rewards(["general"], {"general": server.url})["general"]
        assert torch.equal(remote.score(batch()).score, local["general"].score(batch()).score)


def test_wrong_names_and_places_are_errors(hpsv3: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hpsv3_general, hpsv3_percentile"):
        load_rewards(["videoalign_mq"], {"videoalign_mq": hpsv3})
    with pytest.raises(UserError, match="not used"):
        load_rewards(["general"], {"hpsv3_general": hpsv3})
    with pytest.raises(UserError, match="NAME=SOURCE"):
        load_rewards(["hpsv3_general"])
    with pytest.raises(CheckpointError, match="absent"):
        load_rewards(["hpsv3_general"], {"hpsv3_general": str(tmp_path / "absent")})


def test_without_sources_the_registry_answers() -> None:
    assert list(load_rewards(list(REWARDS))) == list(REWARDS)
