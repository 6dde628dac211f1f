"""The tiny Qwen2-VL: named by its seed, sensitive to rotary precision; weights of unit gain."""

import pytest
import torch

from longtake.rewards.contract import VideoBatch
from longtake.rewards.directory import read_reward_directory
from longtake.rewards.model_inputs import CHAT_TOKENS
from longtake.rewards.videoalign import load_videoalign
from longtake.sandbox.recipes.tiny_vlm import (
    TinySize,
    byte_tokenizer,
    unit_gain_weights,
    write_tiny_base,
)
from longtake.tests.tiny_reward import random_prompts, tiny_config, tiny_reward_model

CAPTIONS = [f"a {c} {s} goes {d}" for c in ("red", "blue") for s in ("disc", "box") for d in "ab"]


@pytest.fixture(scope="module")
def video():
    return torch.rand(3, 17, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_a_motion_base_takes_every_frame_and_ignores_captions(tmp_path, video):
    size = TinySize(frames_per_second=8.0, side=56)
    base = write_tiny_base(tmp_path / "mq", "videoreward", CAPTIONS, size, seed=1)
    rewards = load_videoalign(base, ["videoalign_mq", "videoalign_ta"])
    batch = VideoBatch(video=video, prompts=CAPTIONS[:3], fps=8.0)
    other = VideoBatch(video=video, prompts=CAPTIONS[3:6], fps=8.0)
    assert base.spec.sampler.count(17, 8.0) == 16
    assert rewards["videoalign_mq"].score(other) == rewards["videoalign_mq"].score(batch)
    assert rewards["videoalign_ta"].score(other) != rewards["videoalign_ta"].score(batch)


def test_weights_follow_from_the_seed_and_keep_the_scale(tmp_path):
    base = write_tiny_base(tmp_path / "one", "videoreward", CAPTIONS, TinySize(), seed=1)
    config = read_reward_directory(base.path).spec.model
    one, again, other = (dict(unit_gain_weights(config, seed)) for seed in (1, 1, 2))
    weights = base.load_model().state_dict()
    for name, value in one.items():
        assert torch.equal(value, again[name]) and torch.equal(value, weights[name])
        if value.ndim > 1:
            assert not torch.equal(value, other[name])
    layer = "model.language_model.layers.0."
    fan_in = 96
    for name, expected in (
        (f"{layer}mlp.up_proj.weight", 1.0),
        (f"{layer}self_attn.q_proj.weight", 1.0),
    ):
        assert one[name].std().item() * fan_in**0.5 == pytest.approx(expected, rel=0.05)
    # Three layers with two outputs each into the residual stream.
    down = one[f"{layer}mlp.down_proj.weight"]
    assert down.std().item() * (3 * fan_in) ** 0.5 == pytest.approx(6**-0.5, rel=0.05)
    merger = one["model.visual.merger.mlp.0.weight"]
    assert merger.std().item() * merger.shape[1] ** 0.5 == pytest.approx(1.0, rel=0.05)


def test_hidden_states_keep_their_size_over_the_layers(tmp_path):
    base = write_tiny_base(tmp_path / "deep", "videoreward", CAPTIONS, TinySize(layers=8), seed=3)
    model = base.load_model()
    sizes = []
    for layer in model.model.language_model.layers:
        layer.register_forward_hook(
            lambda _, __, out: sizes.append(
                (out[0] if isinstance(out, tuple) else out).std().item()
            )
        )
    ids = torch.tensor([base.encoder().encode(CAPTIONS[0], 9)])
    patches = torch.randn(36, 1176, generator=torch.Generator().manual_seed(0))
    model.score(ids, torch.ones_like(ids), patches, torch.tensor([[1, 6, 6]]))
    assert len(sizes) == 8 and min(sizes) > 0.3 and max(sizes) < 3


def test_rounded_rotary_tables_move_the_scores():
    scores = {}
    for rotary in ("float32", "bf16_frequencies", "bf16"):
        model = tiny_reward_model(tiny_config("shared_linear", rotary=rotary), 0)
        scores[rotary] = model.score(**random_prompts(model.config, 0, [60, 90], (4, 4, 6)))
    for a, b in (("float32", "bf16_frequencies"), ("bf16_frequencies", "bf16")):
        assert 1e-4 < float((scores[a] - scores[b]).abs().max()) < 0.5


TEXTS = ["a red circle goes left", "a blue circle goes right", "the red square stands still"] * 4
STRANGE = "Größe 7 € \u6c34\t<x> a red  circle"


@pytest.mark.parametrize("texts", [(), TEXTS])
def test_every_text_survives_and_control_tokens_are_single(texts):
    tokenizer = byte_tokenizer(("<|R|>",), texts)
    for text in (*TEXTS[:3], STRANGE):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    for token in (*CHAT_TOKENS, "<|R|>"):
        assert tokenizer(f"a{token}b", add_special_tokens=False)["input_ids"] == [
            *tokenizer("a")["input_ids"],
            tokenizer.convert_tokens_to_ids(token),
            *tokenizer("b")["input_ids"],
        ]
    assert byte_tokenizer(("<|R|>",), texts).get_vocab() == tokenizer.get_vocab()
