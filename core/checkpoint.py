"""Checkpoint directories in the layout of the public release.

``<dir>/{tokenizer,text_encoder,vae,scheduler,dit,lora}``. The DiT is built on the meta device and
filled shard by shard on its target device, so its weights exist once. What is missing is reported
in one error before anything large is read.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from longtake.core import flow
from longtake.core.dit import DiTConfig, LongCatDiT
from longtake.core.text import TextEncoder
from longtake.core.vae import VideoVAE
from longtake.core.weights import fill_model, read_json, write_shards
from longtake.runtime.errors import CheckpointError
from longtake.runtime.files import digest

WEIGHTS_STEM = "diffusion_pytorch_model"
#: One file that every part must have, besides its weights.
REQUIRED_FILES = (
    "tokenizer/tokenizer_config.json",
    "text_encoder/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "dit/config.json",
)
WEIGHT_STEMS = {"text_encoder": "model", "vae": WEIGHTS_STEM, "dit": WEIGHTS_STEM}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded model."""

    dit: LongCatDiT
    """The transformer, in evaluation mode, without gradients."""
    vae: VideoVAE
    """Pixels to normalised latents and back."""
    text: TextEncoder
    """Prompts to embeddings."""
    shift: float
    """Timestep shift of the sampling schedule (scheduler config; the release uses 12)."""
    path: Path
    """Directory it was loaded from."""

    @property
    def device(self) -> torch.device:
        """Device of the transformer."""
        return next(self.dit.parameters()).device

    def sigmas(
        self, num_steps: int, shift: float | None = None, *, distilled: bool = False
    ) -> Tensor:
        """Noise levels [num_steps + 1] from 1 to 0; ``shift`` None takes the checkpoint's."""
        return flow.sigmas(num_steps, self.shift if shift is None else shift, distilled=distilled)

    def digest(self) -> str:
        """sha256 over all files of the five parts, by relative path (LoRAs not counted)."""
        parts = sorted({name.split("/")[0] for name in REQUIRED_FILES})
        joined = "".join(digest(self.path / part) for part in parts)
        return hashlib.sha256(joined.encode()).hexdigest()


def load_checkpoint(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Checkpoint:
    """Load every part of a checkpoint directory.

    ``dtype`` is that of DiT and text encoder; None keeps the DiT's stored one and float32 text. The
    VAE stays in float32, its decoder is sensitive to rounding.
    """
    root = Path(path)
    check_complete(root)
    return Checkpoint(
        dit=load_dit(root / "dit", device, dtype),
        vae=VideoVAE.from_pretrained(root / "vae", device),
        text=TextEncoder.from_pretrained(root, device, dtype or torch.float32),
        shift=_read_shift(root / "scheduler" / "scheduler_config.json"),
        path=root,
    )


def save_checkpoint(
    path: str | Path,
    *,
    dit: nn.Module,
    vae: VideoVAE,
    text: TextEncoder,
    shift: float,
    max_shard_bytes: int = 5 * 2**30,
) -> Path:
    """Write all parts into ``path``."""
    root = Path(path)
    root.mkdir(parents=True, exist_ok=True)
    save_dit(dit, root / "dit", max_shard_bytes)
    vae.save_pretrained(root / "vae")
    text.save_pretrained(root)
    save_scheduler(root, shift)
    return root


def check_complete(root: Path) -> None:
    """Raise a CheckpointError that lists all files which ``root`` lacks at once."""
    missing = [name for name in REQUIRED_FILES if not (root / name).is_file()]
    for part, stem in WEIGHT_STEMS.items():
        files = [root / part / f"{stem}.safetensors{end}" for end in ("", ".index.json")]
        if not any(file.is_file() for file in files):
            missing.append(f"{part}/{stem}.safetensors")
    if missing:
        raise CheckpointError(
            "the checkpoint directory is incomplete" if root.is_dir() else "no such checkpoint",
            received=str(root),
            expected="also " + ", ".join(missing),
            remedy="copy the missing parts; `longtake sandbox pretrain` makes a tiny one",
        )


def load_dit(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> LongCatDiT:
    """Build the DiT on the meta device and stream its shards to ``device``.

    ``folder`` is a ``dit`` folder, or the checkpoint directory that contains it; ``dtype`` None
    keeps the stored one.
    """
    path = Path(folder)
    if not (path / "config.json").is_file() and (path / "dit").is_dir():
        path = path / "dit"
    try:
        config = DiTConfig.from_dict(read_json(path / "config.json"))
        with torch.device("meta"):
            dit = LongCatDiT(config)
    except (TypeError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"the DiT config cannot be used: {error}",
            received=str(path / "config.json"),
            expected="the config.json of a LongCat-Video dit folder",
            remedy="copy the file again from its source",
        ) from error
    fill_model(dit, path, WEIGHTS_STEM, device, dtype)
    return dit


def save_dit(dit: nn.Module, folder: str | Path, max_shard_bytes: int = 5 * 2**30) -> None:
    """Write ``config.json`` and the base weights; injected LoRA factors are left out."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    # The name by which diffusers finds the class of the release.
    config = {"_class_name": "LongCatVideoTransformer3DModel", **dit.config.to_dict()}  # type: ignore[operator, union-attr]
    text = json.dumps(config, indent=2) + "\n"
    (target / "config.json").write_text(text, encoding="utf-8")
    # PEFT wraps an adapted layer and renames its weight; a saved base must load without PEFT.
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in dit.state_dict().items()
        if ".lora_" not in name
    }
    write_shards(state, target, WEIGHTS_STEM, max_shard_bytes)


def save_scheduler(root: str | Path, shift: float) -> None:
    """Write ``scheduler/scheduler_config.json`` of a flow-match Euler schedule."""
    folder = Path(root) / "scheduler"
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": shift,
        "use_dynamic_shifting": False,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "scheduler_config.json").write_text(text, encoding="utf-8")


def _read_shift(path: Path) -> float:
    value = read_json(path).get("shift")
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise CheckpointError(
            "the scheduler config has no usable shift",
            received=f"shift={value!r} in {path}",
            expected="a positive number",
            remedy='add "shift": 12.0, the value of the release',
        )
    return float(value)
