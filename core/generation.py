"""From a prompt to an mp4: the `generate` command (text-, image- and video-conditioned)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from longtake.core.block_order import BSAConfig
from longtake.core.checkpoint import Checkpoint, load_checkpoint
from longtake.core.dit import LongCatDiT, disable_bsa, enable_bsa
from longtake.core.lora import load_lora
from longtake.core.sampler import generate
from longtake.core.video import read_video, write_mp4
from longtake.runtime.config import Config, merge_config
from longtake.runtime.device import pick_device
from longtake.runtime.errors import ConfigError, UserError

TINY_CHECKPOINT = Path(__file__).resolve().parents[1] / "checkpoints" / "tiny"


class GenerationConfig(Config):
    """What `--set` may change; the defaults are those of the tiny model."""

    num_frames: PositiveInt = 17
    """Frames of the result, 4 n + 1, condition frames included. Release: 93."""
    height: int = 64
    """Pixels, a multiple of 16. Release: 480."""
    width: int = 64
    """Pixels, a multiple of 16. Release: 832."""
    fps: PositiveFloat = 8.0
    """Frames per second of the file. Release: 15."""
    num_steps: PositiveInt = 16
    """Euler steps. Release: 50, or 16 with its distilled LoRA."""
    guidance_scale: float = 4.0
    """Guidance strength, dimensionless; 1 is none."""
    cfg: Literal["cfg_zero", "cfg", "none"] = "cfg_zero"
    """Guidance rule (report section 4.3)."""
    negative_prompt: str = ""
    """Text of the unconditional branch."""
    distilled: bool = False
    """Use the noise levels of the step-distilled model."""
    shift: PositiveFloat | None = None
    """Timestep shift; null takes the checkpoint's."""
    num_condition_frames: PositiveInt = 5
    """Frames taken from the end of the clip to continue, 4 n + 1."""
    scale: PositiveInt = 1
    """Enlargement of the pixels in the file."""
    bsa: bool | None = None
    """Block-sparse self-attention (report section 3.4.2); null takes the checkpoint's choice. A
    model that was not trained with it loses quality, above all on clips of few blocks."""
    bsa_sparsity: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of key blocks left out under ``bsa=true``; null takes the checkpoint's."""

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        for name in ("num_frames", "num_condition_frames"):
            if getattr(self, name) % 4 != 1:
                raise ConfigError(
                    f"{name} does not fit the VAE, which packs 4 frames into one latent",
                    received=getattr(self, name),
                    expected="4 n + 1",
                )
        if self.bsa_sparsity is not None and not self.bsa:
            raise ConfigError(
                "bsa_sparsity has no effect without block-sparse attention",
                received=f"bsa={self.bsa}, bsa_sparsity={self.bsa_sparsity}",
                expected="bsa=true",
                remedy="add --set bsa=true",
            )
        return self


@dataclass(frozen=True, kw_only=True)
class GeneratedClip:
    """What was written."""

    path: Path
    width: int
    height: int
    num_frames: int
    fps: float
    unknown_words: list[str]
    """Words of the prompt that the text encoder was never trained on."""


def generate_to_file(
    prompt: str,
    out: Path,
    *,
    checkpoint: Path | None = None,
    loras: Sequence[Path] = (),
    image: Path | None = None,
    video: Path | None = None,
    overrides: Sequence[str] = (),
    seed: int = 0,
    device: str = "auto",
) -> GeneratedClip:
    """Sample one video and write it as mp4; a UserError leaves nothing behind.

    ``image`` becomes the first frame, the last frames of ``video`` are continued. ``checkpoint``
    None takes checkpoints/tiny; ``overrides`` are ``key=value`` of :class:`GenerationConfig`.
    """
    config = merge_config(GenerationConfig(), overrides=overrides)
    if image is not None and video is not None:
        raise UserError(
            "an image and a video cannot both start the clip",
            received=f"{image} and {video}",
            remedy="give only one of --image and --video",
        )
    first_frame = None if image is None else read_video(image, max_frames=1)[0][0]
    clip = None
    if video is not None:
        # A copy: where the frames lay in a longer clip must leave no trace, not even in rounding.
        clip = read_video(video)[0][-config.num_condition_frames :].clone()
    model = load_model(config, checkpoint, loras, device)
    sample_to_file(model, prompt, out, config, seed=seed, image=first_frame, video=clip)
    return GeneratedClip(
        path=out,
        width=config.width * config.scale,
        height=config.height * config.scale,
        num_frames=config.num_frames,
        fps=config.fps,
        unknown_words=model.text.unknown_words(prompt),
    )


def load_model(
    config: GenerationConfig,
    checkpoint: Path | None = None,
    loras: Sequence[Path] = (),
    device: str = "auto",
) -> Checkpoint:
    """The model directory (None: checkpoints/tiny), its attention as configured, with adapters."""
    model = load_checkpoint(checkpoint or TINY_CHECKPOINT, pick_device(device))
    _switch_attention(model.dit, config)
    # Names of their own, so that several act together.
    for number, path in enumerate(loras):
        load_lora(model.dit, path, f"lora_{number}")
    return model


def sample_to_file(
    model: Checkpoint,
    prompt: str,
    out: Path,
    config: GenerationConfig,
    *,
    seed: int = 0,
    image: Tensor | None = None,
    video: Tensor | None = None,
) -> Path:
    """Sample one video of a loaded model and write it as mp4; it appears only when complete.

    ``image`` [3, H, W] becomes the first frame, ``video`` [T', 3, H, W] is continued.
    """
    pixels = generate(
        model,
        [prompt],
        config.num_frames,
        config.height,
        config.width,
        steps=config.num_steps,
        guidance_scale=config.guidance_scale,
        seed=seed,
        image=image,
        video=video,
        negative_prompt=config.negative_prompt,
        cfg=config.cfg,
        distilled=config.distilled,
        shift=config.shift,
    )
    return write_mp4(pixels[0], out, config.fps, config.scale)


def _switch_attention(dit: LongCatDiT, config: GenerationConfig) -> None:
    if config.bsa:
        settings = BSAConfig.from_published(dit.config.bsa_params or {})
        if config.bsa_sparsity is not None:
            settings = replace(settings, sparsity=config.bsa_sparsity)
        enable_bsa(dit, settings)
    elif config.bsa is False:
        disable_bsa(dit)
