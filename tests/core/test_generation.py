"""The `generate` command: three tasks from files to a file, and errors that write nothing."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan

from longtake.core import generation
from longtake.core.checkpoint import save_checkpoint
from longtake.core.dit import DiTConfig, LongCatDiT
from longtake.core.generation import GenerationConfig, generate_to_file
from longtake.core.lora import add_lora, lora_parameters, save_lora
from longtake.core.text import TextEncoder, new_text_encoder, train_tokenizer
from longtake.core.vae import VideoVAE
from longtake.core.video import read_video, write_mp4, write_png
from longtake.runtime.errors import UserError

CONFIG = DiTConfig(
    hidden_size=32,
    depth=2,
    num_heads=2,
    caption_channels=16,
    adaln_tembed_dim=16,
    frequency_embedding_size=16,
)
SMALL = ["num_steps=2", "num_frames=9", "height=32", "width=32"]


def random_dit() -> LongCatDiT:
    dit = LongCatDiT(CONFIG).requires_grad_(False)
    source = torch.Generator().manual_seed(0)
    for parameter in dit.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.15)
    return dit.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generation")
    tokenizer = train_tokenizer(["a red circle"], 100, 8, root / "scratch")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    return save_checkpoint(
        root / "tiny",
        dit=random_dit(),
        vae=VideoVAE(vae.eval()),
        text=TextEncoder(tokenizer, new_text_encoder(len(tokenizer), 16, num_heads=2).eval()),
        shift=3.0,
    )


def sample(checkpoint: Path, out: Path, **options: object) -> torch.Tensor:
    arguments = {"checkpoint": checkpoint, "overrides": SMALL, "device": "cpu", **options}
    written = generate_to_file("a red circle", out, **arguments)  # type: ignore[arg-type]
    assert written.path == out and written.unknown_words == []
    video, fps = read_video(out)
    assert video.shape == (written.num_frames, 3, written.height, written.width)
    assert fps == 8
    return video.float()


def test_text_to_video_depends_on_the_seed_only(checkpoint: Path, tmp_path: Path) -> None:
    first = sample(checkpoint, tmp_path / "new" / "a.mp4", seed=1)
    assert first.shape == (9, 3, 32, 32)
    assert torch.equal(sample(checkpoint, tmp_path / "b.mp4", seed=1), first)
    assert not torch.equal(sample(checkpoint, tmp_path / "c.mp4", seed=2), first)


def test_a_condition_changes_the_video(checkpoint: Path, tmp_path: Path) -> None:
    plain = sample(checkpoint, tmp_path / "plain.mp4")
    image = write_png(torch.full((32, 32, 3), 200, dtype=torch.uint8), tmp_path / "image.png")
    clip = write_mp4(torch.rand(13, 3, 32, 32), tmp_path / "clip.mp4", fps=8)
    from_image = sample(checkpoint, tmp_path / "i.mp4", image=image)
    from_clip = sample(checkpoint, tmp_path / "v.mp4", video=clip)
    assert plain.shape == from_image.shape == from_clip.shape
    assert not torch.equal(from_image, plain) and not torch.equal(from_clip, plain)


def test_continuation_sees_the_last_frames_only(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = torch.randint(256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    end, seen, results = end.to(torch.uint8), [], []
    encode = VideoVAE.encode
    monkeypatch.setattr(VideoVAE, "encode", lambda vae, x: seen.append(x) or encode(vae, x))
    for start in (torch.zeros(3, 3, 32, 32), torch.full((7, 3, 32, 32), 255)):
        clip = torch.cat((start.to(torch.uint8), end))
        # Not through a file: compression would let the beginning leak into the end.
        monkeypatch.setattr(generation, "read_video", lambda *_, clip=clip, **__: (clip, 8.0))
        results.append(sample(checkpoint, tmp_path / "v.mp4", video=Path("clip.mp4")))
    for condition in seen:  # nothing else of the clip reaches the model, nor a view into it
        assert torch.equal(condition[0], end)
        assert condition.untyped_storage().nbytes() == end.nbytes
    assert torch.equal(*results)


def test_words_that_the_encoder_never_saw_are_named(checkpoint: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, "num_steps=1", "num_frames=1"]
    prompt = "A red dog, a red circle; 2 photographs"
    clip = generate_to_file(
        prompt, tmp_path / "x.mp4", checkpoint=checkpoint, overrides=overrides, device="cpu"
    )
    assert clip.unknown_words == ["dog", "photographs"]


def test_loras_are_applied(checkpoint: Path, tmp_path: Path) -> None:
    dit = random_dit()
    add_lora(dit, 2, 2.0, 0)
    for parameter in lora_parameters(dit).values():
        parameter.data.fill_(0.1)
    save_lora(dit, tmp_path / "lora", layout="peft")
    plain = sample(checkpoint, tmp_path / "plain.mp4")
    assert not torch.equal(sample(checkpoint, tmp_path / "l.mp4", loras=[tmp_path / "lora"]), plain)


def test_block_sparse_attention_is_an_option(checkpoint: Path, tmp_path: Path) -> None:
    videos = []
    for number, options in enumerate(([], ["bsa=false"], ["bsa=true"])):
        overrides = [*SMALL, "num_frames=17", *options]  # 5 frames of 2 x 2 tokens: 2 blocks
        videos.append(sample(checkpoint, tmp_path / f"{number}.mp4", overrides=overrides))
    dense, off, sparse = videos
    assert torch.equal(dense, off) and not torch.equal(dense, sparse)
    overrides = [*SMALL, "num_frames=17", "bsa=true", "bsa_sparsity=0"]
    all_blocks = sample(checkpoint, tmp_path / "all.mp4", overrides=overrides)
    # Rounding differs, and the codec answers to that.
    assert (all_blocks - dense).abs().mean() < 0.1 * (sparse - dense).abs().mean()


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("num_frames=10", "4 n \\+ 1"),
        ("num_condition_frames=4", "4 n \\+ 1"),
        ("num_steps=0", "greater than 0"),
        ("fps=0", "greater than 0"),
        ("shift=-1", "greater than 0"),
        ("cfg=zero", "cfg_zero"),
        ("bsa_sparsity=1", "less than 1"),
        ("bsa_sparsity=0.5", "bsa=true"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, override: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        generate_to_file("x", tmp_path / "x.mp4", overrides=[override])
    assert not list(tmp_path.iterdir())


def test_bad_inputs_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    clip = write_mp4(torch.rand(5, 3, 48, 48), tmp_path / "clip.mp4", fps=8)
    for options in (
        {"image": clip, "video": clip},
        {"image": tmp_path / "absent.png"},
        {"video": clip},  # 48x48, not 32x32
        {"device": "cuda:99"},
        {"loras": [tmp_path / "absent.safetensors"]},
    ):
        with pytest.raises(UserError):
            sample(checkpoint, out, **options)
        assert not out.exists()
    with pytest.raises(UserError, match="incomplete"):
        sample(tmp_path, out)


def test_the_default_settings_are_valid() -> None:
    assert GenerationConfig().num_frames == 17
