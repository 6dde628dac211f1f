"""Reproduce checkpoints/tiny from nothing: tokenizer, VAE, text encoder, DiT.

``python cli.py sandbox pretrain`` renders the sandbox's train split, trains the VAE in stages,
then the DiT and its text encoder jointly, and writes a checkpoint in the public layout. The state
of training is saved under ``OUT/state`` while it runs; ``--resume`` continues from there.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from longtake.core.checkpoint import save_checkpoint
from longtake.core.dit import DiTConfig, LongCatDiT
from longtake.core.text import TextEncoder, new_text_encoder, train_tokenizer
from longtake.core.vae import VideoVAE
from longtake.runtime.config import Config, config_to_yaml, merge_config
from longtake.runtime.device import pick_device
from longtake.runtime.errors import RunDirectoryError
from longtake.runtime.progress import progress_bar
from longtake.runtime.provenance import collect
from longtake.runtime.rng import derive_key, generator
from longtake.sandbox.recipes.pretrain_state import PretrainState
from longtake.sandbox.recipes.sandbox_data import (
    ClipPool,
    encode_pool,
    pool_captions,
    render_pool,
    to_vae_range,
    tokenize_all,
)
from longtake.training.flow_matching import BaseTrainer, BaseTrainingConfig, Batch
from longtake.training.vae import VAETrainer, VAETrainingConfig, build_vae

STATISTICS_CLIPS = 4096


def _base_stage() -> BaseTrainingConfig:
    return BaseTrainingConfig(num_steps=9800, batch_size=256, learning_rate=1.0e-3, ema_decay=0.999)


def _mixed_stage() -> BaseTrainingConfig:
    return BaseTrainingConfig(
        seed=1,
        num_steps=300,
        batch_size=48,
        learning_rate=3.0e-4,
        final_learning_rate_ratio=0.1,
        warmup_steps=50,
        ema_decay=0.98,
    )


Share = Annotated[float, Field(ge=0, le=1)]


class PretrainConfig(Config):
    """Everything that defines checkpoints/tiny."""

    seed: int = 0
    """Names every draw: scenes, captions, initial weights, noise."""
    num_clean_clips: PositiveInt = 16000
    """Training clips as rendered."""
    num_wild_clips: int = 4000
    """Training clips that carry corruptions, as web video does."""
    wild_passes: int = 1
    """Corruptions of each wild clip."""
    wild_share: Share = 0.1
    """Chance that a clip of a DiT batch is a wild one."""
    mixed_wild_share: Share = 1.0
    """The same in the mixed stage, the DiT's second; sets how much rewards find to improve."""
    mixed_wild_passes: int = 4
    """Corruptions of each wild clip in the mixed stage."""
    vae_wild_share: Share = 0.05
    """The same for VAE batches."""
    captions_per_clip: PositiveInt = 4
    """Paraphrases per clip; a step picks one."""
    max_text_tokens: int = 48
    """Padded caption length."""
    vocab_size: int = 320
    """Upper bound of the tokenizer's vocabulary."""
    text_dim: int = 64
    """Width of the umT5 encoder."""
    hidden_size: int = 128
    """Width of the DiT."""
    depth: int = 6
    """Blocks of the DiT."""
    num_heads: int = 2
    """Attention heads of the DiT."""
    adaln_dim: int = 128
    """Timestep-embedding width."""
    sampling_shift: float = 3.0
    """Timestep shift written to scheduler/scheduler_config.json."""
    save_every: PositiveInt = 200
    """Optimizer steps between resumable states."""
    vae: VAETrainingConfig = VAETrainingConfig()
    """VAE shape and stages."""
    base: BaseTrainingConfig = _base_stage()
    """Flow-matching training of the DiT, mostly on clean clips."""
    mixed: BaseTrainingConfig = _mixed_stage()
    """Its continuation on the clip mix that web video is. Without it the model is so good that
    rewards have nothing to improve (docs/LOG.md)."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Batches:
    """Draws the batch of a step of one DiT stage from the key (seed, stage, step)."""

    pool: ClipPool
    z: Tensor
    ids: Tensor
    mask: Tensor
    captions_per_clip: int
    size: int
    wild_share: float
    key: tuple[int, str]

    def __call__(self, step: int) -> Batch:
        device = self.ids.device
        rng = torch.Generator(device).manual_seed(derive_key(*self.key, step))
        row = self.pool.rows(self.size, self.wild_share, rng)
        pick = torch.randint(self.captions_per_clip, (self.size,), generator=rng, device=device)
        text_row = row * self.captions_per_clip + pick
        return {"z": self.z[row], "ids": self.ids[text_row], "mask": self.mask[text_row]}


def _normalised(vae: VideoVAE, raw: Tensor) -> Tensor:
    return torch.cat([vae.normalise(part.float()).half() for part in raw.split(1024)])


class JointText(nn.Module):
    """Text encoder as a module of token ids, so that the DiT's loss trains it too."""

    def __init__(self, text: TextEncoder) -> None:
        super().__init__()
        self.model = text.model
        self._embed = text.embed

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask [B, L] to states [B, 1, L, D]."""
        return self._embed(ids, mask)


def pretrain(
    out: Path,
    overrides: Sequence[str] = (),
    *,
    config_file: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Train and write the tiny checkpoint.

    Args:
        out: checkpoint directory to write; ``out/state`` holds resumable states until the end.
        overrides: ``key=value`` settings of :class:`PretrainConfig`.
        config_file: YAML with the same keys.
        resume: continue from ``out/state`` instead of refusing a directory that has content.
        dry_run: only return the plan.
        device: "auto", "cpu" or "cuda".

    Returns:
        Plan with ``dry_run``; else the record written to ``provenance.json``.

    Raises:
        RunDirectoryError: ``out`` has content and ``resume`` is off, or is finished already.
        ConfigError: unknown settings, or others than those of the run to resume.
    """
    config = merge_config(PretrainConfig(), config_file, overrides)
    where = pick_device(device)
    if dry_run:
        return {
            "config": config.model_dump(),
            "device": str(where),
            "vae_steps": sum(config.vae.stage_steps),
            "dit_steps": config.base.num_steps + config.mixed.num_steps,
        }
    if out.exists() and any(out.iterdir()):
        if not resume:
            raise RunDirectoryError(
                "the output directory is not empty",
                received=str(out),
                expected="a new or empty directory",
                remedy="pass --resume to continue it, or another --out",
            )
        if not (out / "state").is_dir():
            raise RunDirectoryError(
                "nothing to resume in the output directory",
                received=str(out),
                expected="a state folder, which an interrupted pretraining leaves behind",
                remedy="the checkpoint is finished, or pass another --out",
            )
    state = PretrainState(out / "state", config_to_yaml(config), where)
    with _fast_arithmetic(where):
        return _Pretraining(config, out, state, where).run()


@contextmanager
def _fast_arithmetic(device: torch.device) -> Iterator[None]:
    """TF32 products and measured convolution algorithms on a GPU, for the time of the run."""
    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    saved = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.benchmark = cudnn.allow_tf32 = matmul.allow_tf32 = True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = saved


class _Pretraining:
    """One run: each method is one part and saves its state while it runs."""

    def __init__(
        self, config: PretrainConfig, out: Path, state: PretrainState, device: torch.device
    ) -> None:
        self.config, self.out, self.state, self.device = config, out, state, device

    def run(self) -> dict[str, Any]:
        config = self.config
        self.state.start("data")
        pool = render_pool(
            config.num_clean_clips,
            config.num_wild_clips,
            config.wild_passes,
            config.seed,
            self.device,
        )
        captions = pool_captions(pool, config.captions_per_clip, config.seed)
        text = self._text_encoder(captions)
        ids, mask = tokenize_all(text, captions)
        vae = self._train_vae(pool)
        z, z_mixed = self._latents(vae, pool)
        dit = self._train_dit(text, pool, z, z_mixed, ids.to(self.device), mask.to(self.device))
        return self._write(text, vae, dit)

    def _text_encoder(self, captions: list[str]) -> TextEncoder:
        config = self.config
        tokenizer = train_tokenizer(
            captions, config.vocab_size, config.max_text_tokens, self.out / "tokenizer"
        )
        model = new_text_encoder(
            len(tokenizer), config.text_dim, seed=derive_key(config.seed, "text") % 2**31
        )
        return TextEncoder(tokenizer, model).to(self.device)

    def _train_vae(self, pool: ClipPool) -> VideoVAE:
        config = self.config
        self.state.start("vae")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_key(config.seed, "vae_init") % 2**31)
            model = build_vae(config.vae).to(self.device)

        def clips(size: int, rng: torch.Generator) -> Tensor:
            return to_vae_range(pool.video[pool.rows(size, config.vae_wild_share, rng)])

        trainer = VAETrainer(model, config.vae, clips, config.seed)
        self.state.load("vae", trainer)
        before = [sum(config.vae.stage_steps[:i]) for i in range(len(config.vae.stage_steps))]
        with progress_bar("VAE", sum(config.vae.stage_steps)) as bar:
            for record in trainer.train():
                done = before[int(record["stage"])] + int(record["step"])
                if "loss" in record:
                    self.state.record({"part": "vae", **record})
                    bar.update(done, stage=record["stage"] + 1, loss=record["loss"])
                if done % config.save_every == 0:
                    self.state.save("vae", trainer)
        self.state.save("vae", trainer)
        return VideoVAE(model.eval().requires_grad_(False)).to(self.device)

    def _latents(self, vae: VideoVAE, pool: ClipPool) -> tuple[Tensor, Tensor]:
        """Normalised latents [N, C, T, h, w], float16, of both stages of the DiT.

        They differ in the wild clips, which carry more corruptions in the mixed stage. The
        statistics of the normalisation are those of clean clips.
        """
        config = self.config
        self.state.start("encode")
        raw = encode_pool(vae, pool)
        clean = raw[pool.num_wild :][:STATISTICS_CLIPS].float()
        std, mean = torch.std_mean(clean, dim=(0, 2, 3, 4))
        vae.set_latent_statistics(mean.tolist(), std.tolist())
        z = _normalised(vae, raw)
        if not pool.num_wild:
            return z, z
        worse = render_pool(0, pool.num_wild, config.mixed_wild_passes, config.seed, self.device)
        return z, torch.cat([_normalised(vae, encode_pool(vae, worse)), z[pool.num_wild :]])

    def _train_dit(
        self,
        text: TextEncoder,
        pool: ClipPool,
        z: Tensor,
        z_mixed: Tensor,
        ids: Tensor,
        mask: Tensor,
    ) -> LongCatDiT:
        config = self.config
        dit = LongCatDiT(
            DiTConfig(
                in_channels=z.shape[1],
                out_channels=z.shape[1],
                hidden_size=config.hidden_size,
                depth=config.depth,
                num_heads=config.num_heads,
                caption_channels=config.text_dim,
                adaln_tembed_dim=config.adaln_dim,
                text_tokens_zero_pad=True,
            )
        )
        dit.initialize(generator(config.seed, "dit_init")).to(self.device)
        empty_ids, empty_mask = text.tokenize([""])
        joint = JointText(text).train().requires_grad_(True)
        stages = (
            ("dit", config.base, z, config.wild_share),
            ("mixed", config.mixed, z_mixed, config.mixed_wild_share),
        )
        for part, stage, latents, wild_share in stages:
            trainer = BaseTrainer(dit, joint, empty_ids[0], empty_mask[0], stage)
            batches = _Batches(
                pool=pool,
                z=latents,
                ids=ids,
                mask=mask,
                captions_per_clip=config.captions_per_clip,
                size=stage.batch_size,
                wild_share=wild_share,
                key=(config.seed, part),
            )
            self._train_stage(part, trainer, batches)
        joint.eval().requires_grad_(False)
        text.clear_cache()
        return dit.eval()

    def _train_stage(self, part: str, trainer: BaseTrainer, batches: _Batches) -> None:
        """Train one stage of the DiT and leave the averaged weights in it."""
        self.state.start(part)
        self.state.load(part, trainer)
        with progress_bar(f"DiT, {part}", trainer.config.num_steps) as bar:
            for record in trainer.train(batches):
                if "loss" in record:
                    self.state.record({"part": part, **record})
                    bar.update(trainer.step, loss=float(record["loss"]))
                if trainer.step % self.config.save_every == 0:
                    self.state.save(part, trainer)
        self.state.save(part, trainer)
        trainer.load_ema()

    def _write(self, text: TextEncoder, vae: VideoVAE, dit: LongCatDiT) -> dict[str, Any]:
        config = self.config
        self.state.start("write")
        dit, vae, text = dit.cpu(), vae.cpu(), text.cpu()
        save_checkpoint(self.out, dit=dit, vae=vae, text=text, shift=config.sampling_shift)
        parts = ("tokenizer", "text_encoder", "vae", "scheduler", "dit")
        record = {
            "config": config.model_dump(),
            "seconds": self.state.seconds,
            "final": self.state.last_records(),
            **collect({part: self.out / part for part in parts}),
        }
        text_record = json.dumps(record, indent=2) + "\n"
        (self.out / "provenance.json").write_text(text_record, encoding="utf-8")
        shutil.copyfile(self.state.history, self.out / "history.jsonl")
        self.state.delete()
        return record
