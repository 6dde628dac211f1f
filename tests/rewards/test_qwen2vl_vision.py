"""Batched vision attention equals transformers' own, picture by picture."""

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2_vl import modeling_qwen2_vl

import longtake.rewards.qwen2vl.layers as ours_module
from longtake.rewards.qwen2vl.layers import VisionAttention, patch_positions
from longtake.rewards.qwen2vl.model import Qwen2VLRewardModel
from longtake.runtime.rng import generator, normal
from longtake.tests.tiny_reward import random_prompts, tiny_config, tiny_reward_model

EQUAL = [[1, 4, 6], [1, 4, 6], [1, 4, 6]]
VIDEO_AND_IMAGE = [[3, 4, 6], [1, 4, 6]]  # a video's frame pairs attend alone: four equal parts
UNEQUAL = [[1, 4, 6], [1, 8, 4], [1, 4, 6]]


def stock_attention(model: Qwen2VLRewardModel) -> None:
    """Put transformers' own attention into the vision tower, with the same weights."""
    config = model.config.backbone.vision_config
    for block in model.model.visual.blocks:
        stock = modeling_qwen2_vl.VisionAttention(config)
        stock.load_state_dict(block.attn.state_dict())
        block.attn = stock.eval()


def pixels_of(grid: Tensor, seed: int) -> Tensor:
    return normal((int(grid.prod(-1).sum()), 1176), seed, "pixels")


def calls_of_attention(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the queries of every attention call from now on."""
    shapes: list[tuple[int, ...]] = []
    real = ours_module.scaled_dot_product_attention

    def recorded(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shapes.append(tuple(query.shape))
        return real(query, key, value)

    monkeypatch.setattr(ours_module, "scaled_dot_product_attention", recorded)
    return shapes


@pytest.mark.parametrize("sizes", [EQUAL, VIDEO_AND_IMAGE, UNEQUAL])
def test_vision_tokens_equal_those_of_the_stock_attention(sizes: list[list[int]]) -> None:
    grid = torch.tensor(sizes)
    for seed in range(3):
        model = tiny_reward_model(tiny_config("ranknet"), seed)
        with torch.no_grad():
            ours = model.vision_tokens(pixels_of(grid, seed), grid)
            stock_attention(model)
            expected = model.vision_tokens(pixels_of(grid, seed), grid)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        assert float((ours[:6] - ours[6:12]).abs().max()) > 0.1


def test_pictures_of_one_size_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_reward_model(tiny_config("ranknet"), 0)
    shapes = calls_of_attention(monkeypatch)
    for sizes, pictures in ((EQUAL, 3), (VIDEO_AND_IMAGE, 4)):
        grid = torch.tensor(sizes)
        model.vision_tokens(pixels_of(grid, 0), grid)
        assert shapes == [(pictures, 2, 24, 16)] * 2  # two layers
        shapes.clear()
    grid = torch.tensor(UNEQUAL)
    model.vision_tokens(pixels_of(grid, 0), grid)
    assert shapes == [(1, 2, 24, 16), (1, 2, 32, 16), (1, 2, 24, 16)] * 2


def test_gradients_equal_those_of_the_stock_attention() -> None:
    model = tiny_reward_model(tiny_config("ranknet"), 1)
    batch = random_prompts(model.config, 1, [5, 9])
    gradients = []
    for stock in (False, True):
        if stock:
            stock_attention(model)
        weight = model.model.visual.blocks[0].attn.qkv.weight.requires_grad_(True)
        model(**batch)[:, 0].sum().backward()
        gradients.append(weight.grad)
    assert gradients[0] is not None and gradients[1] is not None
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
    assert float(gradients[0].abs().max()) > 1e-2


def test_a_picture_attends_to_itself_only() -> None:
    attention = VisionAttention(32, 2)
    x = torch.randn(48, 32, generator=generator(0, "x"))
    ends = torch.tensor([0, 24, 48])
    angles = torch.randn(48, 16, generator=generator(0, "angles"))
    tables = (angles.cos(), angles.sin())
    changed = x.clone()
    changed[24:] += 1
    with torch.no_grad():
        ours, other = attention(x, ends, tables), attention(changed, ends, tables)
    torch.testing.assert_close(ours[:24], other[:24], rtol=0, atol=1e-6)
    assert float((ours[24:] - other[24:]).abs().max()) > 1e-2


@pytest.mark.parametrize("sizes", [EQUAL, VIDEO_AND_IMAGE, UNEQUAL])
def test_positions_follow_the_order_of_the_patches(sizes: list[list[int]]) -> None:
    """Frame by frame, 2x2 groups row by row, and within a group row by row."""
    wanted = [
        (2 * y + dy, 2 * x + dx)
        for t, h, w in sizes
        for _ in range(t)
        for y in range(h // 2)
        for x in range(w // 2)
        for dy in range(2)
        for dx in range(2)
    ]
    assert patch_positions(torch.tensor(sizes), 2).tolist() == [list(place) for place in wanted]
