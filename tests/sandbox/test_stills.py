import pytest
import torch

from longtake.evaluation.benchmark import IMAGES_FILE, INTERNAL_SUITE, ReferenceImage, read_records
from longtake.sandbox.facts import BACKGROUNDS, COLOURS
from longtake.sandbox.scene import Scene, Sprite, sample_scene
from longtake.sandbox.stills import COARSE, STYLES, draw_still

SIZES = [(64, 64), (192, 108), (108, 192), (200, 200)]


def background(scene):
    return torch.tensor(BACKGROUNDS[scene.background]).mul(255).round().to(torch.uint8)


def ink(picture, scene, above=0):
    """[H, W]: pixels that differ from the background by more than ``above`` in any channel."""
    return ((picture.int() - background(scene).int()[:, None, None]).abs() > above).any(0)


def lone(shape="circle", x=20.0, y=40.0):
    sprite = Sprite(
        shape=shape,
        colour="red",
        size="large",
        motion="still",
        speed=None,
        anchor=(x, y),
        phase=0.0,
    )
    return Scene(sprites=(sprite,), background="grey")


@pytest.mark.parametrize("style", ["2d_animation", "sketch"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_sprites_keep_their_relative_place_and_size(style, width, height):
    scene = lone()
    rows, columns = torch.nonzero(ink(draw_still(scene, width, height, style), scene)).T
    radius = 11 * min(width, height) / 64
    centre = ((columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2)
    assert centre[0].item() == pytest.approx(20 / 64 * width, abs=0.6)
    assert centre[1].item() == pytest.approx(40 / 64 * height, abs=0.6)
    assert (columns.max() - columns.min()).item() == pytest.approx(2 * radius, abs=2)


def test_colours_of_the_styles():
    scene = lone("square", 32, 32)
    red = torch.tensor(COLOURS["red"]).mul(255).round()
    pictures = {name: draw_still(scene, 320, 320, name).float() for name in STYLES}
    assert torch.equal(pictures["2d_animation"][:, 160, 160], red)
    left_edge = 160 - round(0.87 * 55) + 2
    assert pictures["2d_animation"][:, 160, left_edge].tolist() == [20, 20, 20]  # outline, 0.08
    solid = pictures["3d_animation"]
    assert solid[:, 160, 160].argmax() == 0
    above, below = solid[0, 120, 160], solid[0, 200, 160]
    assert above > below  # light from the upper left
    assert solid[:, 215, 180].sum() < background(scene).float().sum()  # shadow, lower right
    sketch = pictures["sketch"]
    middle = sketch[:, 120:200, 120:200].flatten(1).T
    assert (middle == red).all(1).any() and (middle == background(scene)).all(1).any()


@pytest.mark.parametrize("style", STYLES)
def test_coarse_stills_are_enlarged_small_ones(style):
    scene = sample_scene(3, 5)
    coarse = draw_still(scene, 320, 256, style, coarse=True)
    assert coarse.shape == (3, 256, 320)
    blocks = coarse.unfold(1, COARSE, COARSE).unfold(2, COARSE, COARSE).flatten(3)
    assert (blocks == blocks[..., :1]).all()
    assert torch.equal(blocks[..., 0], draw_still(scene, 80, 64, style))


# The smallest of each style at both qualities.
@pytest.mark.parametrize("index", [0, 1, 2, 27, 28, 29])
def test_the_listed_images_are_drawn_on_every_machine(index):
    """Against the drawing in float64: a digest of rounded floats would belong to one processor."""
    image, scene = (
        read_records(INTERNAL_SUITE / IMAGES_FILE, ReferenceImage)[index],
        sample_scene(2025, index),
    )
    coarse = image.quality == "standard"
    assert coarse == (index >= 27)
    pixels = draw_still(scene, *image.size(), image.style, coarse)
    try:
        torch.set_default_dtype(torch.float64)
        exact = draw_still(scene, *image.size(), image.style, coarse)
    finally:
        torch.set_default_dtype(torch.float32)
    apart = (pixels.int() - exact.int()).abs()
    assert apart.max() <= 1 and (apart > 0).float().mean() < 1e-3
