import itertools

import pytest

from longtake.sandbox.facts import BACKGROUNDS, COLOURS, FRAME_PX, MOTIONS, SHAPES, split_of
from longtake.sandbox.scene import REACH, sample_scene, sample_scenes


@pytest.fixture(scope="module")
def scenes():
    return sample_scenes(7, 0, 600)


def test_scene_is_named_by_seed_and_index(scenes):
    assert sample_scene(7, 599) == scenes[599]
    assert sample_scene(8, 599) != scenes[599]
    assert len(set(scenes)) == len(scenes)


def test_paths_stay_in_the_frame_and_in_their_lane(scenes):
    for scene in scenes:
        lanes = [(0.0, 64.0)] if len(scene.sprites) == 1 else [(0.0, 32.0), (32.0, 64.0)]
        for sprite, (top, bottom) in zip(scene.sprites, lanes, strict=True):
            reach = REACH[sprite.shape] * sprite.radius_px + 0.5
            for x, y in sprite.centres():
                assert reach <= x <= FRAME_PX - reach
                assert top + reach <= y <= bottom - reach


def test_every_fact_occurs(scenes):
    sprites = [sprite for scene in scenes for sprite in scene.sprites]
    assert {s.shape for s in sprites} == set(SHAPES)
    assert {s.colour for s in sprites} == set(COLOURS)
    assert {s.motion for s in sprites} == set(MOTIONS)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert all((s.speed is None) == (s.motion == "still") for s in sprites)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_split_holds_for_every_sprite(split):
    scenes = sample_scenes(3, 0, 300, split)
    sprites = [sprite for scene in scenes for sprite in scene.sprites]
    assert {split_of(s.shape, s.colour, s.motion) for s in sprites} == {split}
    assert 0.12 < sum(len(scene.sprites) == 2 for scene in scenes) / 300 < 0.28


def test_held_out_design_leaves_no_pair_unseen():
    combos = list(itertools.product(SHAPES, COLOURS, MOTIONS))
    train = [combo for combo in combos if split_of(*combo) == "train"]
    assert len(combos) - len(train) == 32
    for left, right in ((0, 1), (0, 2), (1, 2)):
        seen = {(combo[left], combo[right]) for combo in train}
        assert seen == {(combo[left], combo[right]) for combo in combos}
