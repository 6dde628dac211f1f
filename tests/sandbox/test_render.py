import math

import pytest
import torch

from longtake.sandbox.facts import BACKGROUNDS, COLOURS, SHAPES
from longtake.sandbox.render import render
from longtake.sandbox.scene import Scene, Sprite, sample_scenes


def _scene(shape, centre, size="large"):
    sprite = Sprite(
        shape=shape,
        colour="white",
        size=size,
        motion="still",
        speed=None,
        anchor=centre,
        phase=0.0,
    )
    return Scene(sprites=(sprite,), background="black")


def _is_inside(shape, x, y, r):
    """Membership by vertices and rectangles, independent of the distance fields."""
    if shape == "circle":
        return math.hypot(x, y) < r
    if shape == "square":
        return abs(x) < 0.87 * r and abs(y) < 0.87 * r
    if shape == "cross":
        x, y = abs(x), abs(y)
        return (x < 1.05 * r and y < 0.4 * r) or (y < 1.05 * r and x < 0.4 * r)
    corners = [
        (1.3 * r * math.cos(angle), 1.3 * r * math.sin(angle))
        for angle in (-math.pi / 2, math.pi / 6, 5 * math.pi / 6)
    ]
    sides = []
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        sides.append((bx - ax) * (y - ay) - (by - ay) * (x - ax))
    return all(side > 0 for side in sides) or all(side < 0 for side in sides)


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_equals_supersampling(shape):
    centre = (31.3, 32.8)
    image = render([_scene(shape, centre)], num_frames=1, dtype=torch.float32)[0, 0, 0]
    low, high = round(BACKGROUNDS["black"][0] * 255) / 255, COLOURS["white"][0]
    coverage = (image - low) / (high - low)
    steps = [(k + 0.5) / 6 for k in range(6)]
    truth = torch.zeros(64, 64)
    for row in range(14, 50):
        for column in range(14, 50):
            hits = [
                _is_inside(shape, column + u - centre[0], row + v - centre[1], 11.0)
                for u in steps
                for v in steps
            ]
            truth[row, column] = sum(hits) / 36
    # Corners are where a distance ramp and true coverage differ; area agrees to half a pixel row.
    assert (coverage - truth).abs().max() < 0.36
    assert abs(float(coverage.sum() - truth.sum())) < 5
    assert (coverage - truth).abs().mean() < 2e-3


def test_rendering_does_not_depend_on_the_batch():
    scenes = sample_scenes(11, 0, 24)
    whole = render(scenes)
    parts = torch.cat([render(scenes[:1]), render(scenes[1:8]), render(scenes[8:])])
    assert torch.equal(whole, parts)
    assert torch.equal(whole, render(scenes))


def test_colours_at_the_centre_and_in_the_corner():
    scenes = sample_scenes(12, 0, 40)
    video = render(scenes, dtype=torch.float32)
    for clip, scene in zip(video, scenes, strict=True):
        assert clip[0, :, 0, 0].tolist() == pytest.approx(BACKGROUNDS[scene.background], abs=0.003)
        for sprite in scene.sprites:
            for frame, (x, y) in enumerate(sprite.centres()):
                pixel = clip[frame, :, int(y), int(x)].tolist()
                assert pixel == pytest.approx(COLOURS[sprite.colour], abs=0.003)
