"""Rotary tables, vision attention and heads against formulas and transformers' own layers."""

import math

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl import modeling_qwen2_vl

from longtake.rewards.qwen2vl.layers import (
    HEADS,
    RanknetHead,
    TextRotary,
    TokenLinearHead,
    VisionRotary,
    infer_head,
    patch_positions,
)
from longtake.runtime.errors import CheckpointError
from longtake.runtime.rng import normal
from longtake.tests.tiny_reward import random_prompts, tiny_config, tiny_reward_model


def bf16(value):
    """Round to nearest even at 8 significant bits, from the definition."""
    if value == 0:
        return 0.0
    unit = 2.0 ** (math.floor(math.log2(abs(value))) - 7)
    return round(value / unit) * unit  # Python rounds halves to even


def frequency(i, dim, theta):
    return float(np.float32(theta ** (-2 * i / dim)))


@pytest.mark.parametrize("precision", ["float32", "bf16_frequencies", "bf16"])
def test_text_tables(precision):
    positions = torch.tensor([[0, 1, 7, 900], [3, 4, 5, 6]])
    cos, sin = TextRotary(16, 1e6, precision)(torch.zeros(1), positions.expand(3, 2, 4))
    assert cos.shape == sin.shape == (2, 4, 16) and cos.dtype == torch.float32
    for row, column, i in np.ndindex(2, 4, 8):
        exact = frequency(i, 16, 1e6)
        angle = int(positions[row, column]) * (exact if precision == "float32" else bf16(exact))
        for half in (i, i + 8):
            assert abs(float(cos[row, column, half]) - math.cos(angle)) < 1e-4
            assert abs(float(sin[row, column, half]) - math.sin(angle)) < 1e-4


@pytest.mark.parametrize("precision", ["float32", "bf16_frequencies", "bf16"])
def test_vision_tables(precision):
    places = torch.tensor([[0, 0], [1, 5], [23, 41], [40, 2]])
    cos, sin = VisionRotary(16, 1e4, precision)(torch.zeros(1), places)
    assert cos.shape == sin.shape == (4, 16) and cos.dtype == torch.float32
    for patch, axis, i in np.ndindex(4, 2, 4):
        omega = frequency(i, 8, 1e4)
        if precision != "float32":
            omega = bf16(omega)
        angle = int(places[patch, axis]) * omega
        expected = (math.cos(angle), math.sin(angle))
        if precision == "bf16":
            angle = bf16(angle)
            expected = (bf16(math.cos(angle)), bf16(math.sin(angle)))
        for half in (0, 8):  # row channels, then column channels, and the same again
            channel = half + 4 * axis + i
            assert abs(float(cos[patch, channel]) - expected[0]) < 1e-5
            assert abs(float(sin[patch, channel]) - expected[1]) < 1e-5


EQUAL = [[1, 4, 6], [1, 4, 6], [1, 4, 6]]
VIDEO_AND_IMAGE = [[3, 4, 6], [1, 4, 6]]  # a video's frame pairs attend alone: four equal parts
UNEQUAL = [[1, 4, 6], [1, 8, 4], [1, 4, 6]]


def stock_attention(model):
    """Put transformers' own attention into the vision tower, with the same weights."""
    config = model.config.backbone.vision_config
    for block in model.model.visual.blocks:
        stock = modeling_qwen2_vl.VisionAttention(config)
        stock.load_state_dict(block.attn.state_dict())
        block.attn = stock.eval()


def pixels_of(grid, seed):
    return normal((int(grid.prod(-1).sum()), 1176), seed, "pixels")


@pytest.mark.parametrize("sizes", [EQUAL, VIDEO_AND_IMAGE, UNEQUAL])
def test_vision_tokens_equal_those_of_the_stock_attention(sizes):
    grid = torch.tensor(sizes)
    for seed in range(2):
        model = tiny_reward_model(tiny_config("ranknet"), seed)
        with torch.no_grad():
            ours = model.vision_tokens(pixels_of(grid, seed), grid)
            stock_attention(model)
            expected = model.vision_tokens(pixels_of(grid, seed), grid)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        assert float((ours[:6] - ours[6:12]).abs().max()) > 0.1


def test_gradients_equal_those_of_the_stock_attention():
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


def test_positions_follow_the_order_of_the_patches():
    """Frame by frame, 2x2 groups row by row, and within a group row by row."""
    sizes = VIDEO_AND_IMAGE + UNEQUAL
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


def test_ranknet_is_two_relu_layers_and_a_linear_one():
    torch.manual_seed(0)
    head = RanknetHead(24).eval()
    rows = torch.randn(5, 1, 24)
    state = {name: tensor.double() for name, tensor in head.state_dict().items()}
    x = rows[:, 0].double()
    for layer in ("0", "3"):
        x = (x @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]).clamp(min=0)
    expected = x @ state["5.weight"].T + state["5.bias"]
    torch.testing.assert_close(head.score_rows(rows, [0]).double(), expected, atol=1e-6, rtol=1e-5)
    assert [tuple(t.shape) for t in state.values()] == [
        (1024, 24), (1024,), (16, 1024), (16,), (2, 16), (2,),
    ]  # fmt: skip


def test_one_row_is_shared_and_three_rows_take_the_diagonal():
    torch.manual_seed(0)
    rows = torch.randn(5, 3, 24)
    shared, diagonal = TokenLinearHead(24, 1), TokenLinearHead(24, 3)
    scores = shared.score_rows(rows, [0, 1, 2])
    expected = torch.stack([rows[:, i] @ shared.weight[0] for i in range(3)], dim=1)
    torch.testing.assert_close(scores, expected)
    scores = diagonal.score_rows(rows, [0, 1, 2])
    full = rows @ diagonal.weight.T  # [5, token, row]
    torch.testing.assert_close(scores, full.diagonal(dim1=1, dim2=2))
    # The row belongs to the token, not to its place in the request.
    torch.testing.assert_close(diagonal.score_rows(rows[:, [2, 1]], [2, 1]), scores[:, [2, 1]])


def test_the_head_is_read_off_the_shapes():
    for kind, head in HEADS.items():
        state = head(8).state_dict()
        shapes = {f"base_model.model.rm_head.{name}": t.shape for name, t in state.items()}
        assert infer_head({"visual.norm.weight": (3,), **shapes}) == kind
    for other in (
        {"model.norm.weight": (8,)},
        {"rm_head.weight": (2, 8)},
        {"rm_head.weight": (1, 8), "rm_head.bias": (1,)},
    ):
        with pytest.raises(CheckpointError, match="no reward head of a known form"):
            infer_head(other)
