"""Per-frame scale and shift against a gather over all tokens, in value and gradient."""

import pytest
import torch
from torch import Tensor

from longtake.core.block_order import scale_and_shift_frames, scale_frames
from longtake.kernels.block_sparse.layout import BlockLayout

LAYOUTS = [
    BlockLayout((4, 4, 8), (2, 2, 4)),
    BlockLayout((5, 3, 7), (4, 4, 4)),
    BlockLayout((5, 3, 7), (2, 2, 3), (1, 4)),
    BlockLayout((6, 5, 2), (4, 2, 2), (3, 3)),
    BlockLayout((1, 3, 3), (4, 2, 2)),
]


def draw(*shape: int, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: str(layout.grid))
def test_equals_a_gather_over_tokens(layout: BlockLayout) -> None:
    y = draw(2, layout.num_tokens, 3, seed=0)
    factor, shift = (draw(2, layout.grid[0], 3, seed=seed) for seed in (1, 2))
    frame = layout.frame_index()
    weight = draw(*y.shape, seed=3).detach()
    for ours, theirs, inputs in (
        (scale_frames(y, factor, layout), y * factor[:, frame], (y, factor)),
        (
            scale_and_shift_frames(y, factor, shift, layout),
            y * factor[:, frame] + shift[:, frame],
            (y, factor, shift),
        ),
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
        found = torch.autograd.grad((ours * weight).sum(), inputs)
        wanted = torch.autograd.grad((theirs * weight).sum(), inputs)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: str(layout.grid))
def test_block_order_and_plain_order_agree(layout: BlockLayout) -> None:
    y = draw(2, layout.num_tokens, 3, seed=0)
    factor, shift = (draw(2, layout.grid[0], 3, seed=seed) for seed in (1, 2))
    blocked = scale_and_shift_frames(layout.to_block(y, 1), factor, shift, layout)
    plain = scale_and_shift_frames(y, factor, shift)
    assert torch.equal(layout.from_block(blocked, 1), plain)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_only_asked_gradients_are_computed(frozen: int) -> None:
    layout = LAYOUTS[2]
    inputs = [draw(1, n, 2, seed=n) for n in (layout.num_tokens, 5, 5)]
    inputs[2] = draw(1, 5, 2, seed=6)
    inputs[frozen].requires_grad_(False)
    assert torch.autograd.gradcheck(
        lambda *x: scale_and_shift_frames(*x, layout), tuple(inputs), fast_mode=True
    )


def test_strided_tokens_and_gradients() -> None:
    layout = LAYOUTS[1]
    source = draw(2, 3, layout.num_tokens, seed=0)
    factor = draw(2, 5, 3, seed=1)
    y = source.transpose(1, 2)
    out = scale_frames(y, factor, layout)
    (grad,) = torch.autograd.grad(out.sum(), source)  # an expanded gradient
    expected = factor[:, layout.frame_index()].transpose(1, 2)
    torch.testing.assert_close(grad, expected, atol=1e-12, rtol=0)


def test_one_frame_for_all_tokens() -> None:
    layout = LAYOUTS[1]
    y, factor, shift = draw(2, layout.num_tokens, 3, seed=0), draw(2, 1, 3, seed=1), None
    shift = draw(2, 1, 3, seed=2)
    out = scale_and_shift_frames(y, factor, shift, layout)
    torch.testing.assert_close(out, y * factor + shift)
    torch.testing.assert_close(scale_frames(y, factor, layout), y * factor)


def test_compiled_and_eager_agree() -> None:
    layout = LAYOUTS[2]
    inputs = [draw(2, n, 3, seed=n) for n in (layout.num_tokens, 5)] + [draw(2, 5, 3, seed=6)]
    compiled = torch.compile(scale_and_shift_frames, backend="aot_eager", fullgraph=True)
    weight = draw(2, layout.num_tokens, 3, seed=3).detach()
    results = []
    for function in (scale_and_shift_frames, compiled):
        out = function(*inputs, layout)
        results.append((out, *torch.autograd.grad((out * weight).sum(), inputs)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
