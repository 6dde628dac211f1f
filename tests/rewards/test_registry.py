"""Names and sources: what is loaded from where, a reward of one's own, and errors at the door."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longtake.rewards.contract import VideoBatch
from longtake.rewards.registry import REWARDS, check_sources, load_rewards, load_suite
from longtake.rewards.registry import split_sources as split
from longtake.runtime.errors import UserError
from longtake.tests.tiny_reward import tiny_spec, write_tiny_reward

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hpsv3(tmp_path_factory):
    path = tmp_path_factory.mktemp("hpsv3") / "reward"
    return str(write_tiny_reward(path, tiny_spec("hpsv3"), seed=1).path)


@pytest.fixture(scope="module")
def videoalign(tmp_path_factory):
    path = tmp_path_factory.mktemp("videoalign") / "reward"
    return str(write_tiny_reward(path, tiny_spec("videoreward", color_mode="bt601"), seed=2).path)


def batch():
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (2, 5, 3, 48, 64), dtype=torch.uint8, generator=generator)
    return VideoBatch(video=video, prompts=["a red circle", "a blue square"], fps=8.0)


def test_entries_split_into_names_and_sources():
    names, sources = split(["general", "mq=models/a=b", "x=http://h:1"])
    assert names == ["general", "mq", "x"]
    assert sources == {"mq": "models/a=b", "x": "http://h:1"}
    for entries in (["=a"], ["a="], ["a", "a=b"]):
        with pytest.raises(UserError, match=entries[-1]):
            split(entries)


def test_a_suite_mixes_registered_and_loaded_rewards(hpsv3, videoalign):
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
    assert suite.score(batch()).scores.isfinite().all()
    assert suite.rewards["hpsv3_general"]._scorer is suite.rewards["hpsv3_percentile"]._scorer


def test_every_registered_name_loads():
    check_sources(REWARDS, {})
    assert list(load_rewards(list(REWARDS))) == list(REWARDS)


def how_to():
    """The Python blocks of docs/how_to_reward.md."""
    text = (ROOT / "docs" / "how_to_reward.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_the_how_to_adds_a_reward(tmp_path):
    code = how_to()[0]
    assert len(code.splitlines()) <= 15
    (tmp_path / "my_file.py").write_text(code)
    source = f"{tmp_path}/my_file.py:Brightness"
    check_sources(["brightness"], {"brightness": source})
    suite = load_suite({"brightness": 1.0}, {"brightness": source})
    clips = batch()
    expected = clips.float_video().mean((1, 2, 3, 4))
    torch.testing.assert_close(suite.score(clips).columns["brightness"], expected)
    first = suite.fingerprint()
    assert first == load_suite({"brightness": 1.0}, {"brightness": source}).fingerprint()
    (tmp_path / "my_file.py").write_text(code + "\n# changed\n")
    assert load_suite({"brightness": 1.0}, {"brightness": source}).fingerprint() != first


GOOD = "class Good(Reward):\n    needs_prompt = needs_time = False\n    def score(self, batch): ..."


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("mine.py:God", r"Good\?"),
        ("min.py:Good", r"mine.py\?"),
        ("broken.py:Good", "no Python source"),
        ("longtake.sandbox.absent:Good", "not there"),
        ("longtake.sandbox.analytic_rewards:Genera", r"General\?"),
        ("absent/folder", "not there"),
    ],
)
def test_a_source_that_cannot_be_used_is_refused_at_the_door(source, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(GOOD)
    Path("broken.py").write_text("class")
    check_sources(["x"], {"x": "mine.py:Good"})
    with pytest.raises(UserError, match=words):
        check_sources(["x"], {"x": source})


@pytest.mark.parametrize(
    ("code", "missing"),
    [
        ("class Odd(Reward):\n    def score(self, batch): ...", "needs_prompt, needs_time"),
        ("class Odd:\n    needs_prompt = needs_time = False", "score, to, fingerprint"),
    ],
)
def test_a_class_without_a_member_is_no_reward(code, missing, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f"from longtake.rewards.contract import Reward\n{code}\n")
    with pytest.raises(UserError, match=f"without {missing}"):
        load_rewards(["x"], {"x": f"{file}:Odd"})


def test_names_that_do_not_fit_are_refused(hpsv3):
    for names, sources, words in (
        (["motion_qualty"], {}, r"motion_quality\?"),
        (["hpsv3_general"], {}, "hpsv3_general=SOURCE"),
        (["videoalign_mq"], {"videoalign_mq": hpsv3}, "hpsv3_general, hpsv3_percentile"),
        (["general"], {"hpsv3_general": hpsv3}, "not used"),
    ):
        with pytest.raises(UserError, match=words):
            check_sources(names, sources)


def test_the_check_imports_no_torch():
    code = (
        "import sys; from longtake.rewards.registry import *;"
        "check_sources([*REWARDS, *TINY_REWARDS], TINY_REWARDS); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
