"""Reproduce checkpoints/tiny from nothing: tokenizer, VAE, text encoder, DiT.

``python cli.py sandbox pretrain`` renders the sandbox's train split, trains the VAE in stages,
then the DiT and its text encoder jointly, and writes a checkpoint in the public layout. The state
of training is saved under ``OUT/state`` while it runs; ``--resume`` continues from there.

Real video corpora mix good and bad clips. The training clips do too: the wild ones carry
corruptions under an unchanged caption, so that the model learns a spread of qualities and
post-training has something to choose from. How often they are seen is decided per batch.
"""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from longtake.core import whole_clip
from longtake.core.checkpoint import save_checkpoint
from longtake.core.dit import DiTConfig, LongCatDiT
from longtake.core.text import TextEncoder, new_text_encoder, train_tokenizer
from longtake.core.vae import VideoVAE
from longtake.core.video import to_uint8
from longtake.runtime.config import Config, config_to_yaml, merge_config
from longtake.runtime.device import pick_device
from longtake.runtime.errors import RunDirectoryError
from longtake.runtime.files import replacing, write_json, write_jsonl
from longtake.runtime.progress import progress_bar
from longtake.runtime.provenance import collect
from longtake.runtime.rng import derive_key, generator
from longtake.runtime.run_directory import RunDirectory
from longtake.sandbox.captions import caption
from longtake.sandbox.corruptions import wild_clip
from longtake.sandbox.render import render
from longtake.sandbox.scene import Scene, sample_scenes
from longtake.training.flow_matching import BaseTrainer, BaseTrainingConfig, Batch
from longtake.training.vae import VAETrainer, VAETrainingConfig, build_vae

STATISTICS_CLIPS = 4096
RENDER_CHUNK = 512


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
    base: BaseTrainingConfig = BaseTrainingConfig(
        num_steps=9800, batch_size=256, learning_rate=1.0e-3, ema_decay=0.999
    )
    """Flow-matching training of the DiT, mostly on clean clips."""
    mixed: BaseTrainingConfig = BaseTrainingConfig(
        seed=1,
        num_steps=300,
        batch_size=48,
        learning_rate=3.0e-4,
        final_learning_rate_ratio=0.1,
        warmup_steps=50,
        ema_decay=0.98,
    )
    """Its continuation on the clip mix that web video is. Without it the model is so good that
    rewards have nothing to improve (docs/LOG.md)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipPool:
    """Rendered training clips of the train split, the wild ones first."""

    video: Tensor
    """uint8 [N, T, 3, H, W] on the training device."""
    scenes: list[Scene]
    """What each clip shows."""
    num_wild: int
    """Clips 0 to num_wild - 1 are corrupted."""

    def rows(self, size: int, wild_share: float, rng: torch.Generator) -> Tensor:
        """Draw ``size`` row numbers [size]; each is a wild clip with chance ``wild_share``."""
        device, total = self.video.device, len(self.scenes)
        u = torch.rand(2, size, generator=rng, device=device, dtype=torch.float64)
        if self.num_wild in (0, total):
            return (u[1] * total).long()
        wild = u[1] * self.num_wild
        clean = self.num_wild + u[1] * (total - self.num_wild)
        return torch.where(u[0] < wild_share, wild, clean).long()


def render_pool(
    num_clean: int, num_wild: int, wild_passes: int, seed: int, device: torch.device | str
) -> ClipPool:
    """Render clips of the train split; each wild one carries ``wild_passes`` corruptions."""
    scenes = sample_scenes(derive_key(seed, "pool"), 0, num_wild + num_clean, "train")
    parts = []
    for start, stop in _chunks(num_wild):
        clips = render(scenes[start:stop], device=device).float() / 255
        # A CPU generator: the damage is the same whatever device trains.
        rng = generator(seed, "wild", start)
        for _ in range(wild_passes):
            clips = wild_clip(clips, rng)
        parts.append(to_uint8(clips))
    for start, stop in _chunks(num_clean):
        parts.append(render(scenes[num_wild + start : num_wild + stop], device=device))
    return ClipPool(video=torch.cat(parts), scenes=scenes, num_wild=num_wild)


def _chunks(total: int) -> list[tuple[int, int]]:
    starts = range(0, total, RENDER_CHUNK)
    return [(start, min(total, start + RENDER_CHUNK)) for start in starts]


def pool_captions(pool: ClipPool, per_clip: int, seed: int) -> list[str]:
    """``per_clip`` captions of every clip, clip-major."""
    return [
        caption(scene, derive_key(seed, "caption", i, j))
        for i, scene in enumerate(pool.scenes)
        for j in range(per_clip)
    ]


@torch.no_grad()
def encode_pool(vae: VideoVAE, pool: ClipPool, chunk: int = 16) -> Tensor:
    """Raw latents (not normalised) of every clip, posterior means, [N, C, T, h, w] float16."""
    parts = []
    for clips in pool.video.split(chunk):
        moments = whole_clip.encode_moments(vae.model, to_vae_range(clips))
        parts.append(moments[:, : vae.channels].half())
    return torch.cat(parts)


def to_vae_range(clips: Tensor) -> Tensor:
    """uint8 [B, T, 3, H, W] to float [B, 3, T, H, W] in [-1, 1]."""
    return clips.float().div(127.5).sub(1).transpose(1, 2)


def tokenize_all(text: TextEncoder, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids and mask [N, L] of many captions, on the model's device."""
    parts = [text.tokenize(captions[i : i + 4096]) for i in range(0, len(captions), 4096)]
    ids, mask = (torch.cat(part) for part in zip(*parts, strict=True))
    device = next(text.model.parameters()).device
    return ids.to(device), mask.to(device)


class JointText(nn.Module):
    """Text encoder as a module of token ids, so that the DiT's loss trains it too."""

    def __init__(self, text: TextEncoder) -> None:
        super().__init__()
        self.model = text.model
        self._embed = text.embed

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask [B, L] to states [B, 1, L, D]."""
        return self._embed(ids, mask)


class PretrainState:
    """The ``state`` folder of an unfinished checkpoint: a run directory and a file per trainer.

    A saved state holds the trainer, the records and the seconds spent, so that after a kill at any
    moment the continued run writes the records of an uninterrupted one.

    Raises:
        RunDirectoryError: the folder belongs to a run with other settings.
    """

    def __init__(self, folder: Path, config: PretrainConfig, device: torch.device) -> None:
        self.run = RunDirectory.create(folder, config_to_yaml(config), resume=True)
        self.device = device
        self.seconds: dict[str, float] = {}
        self.records: list[dict[str, Any]] = []
        self._part, self._since = "", time.perf_counter()

    def start(self, part: str) -> None:
        """Begin to count the seconds of ``part``; the part before it ends."""
        self._lap()
        self._part = part

    def _lap(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._part:
            spent = self.seconds.get(self._part, 0.0) + now - self._since
            self.seconds[self._part] = round(spent, 2)
        self._since = now

    def train(
        self,
        part: str,
        trainer: BaseTrainer | VAETrainer,
        records: Iterator[Mapping[str, Any]],
        save_every: int,
    ) -> None:
        """Let a trainer run to its end, from its last save on: recorded, and saved on the way."""
        self.start(part)
        self._load(part, trainer)
        with progress_bar(part, trainer.total) as bar:
            for record in records:
                if "loss" in record:
                    self.records.append({"part": part, **record})
                    self.run.append_metrics(self.records[-1])
                    bar.update(trainer.done, loss=record["loss"])
                if trainer.done % save_every == 0:
                    self._save(part, trainer)
        self._save(part, trainer)

    def _save(self, part: str, trainer: BaseTrainer | VAETrainer) -> None:
        self._lap()
        state = {
            "trainer": trainer.state_dict(),
            "seconds": self.seconds,
            "records": self.records,
        }
        with self.run.writing(f"{part}.pt"), replacing(self.run.path / f"{part}.pt") as temporary:
            torch.save(state, temporary)

    def _load(self, part: str, trainer: BaseTrainer | VAETrainer) -> None:
        file = self.run.path / f"{part}.pt"
        if file.exists():
            state = torch.load(file, map_location=self.device, weights_only=True)
            trainer.load_state_dict(state["trainer"])
            self.seconds, self._since = state["seconds"], time.perf_counter()
            self.records = state["records"]
        # Records that were written after the last save come again.
        write_jsonl(self.run.path / "metrics.jsonl", self.records)


def pretrain(
    out: Path,
    overrides: Sequence[str] = (),
    *,
    config_file: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Train the tiny model and write its checkpoint to ``out``.

    Returns the record of ``provenance.json``; with ``dry_run`` only the plan. RunDirectoryError if
    ``out`` has content and ``resume`` is off, is finished already, or is of other settings.
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
    state = PretrainState(out / "state", config, where)
    with state.run, _fast_arithmetic(where):
        return _Pretraining(config, out, state, where).train()


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
    """One run, read from top to bottom; what trains saves its state while it runs."""

    def __init__(
        self, config: PretrainConfig, out: Path, state: PretrainState, device: torch.device
    ) -> None:
        self.config, self.out, self.state, self.device = config, out, state, device

    def train(self) -> dict[str, Any]:
        config, device = self.config, self.device
        self.state.start("data")
        pool = render_pool(
            config.num_clean_clips, config.num_wild_clips, config.wild_passes, config.seed, device
        )
        captions = pool_captions(pool, config.captions_per_clip, config.seed)
        text = self._text_encoder(captions)
        tokens = tokenize_all(text, captions)
        vae = self._train_vae(pool)
        z, z_mixed = self._latents(vae, pool)
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
        dit.initialize(generator(config.seed, "dit_init")).to(device)
        empty_ids, empty_mask = text.tokenize([""])
        # Jointly, unlike the report: no pretrained umT5 of this width exists.
        joint = JointText(text).train().requires_grad_(True)
        for part, stage, latents, wild_share in (
            ("dit", config.base, z, config.wild_share),
            ("mixed", config.mixed, z_mixed, config.mixed_wild_share),
        ):
            trainer = BaseTrainer(dit, joint, empty_ids[0], empty_mask[0], stage)
            batches = partial(
                self._batch, part, stage.batch_size, pool, wild_share, latents, tokens
            )
            self.state.train(part, trainer, trainer.train(batches), config.save_every)
            trainer.load_ema()  # what the next stage starts from, and what is shipped
        joint.eval().requires_grad_(False)
        text.clear_cache()
        return self._write(text, vae, dit.eval())

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
        # diffusers draws from the global generator; nobody else should see that.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_key(config.seed, "vae_init") % 2**31)
            model = build_vae(config.vae).to(self.device)

        def clips(size: int, rng: torch.Generator) -> Tensor:
            return to_vae_range(pool.video[pool.rows(size, config.vae_wild_share, rng)])

        trainer = VAETrainer(model, config.vae, clips, config.seed)
        self.state.train("vae", trainer, trainer.train(), config.save_every)
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

        def normalised(raw: Tensor) -> Tensor:
            return torch.cat([vae.normalise(part.float()).half() for part in raw.split(1024)])

        z = normalised(raw)
        if not pool.num_wild:
            return z, z
        worse = render_pool(0, pool.num_wild, config.mixed_wild_passes, config.seed, self.device)
        return z, torch.cat([normalised(encode_pool(vae, worse)), z[pool.num_wild :]])

    def _batch(
        self,
        part: str,
        size: int,
        pool: ClipPool,
        wild_share: float,
        z: Tensor,
        tokens: tuple[Tensor, Tensor],
        step: int,
    ) -> Batch:
        """The batch of a step, drawn from the key (seed, part, step)."""
        rng = torch.Generator(self.device).manual_seed(derive_key(self.config.seed, part, step))
        row, number = pool.rows(size, wild_share, rng), self.config.captions_per_clip
        pick = torch.randint(number, (size,), generator=rng, device=self.device)
        ids, mask = (table[row * number + pick] for table in tokens)
        return {"z": z[row], "ids": ids, "mask": mask}

    def _write(self, text: TextEncoder, vae: VideoVAE, dit: LongCatDiT) -> dict[str, Any]:
        config = self.config
        self.state.start("write")
        dit, vae, text = dit.cpu(), vae.cpu(), text.cpu()
        save_checkpoint(self.out, dit=dit, vae=vae, text=text, shift=config.sampling_shift)
        parts = ("tokenizer", "text_encoder", "vae", "scheduler", "dit")
        record = {
            "config": config.model_dump(),
            "seconds": self.state.seconds,
            "final": {line["part"]: line for line in self.state.records},
            **collect({part: self.out / part for part in parts}),
        }
        write_json(self.out / "provenance.json", record)
        write_jsonl(self.out / "history.jsonl", self.state.records)
        shutil.rmtree(self.state.run.path)
        return record
