"""Training of the WAN-architecture VAE from nothing, in stages of growing clip length.

Flat backgrounds dominate a plain L1, and a model that starts with full clips learns nothing else:
so images come first, then short clips, then full clips, with a foreground-weighted L1
(docs/LOG.md has the measurements this rests on).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Self

import torch
from diffusers import AutoencoderKLWan
from pydantic import model_validator
from torch import Tensor, nn

from longtake.core import shapes, whole_clip
from longtake.runtime.config import Config
from longtake.runtime.errors import ConfigError
from longtake.runtime.rng import derive_key
from longtake.training.flow_matching import (
    RECORD_EVERY,
    GraphedStep,
    finite,
    learning_rate,
)

WARMUP_STEPS = 60
FINAL_RATE = 0.02  # of the peak, at the end of a stage
FOREGROUND_CONTRAST = 0.1  # of the range [-1, 1]
INITIAL_LOG_VARIANCE = -6.0


class VAETrainingConfig(Config):
    """Shape of the VAE and its training stages."""

    base_dim: int = 8
    """Channels at full resolution (WAN 2.1: 96)."""
    dim_mult: tuple[int, ...] = (1, 2, 4, 8)
    """Channel multiple per resolution."""
    num_res_blocks: int = 1
    """Residual blocks per resolution."""
    z_dim: int = 16
    """Latent channels; the DiT's in_channels."""
    stage_frames: tuple[int, ...] = (1, 5, 17, 17)
    """Frames per clip of each stage, 4 k + 1. The last must be as long as the clips to come:
    trained on 9 frames, colours drift to white after frame 9 (docs/LOG.md)."""
    stage_crop_px: tuple[int, ...] = (32, 32, 32, 64)
    """Side of the square crop of each stage, drawn around sprite pixels; 64 is the whole frame."""
    stage_squared: tuple[float, ...] = (3.0, 2.0, 1.0, 0.0)
    """Weight of the squared error beside the L1 in each stage. Its gradient grows with the error,
    so the first stage leaves the background-only solution sooner (docs/LOG.md)."""
    stage_batch: tuple[int, ...] = (128, 64, 32, 16)
    """Clips per step of each stage."""
    stage_steps: tuple[int, ...] = (6900, 4000, 6700, 3300)
    """Optimizer steps of each stage."""
    learning_rate: float = 9.0e-4
    """AdamW peak of the first stage; each stage restarts a cosine. With an L1 alone 1e-3 never left
    the background-only solution (docs/LOG.md)."""
    stage_decay: float = 0.8
    """Each stage restarts the cosine at this share of the last stage's peak."""
    kl_weight: float = 2.0e-5
    """Weight of the KL divergence from a standard normal, mean over latent elements."""
    foreground_weight: float = 8.0
    """Extra L1 weight on pixels that differ from the frame's background."""
    edge_weight: float = 0.3
    """Weight of the L1 between image gradients, against soft edges."""
    max_grad_norm: float = 1.0
    """Gradient clipping, L2 norm."""
    precision: Literal["bf16", "tf32"] = "tf32"
    """Arithmetic on a GPU: "bf16" autocast or "tf32"; a CPU always uses float32."""

    @model_validator(mode="after")
    def _stages_are_whole(self) -> Self:
        lengths = {
            len(self.stage_frames),
            len(self.stage_crop_px),
            len(self.stage_squared),
            len(self.stage_batch),
            len(self.stage_steps),
        }
        if len(lengths) != 1 or min(self.stage_batch + self.stage_steps) < 1:
            raise ConfigError(
                "stage_frames, _crop_px, _squared, _batch and _steps must be of one length",
                received=f"{self.stage_frames}, {self.stage_crop_px}, {self.stage_batch}, "
                f"{self.stage_steps}",
                expected="one length; batches and steps >= 1",
            )
        if any(frames % 4 != 1 for frames in self.stage_frames):
            raise ConfigError(
                "the VAE packs 4 frames into one latent",
                received=self.stage_frames,
                expected="stage_frames of the form 4 k + 1",
            )
        return self


def build_vae(config: VAETrainingConfig) -> AutoencoderKLWan:
    """A WAN-architecture VAE, initialised: 4x temporal and 8x spatial compression.

    The posterior starts almost deterministic. With the default initialisation its deviation is 1
    and that of its mean 0.4: the decoder then sees noise and learns to ignore the latents.
    """
    vae = AutoencoderKLWan(
        base_dim=config.base_dim,
        z_dim=config.z_dim,
        dim_mult=list(config.dim_mult),
        num_res_blocks=config.num_res_blocks,
        temperal_downsample=[False, True, True],  # spelling of the published config key
        latents_mean=[0.0] * config.z_dim,
        latents_std=[1.0] * config.z_dim,
    )
    with torch.no_grad():
        vae.quant_conv.weight[config.z_dim :] = 0
        vae.quant_conv.bias[config.z_dim :] = INITIAL_LOG_VARIANCE
    return vae


def reconstruction_loss(
    output: Tensor,
    target: Tensor,
    *,
    foreground_weight: float,
    edge_weight: float,
    squared_weight: float = 0.0,
) -> Tensor:
    """Foreground-weighted L1 plus L1 of spatial differences.

    The weights of a clip have mean 1: otherwise a clip of pure noise, all of it foreground, would
    count several times as much as a clip with a small sprite.

    Clips are [B, 3, T, H, W] in [-1, 1]. The squared error has the same foreground weights as the
    L1, 1 + ``foreground_weight`` where the target differs from its frame's median colour.
    """
    weight = 1 + foreground_weight * foreground_mask(target)
    # Mean 1 per clip: the learning rate then means the same for a small and for a large sprite.
    weight = weight / weight.mean(dim=(1, 2, 3, 4), keepdim=True)
    error = (output - target).float()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    pointwise = error.abs() + squared_weight * error.square()
    return (pointwise * weight).mean() + edge_weight * edges


def foreground_mask(video: Tensor) -> Tensor:
    """1 where a pixel differs from its frame's median colour, [B, 1, T, H, W] float."""
    background = video.median(-1, keepdim=True).values.median(-2, keepdim=True).values
    return ((video - background).abs().amax(1, keepdim=True) > FOREGROUND_CONTRAST).float()


def crop_around_foreground(video: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """One square crop per clip, centred on a random foreground pixel; contiguous.

    Most of a sandbox frame is flat background that teaches nothing after the first minute; a
    convolutional model learns the same from a crop that shows the sprite, in less time.
    Frames [.., H, W] that are not larger than ``side`` are returned whole.
    """
    b, _, t, h, w = video.shape
    if side >= min(h, w):
        return video.contiguous()
    # A little everywhere, so that a clip without foreground can be drawn from too.
    density = foreground_mask(video).mean((1, 2)).flatten(1) + 1e-4  # [B, H W]
    centre = torch.multinomial(density, 1, generator=generator)[:, 0]
    reach = side // 4
    # Off-centre crops: else the model would learn that a sprite is always in the middle.
    shake = torch.randint(-reach, reach + 1, (2, b), generator=generator, device=video.device)
    top = (centre // w + shake[0] - side // 2).clamp(0, h - side)
    left = (centre % w + shake[1] - side // 2).clamp(0, w - side)
    span = torch.arange(side, device=video.device)
    rows = (top[:, None] + span).view(b, 1, 1, side, 1).expand(b, 3, t, side, w)
    columns = (left[:, None] + span).view(b, 1, 1, 1, side).expand(b, 3, t, side, side)
    return video.gather(3, rows).gather(4, columns)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL of N(mean, exp(log_variance)) from N(0, 1), mean over all elements, []."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


class VAETrainer:
    """Runs the stages in order; resumes bit for bit from :meth:`state_dict`.

    Args:
        vae: the model on the training device.
        config: stages and weights.
        clips: ``clips(B, generator) -> video [B, 3, T, H, W]`` in [-1, 1] on the device, T at
            least the longest stage.
        seed: names every draw.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        config: VAETrainingConfig,
        clips: Callable[[int, torch.Generator], Tensor],
        seed: int,
    ) -> None:
        self.vae, self.config, self.clips, self.seed = vae, config, clips, seed
        self.parameters = [p for p in vae.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.stage, self.step = 0, 0
        self.optimizer = self._new_optimizer()

    @property
    def done(self) -> int:
        """Steps taken, over all stages."""
        return sum(self.config.stage_steps[: self.stage]) + self.step

    @property
    def total(self) -> int:
        """Steps of all stages."""
        return sum(self.config.stage_steps)

    def _new_optimizer(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            self.parameters, betas=(0.9, 0.99), fused=self.device.type == "cuda"
        )

    def train(self) -> Iterator[dict[str, float]]:
        """Run from the current step to the end; a record per step, every 50th with ``loss``."""
        while self.stage < len(self.config.stage_steps):
            yield from self._train_stage()
            self.stage, self.step = self.stage + 1, 0
            self.optimizer = self._new_optimizer()

    def _train_stage(self) -> Iterator[dict[str, float]]:
        steps = self.config.stage_steps[self.stage]
        peak = self.config.learning_rate * self.config.stage_decay**self.stage
        graph = GraphedStep(self.loss, self.parameters)
        while self.step < steps:
            lr = learning_rate(peak, self.step, steps, WARMUP_STEPS, FINAL_RATE)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            loss = graph(self._inputs())
            norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
            finite(norm, "gradient of the VAE", self.step + 1)
            self.optimizer.step()
            self.step += 1
            record: dict[str, float] = {"stage": self.stage, "step": self.step}
            if self.step % RECORD_EVERY == 0 or self.step == steps:
                record["loss"] = float(loss)
            yield record

    def _inputs(self) -> dict[str, Tensor]:
        """Draw the clips and the posterior noise of one step from its key."""
        key = derive_key(self.seed, "vae", self.stage, self.step)
        rng = torch.Generator(self.device).manual_seed(key)
        frames = self.config.stage_frames[self.stage]
        video = self.clips(self.config.stage_batch[self.stage], rng)
        # Any part of the clip: its first frames would show every sprite near its anchor.
        start = key % (video.shape[2] - frames + 1)
        video = video[:, :, start : start + frames]
        video = crop_around_foreground(video, self.config.stage_crop_px[self.stage], rng)
        b, _, t, h, w = video.shape
        size = shapes.latent_shape(t, h, w, self.config.z_dim)
        return {"video": video, "eps": torch.randn(b, *size, generator=rng, device=self.device)}

    def loss(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Reconstruction plus KL of clips ``video`` with posterior noise ``eps``, []."""
        video, config = inputs["video"], self.config
        use_autocast = self.device.type == "cuda" and config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, use_autocast, cache_enabled=False):
            moments = whole_clip.encode_moments(self.vae, video).float()
            mean, log_variance = moments.chunk(2, dim=1)
            # As in the published posterior; exp of more overflows.
            log_variance = log_variance.clamp(-30.0, 20.0)
            z = mean + (0.5 * log_variance).exp() * inputs["eps"]
            # The published decoder clamps; the loss sees the value before, which keeps gradients.
            output = whole_clip.decode(self.vae, z).float()
        reconstruction = reconstruction_loss(
            output,
            video,
            foreground_weight=config.foreground_weight,
            edge_weight=config.edge_weight,
            squared_weight=config.stage_squared[self.stage],
        )
        return reconstruction + config.kl_weight * kl_divergence(mean, log_variance)

    def state_dict(self) -> dict[str, Any]:
        """Everything a bitwise continuation needs."""
        return {
            "stage": self.stage,
            "step": self.step,
            "vae": self.vae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.stage, self.step = int(state["stage"]), int(state["step"])
        self.vae.load_state_dict(state["vae"])
        self.optimizer.load_state_dict(state["optimizer"])
