"""Sampler and guided velocity: the three tasks, the cache, guidance, and batch independence."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from longtake.core.checkpoint import Checkpoint
from longtake.core.dit import DiTConfig, LongCatDiT
from longtake.core.flow import sigmas
from longtake.core.guidance import Condition, Text, encode_condition, guided_velocity
from longtake.core.sampler import generate, sample_latents
from longtake.core.text import TextEncoder, new_text_encoder, train_tokenizer
from longtake.core.vae import VideoVAE
from longtake.runtime.errors import UserError

CONFIG = DiTConfig(
    hidden_size=32,
    depth=2,
    num_heads=2,
    caption_channels=16,
    adaln_tembed_dim=16,
    frequency_embedding_size=16,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def dit() -> LongCatDiT:
    model = LongCatDiT(CONFIG).requires_grad_(False)
    source = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.15)
    return model.eval()


def texts(batch: int = 2) -> tuple[Text, Text]:
    mask = torch.ones(batch, 5, dtype=torch.int64)
    mask[:, 3:] = 0
    return (draw(batch, 1, 5, 16, seed=4), mask), (draw(1, 1, 5, 16, seed=5), mask[:1])


class Count:
    """Counts forward calls and the samples in them."""

    def __init__(self, dit: LongCatDiT) -> None:
        self.calls, self.samples = 0, 0
        self.handle = dit.register_forward_hook(self.add, with_kwargs=True)

    def add(self, module: object, args: tuple[Tensor, ...], kwargs: object, out: object) -> None:
        self.calls += 1
        self.samples += len(args[0])


def test_one_step_by_hand(dit: LongCatDiT) -> None:
    noise, (cond, uncond) = draw(2, 16, 2, 4, 4), texts()
    out = sample_latents(dit, noise, cond, uncond, [0.8, 0.3], 4.0)
    time = torch.full((2,), 800.0)
    v_c = dit(noise, time, *cond)
    v_u = dit(noise, time, uncond[0].repeat(2, 1, 1, 1), uncond[1].repeat(2, 1))
    for b in range(2):
        star = (v_c[b] * v_u[b]).sum() / (v_u[b].square().sum() + 1e-8)
        v = star * v_u[b] + 4.0 * (v_c[b] - star * v_u[b])
        torch.testing.assert_close(out[b], noise[b] + 0.5 * v, atol=1e-4, rtol=1e-5)


def test_modes(dit: LongCatDiT) -> None:
    x, (cond, uncond) = draw(2, 16, 2, 4, 4), texts()
    plain = guided_velocity(dit, x, 0.5, cond, None, 4.0, "none")
    assert torch.equal(guided_velocity(dit, x, 0.5, cond, None, 1.0), plain)
    v_u = guided_velocity(dit, x, 0.5, uncond, None, 1.0)
    torch.testing.assert_close(
        guided_velocity(dit, x, 0.5, cond, uncond, 3.0, "cfg"), 3 * plain - 2 * v_u
    )


def test_one_forward_of_both_branches_equals_two(dit: LongCatDiT) -> None:
    x, (cond, uncond) = draw(2, 16, 2, 4, 4), texts()
    count = Count(dit)
    one = guided_velocity(dit, x, torch.tensor([0.2, 0.9]), cond, uncond, 4.0)
    assert (count.calls, count.samples) == (1, 4)
    two = guided_velocity(dit, x, torch.tensor([0.2, 0.9]), cond, uncond, 4.0, batched=False)
    assert (count.calls, count.samples) == (3, 8)
    count.handle.remove()
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_rollout_and_training_velocity_are_bitwise_equal(dit: LongCatDiT) -> None:
    x, (cond, uncond) = draw(2, 16, 2, 4, 4), texts()
    with torch.no_grad():
        rollout = guided_velocity(dit, x, 0.7, cond, uncond, 4.0)
    x.requires_grad_(True)
    train = guided_velocity(dit, x, 0.7, cond, uncond, 4.0)
    assert train.requires_grad and torch.equal(train.detach(), rollout)


def test_gradient_choices(dit: LongCatDiT) -> None:
    x, (cond, uncond) = draw(1, 16, 1, 4, 4), texts(1)
    grads = {}
    for scale in (True, False):
        for branch in (True, False):
            z = x.clone().requires_grad_(True)
            guided_velocity(
                dit, z, 0.7, cond, uncond, 4.0, detach_scale=scale, detach_uncond=branch
            ).square().sum().backward()
            grads[scale, branch] = z.grad
    values = list(grads.values())
    assert all(not torch.allclose(a, b) for i, a in enumerate(values) for b in values[:i])
    z = x.clone().requires_grad_(True)
    guided_velocity(
        dit, z, 0.7, cond, uncond, 4.0, detach_uncond=True, batched=False
    ).square().sum().backward()
    torch.testing.assert_close(z.grad, grads[True, True], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("num_cond", [1, 2])
def test_cache_changes_rounding_only(dit: LongCatDiT, batched: bool, num_cond: int) -> None:
    noise, clean = draw(2, 16, 2, 4, 4), draw(2, 16, num_cond, 4, 4, seed=9)
    cond, uncond = texts()
    schedule = sigmas(4, 3.0)
    count = Count(dit)
    cached = sample_latents(dit, noise, cond, uncond, schedule, cond_latents=clean, batched=batched)
    assert count.calls == 1 + 4 * (1 if batched else 2)
    full = sample_latents(
        dit,
        noise,
        cond,
        uncond,
        schedule,
        cond_latents=clean,
        use_kv_cache=False,
        batched=batched,
    )
    count.handle.remove()
    assert cached.shape == (2, 16, num_cond + 2, 4, 4)
    assert torch.equal(cached[:, :, :num_cond], clean)
    torch.testing.assert_close(cached, full, atol=1e-5, rtol=1e-5)
    free = sample_latents(dit, noise, cond, uncond, schedule)
    assert (full[:, :, num_cond:] - free).abs().max() > 1e-2


def test_guidance_scale_ignores_condition_latents(dit: LongCatDiT) -> None:
    x, clean, (cond, uncond) = draw(2, 16, 2, 4, 4), draw(2, 16, 1, 4, 4, seed=9), texts()
    condition = Condition(clean)
    v_c = guided_velocity(dit, x, 0.6, cond, None, 1.0, condition=condition)
    v_u = guided_velocity(dit, x, 0.6, uncond, None, 1.0, condition=condition)
    assert v_c.shape == x.shape
    star = (v_c * v_u).flatten(1).sum(1) / v_u.square().flatten(1).sum(1)
    expected = star.view(2, 1, 1, 1, 1) * v_u
    expected = expected + 4 * (v_c - expected)
    for made in (condition, encode_condition(dit, clean), encode_condition(dit, clean, 2)):
        out = guided_velocity(dit, x, 0.6, cond, uncond, 4.0, condition=made)
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def test_callback_sees_every_step(dit: LongCatDiT) -> None:
    seen: list[tuple[int, float]] = []
    cond, uncond = texts()
    out = sample_latents(
        dit,
        draw(2, 16, 2, 4, 4),
        cond,
        uncond,
        [1.0, 0.5, 0.0],
        callback=lambda step, t, x: seen.append((step, t)),
    )
    assert seen == [(0, 0.5), (1, 0.0)] and not out.requires_grad


@pytest.fixture(scope="module")
def checkpoint(dit: LongCatDiT, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = train_tokenizer(["a red circle", "a blue square"], 100, 8, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    text = TextEncoder(tokenizer, new_text_encoder(len(tokenizer), 16, num_heads=2).eval())
    vae = VideoVAE(model.eval().requires_grad_(False))
    return Checkpoint(dit=dit, vae=vae, text=text, shift=3.0, path=Path("memory"))


PROMPTS = ["a red circle", "a blue square", "a red square"]


def test_generate_does_not_depend_on_the_batch_split(checkpoint: Checkpoint) -> None:
    whole = generate(checkpoint, PROMPTS, 5, 32, 32, steps=2, seed=3)
    assert whole.shape == (3, 5, 3, 32, 32) and whole.min() >= 0 and whole.max() <= 1
    split = generate(checkpoint, PROMPTS, 5, 32, 32, steps=2, seed=3, batch_size=2)
    torch.testing.assert_close(split, whole, atol=1e-4, rtol=1e-4)
    assert torch.equal(generate(checkpoint, PROMPTS, 5, 32, 32, steps=2, seed=3), whole)
    assert not torch.allclose(generate(checkpoint, PROMPTS, 5, 32, 32, steps=2, seed=4), whole)


def test_generate_starts_from_an_image_or_a_video(checkpoint: Checkpoint) -> None:
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    first = checkpoint.vae.decode(checkpoint.vae.encode(image[None, None]))
    clip = generate(checkpoint, PROMPTS, 9, 32, 32, steps=2, image=image)
    assert clip.shape == (3, 9, 3, 32, 32)
    for b in range(3):
        torch.testing.assert_close(clip[b, 0], first[0, 0], atol=1e-4, rtol=1e-4)
    video = torch.rand(3, 5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    longer = generate(checkpoint, PROMPTS, 9, 32, 32, steps=2, video=video)
    start = checkpoint.vae.decode(checkpoint.vae.encode(video))
    torch.testing.assert_close(longer[:, :5], start, atol=1e-4, rtol=1e-4)


def test_generate_errors(checkpoint: Checkpoint) -> None:
    image, video = torch.rand(3, 32, 32), torch.rand(9, 3, 32, 32)
    with pytest.raises(UserError, match="4k"):
        generate(checkpoint, PROMPTS, 6, 32, 32)
    with pytest.raises(UserError, match="condition frames"):
        generate(checkpoint, PROMPTS, 9, 32, 32, video=video)
    with pytest.raises(UserError, match="condition frames"):
        generate(checkpoint, PROMPTS, 9, 64, 32, image=image)
