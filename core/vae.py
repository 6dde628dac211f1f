"""The video VAE: pixels in [0, 1] to normalised latents and back.

Wraps diffusers' ``AutoencoderKLWan`` (3D causal VAE, 4x8x8 compression, report section 3.1). The
DiT works on latents with mean 0 and deviation 1 per channel, z = (z_raw - mean) / std, with both
vectors kept in the VAE's own config. Nothing else in the package touches raw latents.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from longtake.core import shapes, whole_clip
from longtake.core.weights import fill_model, read_json
from longtake.runtime.errors import CheckpointError, UserError

WEIGHTS_STEM = "diffusion_pytorch_model"
#: Largest batch, in pixels x frames, that is decoded in one pass: 1.7 times faster on a CPU at
#: 64 px, but all frames of every layer are in memory at once.
WHOLE_CLIP_PIXELS = 2**20


class VideoVAE(nn.Module):
    """Encoder and decoder between clips and normalised latents.

    Neither direction switches gradients off: wrap calls in ``torch.no_grad()`` where none are
    needed. Clips never mix, so splitting a batch changes the result only by float rounding.

    Args:
        model: the diffusers VAE; its config carries ``latents_mean`` and ``latents_std``.
    """

    def __init__(self, model: AutoencoderKLWan) -> None:
        super().__init__()
        self.model = model
        config = model.config
        channels = int(config.z_dim)
        mean, std = list(config.latents_mean), list(config.latents_std)
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise CheckpointError(
                "the latent statistics of the VAE config do not fit its channels",
                received=f"{len(mean)} means and {len(std)} deviations, smallest {min(std)}",
                expected=f"{channels} of each, every deviation positive",
                remedy="measure them again and call set_latent_statistics",
            )
        shape = (1, channels, 1, 1, 1)
        self.register_buffer(
            "latents_mean", torch.tensor(mean, dtype=torch.float32).view(shape), persistent=False
        )
        self.register_buffer(
            "latents_std", torch.tensor(std, dtype=torch.float32).view(shape), persistent=False
        )
        self.latents_mean: Tensor
        self.latents_std: Tensor

    @property
    def channels(self) -> int:
        """Number of latent channels."""
        return int(self.model.config.z_dim)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Latent shape ``(C, T_lat, h, w)`` of one clip; UserError for sizes that do not fit."""
        return shapes.latent_shape(num_frames, height, width, self.channels)

    def set_latent_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Store measured raw-latent statistics, one value per channel, in module and config."""
        values_mean, values_std = [float(v) for v in mean], [float(v) for v in std]
        assert len(values_mean) == len(values_std) == self.channels
        if min(values_std) <= 0:
            raise UserError(
                "latent deviations must be positive",
                received=min(values_std),
                expected="> 0 for every channel",
                remedy="a dead channel means the VAE has collapsed; train it longer",
            )
        self.model.register_to_config(latents_mean=values_mean, latents_std=values_std)
        with torch.no_grad():
            self.latents_mean.copy_(torch.tensor(values_mean).view_as(self.latents_mean))
            self.latents_std.copy_(torch.tensor(values_std).view_as(self.latents_std))

    def encode(
        self, video: Tensor, *, generator: torch.Generator | None = None, chunk: int = 8
    ) -> Tensor:
        """Normalised latents [B, C, T_lat, H/8, W/8] of clips, in the parameter dtype.

        ``video`` is [B, T, 3, H, W], float in [0, 1] or uint8, T = 4k + 1, H and W multiples of 8.
        With a ``generator`` the posterior is drawn from, without one its mean is taken. ``chunk``
        clips pass at a time (memory); it never changes the draws.
        """
        assert video.ndim == 5 and video.shape[2] == 3, video.shape
        size = self.latent_shape(video.shape[1], video.shape[3], video.shape[4])
        # Drawn for all clips at once, so that the chunk size does not change it.
        noise = None
        if generator is not None:
            noise = torch.randn((len(video), *size), generator=generator, device=generator.device)
        parts = []
        for start in range(0, len(video), chunk):
            clips = _to_vae_range(video[start : start + chunk], self._dtype, self._device)
            posterior = self.model.encode(clips).latent_dist
            z = posterior.mean
            if noise is not None:
                z = z + posterior.std * noise[start : start + chunk].to(z)
            parts.append(self.normalise(z))
        return torch.cat(parts) if parts else video.new_zeros((0, *size), dtype=self._dtype)

    def decode(self, z: Tensor, chunk: int = 8) -> Tensor:
        """Clips of normalised latents.

        ``z`` is [B, C, T_lat, h, w], the result [B, T, 3, H, W] float in [0, 1], clamped, with
        T = 4 T_lat - 3. ``chunk`` clips pass at a time (memory).
        """
        assert z.ndim == 5 and z.shape[1] == self.channels, z.shape
        parts = []
        for start in range(0, len(z), chunk):
            raw = self.denormalise(z[start : start + chunk].to(self._device)).to(self._dtype)
            parts.append(self._decode_raw(raw))
        if not parts:
            _, _, t, h, w = z.shape
            stride = shapes.SPATIAL_STRIDE
            return z.new_zeros((0, shapes.pixel_frames(t), 3, h * stride, w * stride))
        # Frames before channels from here on: what readers and rewards of video expect.
        video = torch.cat(parts).transpose(1, 2)  # [B, T, 3, H, W] in [-1, 1]
        return (video.float() * 0.5 + 0.5).clamp(0, 1)

    def _decode_raw(self, raw: Tensor) -> Tensor:
        """[B, 3, T, H, W] in [-1, 1]. Small clips in one pass, larger ones frame by frame."""
        _, _, t, h, w = raw.shape
        pixels = len(raw) * shapes.pixel_frames(t) * h * w * shapes.SPATIAL_STRIDE**2
        if pixels <= WHOLE_CLIP_PIXELS:
            return whole_clip.decode(self.model, raw).clamp(-1, 1)
        output: Tensor = self.model.decode(raw, return_dict=False)[0]
        return output

    def normalise(self, z_raw: Tensor) -> Tensor:
        """(z_raw - mean) / std per channel, computed in float32, returned in the input dtype."""
        return ((z_raw.float() - self.latents_mean) / self.latents_std).to(z_raw.dtype)

    def denormalise(self, z: Tensor) -> Tensor:
        """Raw latents z * std + mean, per channel, in float32."""
        return z.float() * self.latents_std + self.latents_mean

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "VideoVAE":
        """Load from a ``vae`` folder, or from the checkpoint directory that contains it."""
        path = Path(folder)
        if not (path / "config.json").is_file() and (path / "vae").is_dir():
            path = path / "vae"
        if not (path / "config.json").is_file():
            raise CheckpointError(
                "VAE not found",
                received=str(path),
                expected=f"config.json and {WEIGHTS_STEM}.safetensors",
                remedy="point to a checkpoint directory with a complete vae folder",
            )
        config = read_json(path / "config.json")
        try:
            with torch.device("meta"):
                model = AutoencoderKLWan.from_config(config)
        except (TypeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"the VAE config cannot be used: {error}",
                received=str(path / "config.json"),
                expected="the configuration of a diffusers AutoencoderKLWan",
                remedy="copy the file again from its source",
            ) from error
        fill_model(model, path, WEIGHTS_STEM, device, dtype)
        return cls(model).to(device=device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and safetensors weights into ``folder`` (the vae folder itself)."""
        self.model.save_pretrained(str(folder), safe_serialization=True)

    @property
    def _dtype(self) -> torch.dtype:
        parameter: Tensor = next(self.model.parameters())
        return parameter.dtype

    @property
    def _device(self) -> torch.device:
        parameter: Tensor = next(self.model.parameters())
        return parameter.device


def _to_vae_range(video: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[b, T, 3, H, W] uint8 or float in [0, 1] -> [b, 3, T, H, W] in [-1, 1]."""
    pixels = video.to(device)
    pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
    return (pixels * 2 - 1).to(dtype).transpose(1, 2)
