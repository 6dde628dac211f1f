"""The DiT in block order: equal to the plain one, and to a dense one with the selection as mask."""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from longtake.core import attention
from longtake.core.block_order import BSAConfig
from longtake.core.dit import DiTConfig, LongCatDiT, disable_bsa, enable_bsa
from longtake.core.golden import check_file
from longtake.core.guidance import Text, encode_condition
from longtake.core.lora import add_lora, lora_parameters
from longtake.core.sampler import sample_latents
from longtake.runtime.errors import UserError

DATA = Path(__file__).parents[1] / "data"
CONFIG = DiTConfig(
    in_channels=3,
    out_channels=3,
    hidden_size=24,
    depth=2,
    num_heads=2,
    caption_channels=8,
    adaln_tembed_dim=12,
    frequency_embedding_size=8,
)
BLOCK = (2, 2, 3)
FRAME = (3, 7)
"""Tokens of a frame: neither side is a multiple of the block."""
FRAMES = 5
ALL = BSAConfig(block=BLOCK, sparsity=0.0)
ALL_BY_KERNEL = BSAConfig(block=BLOCK, topk=1000, backend="reference")
SPARSE = BSAConfig(block=BLOCK, topk=4)

Call = Callable[[LongCatDiT, Tensor], Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64)


@pytest.fixture(scope="module")
def plain() -> LongCatDiT:
    dit = LongCatDiT(CONFIG).double()
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.3)
    return dit.eval()


def with_bsa(dit: LongCatDiT, config: BSAConfig) -> LongCatDiT:
    other = copy.deepcopy(dit)
    enable_bsa(other, config)
    return other


def latents(frames: int = FRAMES, seed: int = 1) -> Tensor:
    return draw(2, 3, frames, 2 * FRAME[0], 2 * FRAME[1], seed=seed)


def text(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two prompts of different lengths."""
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[0, 2:] = 0
    return draw(2, 1, 6, 8, seed=2).to(dtype), mask


def frame_times(num_cond: int = 0) -> Tensor:
    times = 500 + 300 * draw(2, FRAMES, seed=3)
    times[:, :num_cond] = 0
    return times


def text_to_video(dit: LongCatDiT, z: Tensor) -> Tensor:
    return dit(z, torch.tensor([300.0, 900.0]), *text(z.dtype))


def time_per_frame(dit: LongCatDiT, z: Tensor) -> Tensor:
    return dit(z, frame_times(), *text(z.dtype))


def conditioned(num_cond: int) -> Call:
    def call(dit: LongCatDiT, z: Tensor) -> Tensor:
        alone = num_cond == FRAMES
        options = {"num_cond_latents": num_cond, "skip_cross_attention": alone}
        return dit(z, frame_times(num_cond), *text(z.dtype), **options)

    return call


def cached(num_cond: int, is_shared: bool = False) -> Call:
    def call(dit: LongCatDiT, z: Tensor) -> Tensor:
        clean, noisy = z[:, :, :num_cond], z[:, :, num_cond:]
        times = torch.tensor([300.0, 900.0]) if is_shared else frame_times()[:, num_cond:]
        out, cache = dit(
            clean,
            torch.zeros(2),
            *text(z.dtype),
            num_cond_latents=num_cond,
            return_kv=True,
            skip_cross_attention=True,
        )
        after = dit(noisy, times, *text(z.dtype), num_cond_latents=num_cond, kv_cache=cache)
        return torch.cat((out, after), dim=2)

    return call


CALLS: dict[str, Call] = {
    "text to video": text_to_video,
    "time per frame": time_per_frame,
    "one condition frame": conditioned(1),
    "three condition frames": conditioned(3),
    "condition frames alone": conditioned(FRAMES),
    "cache of one frame": cached(1, is_shared=True),
    "cache of three frames": cached(3),
    "cache of all but one": cached(4),
}


def gradients(dit: LongCatDiT, call: Call) -> dict[str, Tensor]:
    """The output, and gradients of a random projection of it for the input and all weights."""
    z = latents().requires_grad_()
    out = call(dit, z)
    named = {"input": z, **dict(dit.named_parameters())}
    used = torch.autograd.grad(
        (out * draw(*out.shape, seed=7)).sum(), list(named.values()), allow_unused=True
    )
    found = zip(named, used, strict=True)
    return {"output": out.detach(), **{name: g for name, g in found if g is not None}}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        bound = 1e-9 * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(ours[name], value, atol=bound, rtol=0, msg=name)


@pytest.mark.parametrize(
    "config",
    [
        ALL,
        ALL_BY_KERNEL,
        BSAConfig(topk=1000, backend="reference"),  # 4 x 4 x 4: larger than a frame is high
        BSAConfig(block=(1, 3, 7), cdf_p=1.0, backend="reference"),  # whole frames
    ],
    ids=["dense", "kernel", "large blocks", "frames"],
)
@pytest.mark.parametrize("name", CALLS)
def test_all_blocks_give_the_plain_model(plain: LongCatDiT, name: str, config: BSAConfig) -> None:
    expected = gradients(plain, CALLS[name])
    assert_equal(gradients(with_bsa(plain, config), CALLS[name]), expected)


def place(segments: tuple[int, ...]) -> Tensor:
    """Block of every token in plain order, counted token by token: int64 [N]."""
    blocks: dict[tuple[int, ...], int] = {}
    found, start = [], 0
    for number, frames in enumerate(segments):
        for t, y, x in product(range(frames), range(FRAME[0]), range(FRAME[1])):
            key = (number, t // BLOCK[0], y // BLOCK[1], x // BLOCK[2])
            found.append(blocks.setdefault(key, len(blocks)))
        start += frames
    return torch.tensor(found)


def select(q: Tensor, k: Tensor, topk: int) -> Tensor:
    """Which token attends to which: bool [B, H, N, M]; from the definition, in plain order."""
    tokens = FRAME[0] * FRAME[1]
    q_frames, k_frames = q.shape[2] // tokens, k.shape[2] // tokens
    before = k_frames - q_frames
    places = place((q_frames,)), place((before, q_frames) if before else (q_frames,))
    if k_frames == 1:
        return torch.ones(*q.shape[:3], k.shape[2], dtype=torch.bool)
    member_q, member_k = (F.one_hot(p).double() for p in places)
    means = [
        (member.mT @ x) / member.sum(0)[:, None]
        for member, x in ((member_q, q.detach()), (member_k, k.detach()))
    ]
    scores = means[0] @ means[1].mT
    best = scores.topk(min(topk, scores.shape[-1]), dim=-1).indices
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)
    return chosen[:, :, places[0]][..., places[1]]


@contextmanager
def dense_with_mask(monkeypatch: pytest.MonkeyPatch, topk: int) -> Iterator[list[float]]:
    """Self-attention of the plain model under the mask of its selection; yields densities."""
    densities: list[float] = []
    original = F.scaled_dot_product_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        if not options:  # cross-attention names its mask
            options = {"attn_mask": select(q, k, topk)}
            densities.append(float(options["attn_mask"].double().mean()))
        return original(q, k, v, **options)

    with monkeypatch.context() as patch:
        patch.setattr(attention.F, "scaled_dot_product_attention", attend)
        yield densities


@pytest.mark.parametrize("name", CALLS)
def test_sparsity_equals_a_dense_model_with_the_selection_as_mask(
    plain: LongCatDiT, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dense_with_mask(monkeypatch, 4) as densities:
        expected = gradients(plain, CALLS[name])
    assert min(densities) < 0.5
    ours = gradients(with_bsa(plain, SPARSE), CALLS[name])
    assert_equal(ours, expected)
    dense = gradients(plain, CALLS[name])["output"]
    assert float((ours["output"] - dense).abs().max()) > 1e-3


def test_the_cache_changes_nothing_under_sparsity(plain: LongCatDiT) -> None:
    dit, z, num_cond = with_bsa(plain, SPARSE), latents(), 2
    times = frame_times(num_cond)
    with torch.no_grad():
        whole = dit(z, times, *text(), num_cond_latents=num_cond)
        condition = encode_condition(dit, z[:, :, :num_cond])
        noisy = dit(
            z[:, :, num_cond:],
            times[:, num_cond:],
            *text(),
            num_cond_latents=num_cond,
            kv_cache=condition.key_values,
        )
    torch.testing.assert_close(noisy, whole[:, :, num_cond:], atol=1e-10, rtol=0)


def test_condition_frames_do_not_see_noise(plain: LongCatDiT) -> None:
    dit, z = with_bsa(plain, SPARSE), latents()
    other = z.clone()
    other[:, :, 3:] += 1.0
    with torch.no_grad():
        a, b = (conditioned(3)(dit, x) for x in (z, other))
    assert torch.equal(a[:, :, :3], b[:, :, :3]) and not torch.equal(a[:, :, 3:], b[:, :, 3:])


def test_images_stay_dense(plain: LongCatDiT) -> None:
    dit, z = with_bsa(plain, SPARSE), latents(1)
    with torch.no_grad():
        assert torch.equal(text_to_video(dit, z), text_to_video(plain, z))


def test_samples_of_a_batch_do_not_mix(plain: LongCatDiT) -> None:
    dit, z, (states, mask) = with_bsa(plain, SPARSE), latents(), text()
    with torch.no_grad():
        both = dit(z, torch.tensor([300.0, 900.0]), states, mask)
        first = dit(z[:1], torch.tensor([300.0]), states[:1, :, :2], mask[:1, :2])
    torch.testing.assert_close(both[:1], first, atol=1e-10, rtol=0)


def test_lora_gradients_and_gradient_checkpointing(plain: LongCatDiT) -> None:
    found = {}
    for name, config in (("plain", None), ("all", ALL_BY_KERNEL)):
        for recompute in (False, True):
            dit = copy.deepcopy(plain)
            if config is not None:
                enable_bsa(dit, config)
            add_lora(dit, 2, 2.0, seed=0)
            dit.gradient_checkpointing = recompute
            weights = lora_parameters(dit)
            for number, weight in enumerate(weights.values()):
                weight.data = 0.1 * draw(*weight.shape, seed=number)
            conditioned(2)(dit, latents()).square().sum().backward()
            found[name, recompute] = {key: weight.grad for key, weight in weights.items()}
    for key in (("plain", True), ("all", False), ("all", True)):
        assert_equal(found[key], found["plain", False])


def test_switching_back_restores_the_model(plain: LongCatDiT) -> None:
    dit = with_bsa(plain, SPARSE)
    with torch.no_grad():
        before, sparse = text_to_video(plain, latents()), text_to_video(dit, latents())
        disable_bsa(dit)
        after = text_to_video(dit, latents())
    assert torch.equal(before, after) and not torch.equal(before, sparse)


@pytest.mark.parametrize("name", ["text to video", "three condition frames", "cache of one frame"])
def test_bfloat16_autocast(plain: LongCatDiT, name: str) -> None:
    found = []
    for config in (None, ALL_BY_KERNEL):
        dit = copy.deepcopy(plain).float()
        if config is not None:
            enable_bsa(dit, config)
        with torch.autocast("cpu", torch.bfloat16):
            out = CALLS[name](dit, latents().float())
        out.float().square().sum().backward()
        grads = [p.grad.flatten() for p in dit.parameters() if p.grad is not None]
        found.append((out.double(), torch.cat(grads).double()))
    exact = CALLS[name](plain, latents()).detach()
    (dense, dense_grad), (ours, our_grad) = found
    # Both round to bfloat16 at the same places but one: no error beyond that of dense attention.
    assert (ours - exact).norm() < 1.3 * (dense - exact).norm()
    assert (our_grad - dense_grad).norm() < 0.05 * dense_grad.norm()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text to video", "three condition frames"])
def test_compiles_without_graph_breaks(plain: LongCatDiT, name: str) -> None:
    dit = with_bsa(plain, SPARSE)
    compiled = torch.compile(dit, backend="aot_eager", fullgraph=True)
    expected = gradients(dit, CALLS[name])["output"]
    out = CALLS[name](compiled, latents().requires_grad_())
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=0)
    out.sum().backward()


def test_a_cache_of_another_order_is_refused(plain: LongCatDiT) -> None:
    clean, noisy = latents(2), latents(3)
    models = plain, with_bsa(plain, SPARSE), with_bsa(plain, BSAConfig(topk=4))
    with torch.no_grad():
        caches = [encode_condition(dit, clean).key_values for dit in models]
        for (i, dit), (j, cache) in product(enumerate(models), enumerate(caches)):
            options = {"num_cond_latents": 2, "kv_cache": cache}
            if i == j:
                assert dit(noisy, torch.zeros(2), *text(), **options).isfinite().all()
                continue
            with pytest.raises(UserError, match="enable_bsa"):
                dit(noisy, torch.zeros(2), *text(), **options)


def test_golden_outputs_hold_in_block_order(tmp_path: Path) -> None:
    with safe_open(DATA / "dit.safetensors", "pt") as file:
        metadata = file.metadata()
    shape = [2, 2, 3]
    params = {"sparsity": 0.0, "chunk_3d_shape_q": shape, "chunk_3d_shape_k": shape}
    config = json.loads(metadata["config"]) | {"enable_bsa": True, "bsa_params": params}
    path = tmp_path / "dit.safetensors"
    tensors = load_file(DATA / "dit.safetensors")
    save_file(tensors, path, {**metadata, "config": json.dumps(config)})
    save_file(
        load_file(DATA / "dit_lora.safetensors"),
        tmp_path / "dit_lora.safetensors",
        safe_open(DATA / "dit_lora.safetensors", "pt").metadata(),
    )
    results = check_file(path)
    assert {"t2v.out", "cond.out", "kv.out", "lora.out"} <= {r.name for r in results}
    failed = {r.name for r in results if not r.passed}
    assert all(name.startswith("kv.") and name != "kv.out" for name in failed)  # another order


@pytest.mark.parametrize(
    ("num_cond", "use_cache"), [(0, False), (1, False), (1, True), (2, False), (2, True)]
)
def test_sampling(plain: LongCatDiT, num_cond: int, use_cache: bool) -> None:
    noise = latents(4).float()
    clean = None if not num_cond else latents(num_cond, seed=5).float()
    cond: Text = text()
    uncond: Text = (cond[0][:1] * 0, cond[1][:1])
    found = {}
    for name, config in (("plain", None), ("all", ALL), ("sparse", SPARSE)):
        dit = plain if config is None else with_bsa(plain, config)
        found[name] = sample_latents(
            dit,
            noise,
            cond,
            uncond,
            [1.0, 0.6, 0.0],
            cond_latents=clean,
            use_kv_cache=use_cache,
        )
    torch.testing.assert_close(found["all"], found["plain"], atol=1e-4, rtol=1e-4)
    assert found["sparse"].isfinite().all()
    assert float((found["sparse"] - found["plain"]).abs().max()) > 1e-3
