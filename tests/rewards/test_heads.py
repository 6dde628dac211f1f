"""Reward heads against their formulas, and which head a checkpoint holds."""

import pytest
import torch

from longtake.rewards.qwen2vl.layers import (
    HEADS,
    RanknetHead,
    TokenLinearHead,
    build_head,
    infer_head,
)
from longtake.runtime.errors import CheckpointError, UserError


@pytest.mark.parametrize("seed", range(3))
def test_ranknet_is_two_relu_layers_and_a_linear_one(seed: int) -> None:
    torch.manual_seed(seed)
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


@pytest.mark.parametrize("seed", range(3))
def test_one_row_is_shared_and_three_rows_take_the_diagonal(seed: int) -> None:
    torch.manual_seed(seed)
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


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
@pytest.mark.parametrize("kind", HEADS)
def test_the_head_is_read_off_the_shapes(kind: str, prefix: str) -> None:
    head = build_head(kind, 8)
    shapes = {f"{prefix}rm_head.{name}": t.shape for name, t in head.state_dict().items()}
    assert infer_head({"visual.norm.weight": (3,), **shapes}) == kind


@pytest.mark.parametrize(
    "shapes",
    [
        {"model.norm.weight": (8,)},
        {"rm_head.weight": (2, 8)},
        {"rm_head.weight": (8,)},
        {"rm_head.weight": (1, 8), "rm_head.bias": (1,)},
        {"rm_head.0.weight": (1024, 8), "rm_head.0.bias": (1024,)},
    ],
)
def test_other_heads_are_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(CheckpointError, match="no reward head of a known form"):
        infer_head(shapes)


def test_unknown_forms_list_the_known_ones() -> None:
    with pytest.raises(UserError, match="diagonal_linear"):
        build_head("mlp", 8)
