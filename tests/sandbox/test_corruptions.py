import pytest
import torch

from longtake.sandbox.corruptions import CORRUPTIONS, draw_damage
from longtake.sandbox.render import render
from longtake.sandbox.scene import sample_scenes


@pytest.fixture(scope="module")
def video():
    return render(sample_scenes(31, 0, 6), dtype=torch.float32)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_strength_zero_is_the_identity(name, video):
    assert torch.equal(CORRUPTIONS[name](video, 0.0, _generator()), video)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_damage_is_in_range_grows_and_repeats(name, video):
    before = video.clone()
    damage = []
    for strength in (0.1, 0.4, 1.0):
        out = CORRUPTIONS[name](video, strength, _generator())
        assert out.shape == video.shape
        assert out.min() >= 0 and out.max() <= 1
        damage.append(float((out - video).abs().mean()))
    assert 0 <= damage[0] < damage[1] < damage[2]
    assert torch.equal(out, CORRUPTIONS[name](video, 1.0, _generator()))
    assert torch.equal(video, before), "the input must not be changed"


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_strength_per_clip_equals_a_common_strength(name, video):
    mixed = CORRUPTIONS[name](video, torch.tensor([0.0, 0.7] * 3), _generator())
    common = CORRUPTIONS[name](video, 0.7, _generator())
    assert torch.equal(mixed[::2], video[::2])
    torch.testing.assert_close(mixed[1::2], common[1::2], rtol=0, atol=1e-6)


def test_ghost_follows_the_recursion(video):
    out = CORRUPTIONS["ghost"](video, 0.5, _generator())
    state = video[:, 0]
    for frame in range(17):
        state = 0.44 * state + 0.56 * video[:, frame]
        torch.testing.assert_close(out[:, frame], state)


def test_wild_clips_are_drawn_and_shared_out():
    names, strengths = draw_damage(2000, _generator(), share=0.5)
    assert set(names) == set(CORRUPTIONS)
    damaged = strengths > 0
    assert 0.45 < damaged.float().mean() < 0.55
    assert strengths.max() <= 1 and abs(float(strengths[damaged].mean()) - 0.5) < 0.03
