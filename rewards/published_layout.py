"""Where the published reward models keep their files, and what their configuration says.

HPSv3 is one flat state dict. VideoReward (VideoAlign) is a folder with ``model_config.json`` and
``checkpoint-<step>/``, which holds either the whole PEFT state dict (``model.pth``) or the LoRA and
the other trained tensors apart (``adapter_model.safetensors``, ``non_lora_state_dict.pth``); the
second form needs the base model it was trained from.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.core.weights import read_json
from longtake.rewards.frames import FrameSampler
from longtake.rewards.pixels import VIDEOALIGN_PIXELS, PixelConfig
from longtake.rewards.published_weights import (
    PICKLE_SUFFIXES,
    StoredTensor,
    open_shards,
    open_weights,
    with_current_keys,
)
from longtake.rewards.qwen2vl.model import LORA_TARGETS
from longtake.rewards.reward_spec import DIMENSIONS, Normalization
from longtake.runtime.errors import CheckpointError

CONFIG_FILE = "model_config.json"
FULL_FILE, ADAPTER_FILE, REST_FILE = (
    "model.pth",
    "adapter_model.safetensors",
    "non_lora_state_dict.pth",
)


@dataclass(frozen=True, kw_only=True)
class VideoRewardConfig:
    """What a ``model_config.json`` fixes."""

    pixels: PixelConfig
    """Limits of the frame area; the lower one is a constant of the public code."""
    sampler: FrameSampler
    """Frames per second, or a fixed number of frames."""
    normalization: Mapping[str, Normalization]
    """Of the dimensions that ``inference_config`` has; empty without one."""
    lora_alpha: float | None
    """Numerator of the LoRA scale; None when the file does not tell."""
    output_dim: int | None
    """Rows of the head; None when the file does not tell."""


def open_hpsv3(path: Path) -> dict[str, StoredTensor]:
    """Tensors of HPSv3 by their current names.

    Args:
        path: the file, or a folder with this one file (or safetensors shards named ``model``).

    Raises:
        CheckpointError: no such file, several, or an unreadable one.
    """
    if not path.is_dir():
        return with_current_keys(open_weights(path))
    if (path / "model.safetensors.index.json").is_file():
        return with_current_keys(open_shards(path, "model"))
    suffixes = {".safetensors", *PICKLE_SUFFIXES}
    found = sorted(file for file in path.iterdir() if file.suffix in suffixes)
    if len(found) != 1:
        raise CheckpointError(
            "the weights are not clear" if found else "weights not found",
            received=f"{path}: " + (", ".join(file.name for file in found) or "no weight file"),
            expected="one .safetensors or .pth file",
            remedy="pass the file itself, for example HPSv3.safetensors",
        )
    return with_current_keys(open_weights(found[0]))


def find_step(root: Path, step: int | None) -> Path:
    """The folder ``checkpoint-<step>`` of a VideoReward root; the largest step when None.

    Raises:
        CheckpointError: that step is not there. The public loader takes the largest one instead.
    """
    numbered = {
        int(match[1]): folder
        for folder in (root.iterdir() if root.is_dir() else ())
        if (match := re.fullmatch(r"checkpoint-(\d+)", folder.name)) and folder.is_dir()
    }
    wanted = max(numbered, default=None) if step is None else step
    if wanted not in numbered:
        raise CheckpointError(
            "the checkpoint step is not there",
            received=f"step {wanted} in {root}" if wanted is not None else str(root),
            expected="one of the steps " + ", ".join(str(n) for n in sorted(numbered))
            if numbered
            else f"a folder with {CONFIG_FILE} and checkpoint-<step>/",
            remedy="pass a step that is there, or none to take the largest"
            if numbered
            else f"pass the folder that holds {CONFIG_FILE}",
        )
    return numbered[wanted]


def open_videoreward(folder: Path, base: Path | None = None) -> dict[str, StoredTensor]:
    """Tensors of a VideoReward checkpoint by their current names, LoRA factors apart.

    Args:
        folder: ``checkpoint-<step>``.
        base: folder of the Qwen2-VL model; needed by a checkpoint that holds the LoRA apart.

    Raises:
        CheckpointError: missing or unreadable files, or a missing ``base``.
    """
    if (folder / FULL_FILE).is_file():
        return with_current_keys(open_weights(folder / FULL_FILE))
    missing = [name for name in (ADAPTER_FILE, REST_FILE) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            "the checkpoint is incomplete",
            received=f"{folder} without {', '.join(missing)}",
            expected=f"{FULL_FILE}, or {ADAPTER_FILE} and {REST_FILE}",
            remedy="copy the missing files",
        )
    if base is None:
        raise CheckpointError(
            "the checkpoint holds only what was trained",
            received=f"{ADAPTER_FILE} and {REST_FILE} in {folder}",
            expected="the base model too, from which the frozen weights come",
            remedy="pass the folder of the Qwen2-VL model named in model_config.json as base",
        )
    tensors = {
        _base_layer(name): tensor
        for name, tensor in with_current_keys(open_shards(base, "model")).items()
    }
    for file in (REST_FILE, ADAPTER_FILE):
        tensors |= with_current_keys(open_weights(folder / file))
    return tensors


def read_videoreward_config(path: Path) -> VideoRewardConfig:
    """Read a ``model_config.json``.

    Raises:
        CheckpointError: missing or cut file, or a model that is used in another way than the
            published one (other prompt, pooling, sampling or LoRA scale).
    """
    config = read_json(path)
    data, model, lora, inference = (
        _part(config, f"{name}_config", path)
        for name in ("data", "model", "peft_lora", "inference")
    )
    for part, key, published in (
        (data, "prompt_template_type", "detailed_special"),
        (data, "sample_type", "uniform"),
        (model, "reward_token", "special"),
        (lora, "use_rslora", False),
    ):
        if part.get(key, published) != published:
            raise _unusable(path, f"{key} is {part[key]!r}, only {published!r} is supported")
    try:
        frames = data.get("num_frames")
        return VideoRewardConfig(
            pixels=PixelConfig(
                min_pixels=VIDEOALIGN_PIXELS.min_pixels,
                max_pixels=int(data.get("max_frame_pixels", VIDEOALIGN_PIXELS.max_pixels)),
                resample=VIDEOALIGN_PIXELS.resample,
            ),
            sampler=FrameSampler(
                target_fps=float(data.get("fps") or 2.0),
                num_frames=None if frames is None else int(frames),
            ),
            normalization={
                name: Normalization(
                    mean=float(inference[f"{name}_mean"]), std=float(inference[f"{name}_std"])
                )
                for name in DIMENSIONS
                if f"{name}_mean" in inference
            },
            lora_alpha=_number(lora.get("lora_alpha")),
            output_dim=None if model.get("output_dim") is None else int(model["output_dim"]),
        )
    except (TypeError, ValueError, KeyError) as error:
        raise _unusable(path, str(error)) from error


def _base_layer(name: str) -> str:
    """Name of a frozen tensor under the LoRA: the adapted layers are wrapped."""
    layer, _, part = name.rpartition(".")
    wrapped = layer.startswith("model.language_model.") and layer.endswith(LORA_TARGETS)
    return f"{layer}.base_layer.{part}" if wrapped else name


def _part(config: Mapping[str, object], name: str, path: Path) -> Mapping[str, Any]:
    part = config.get(name) or {}
    if not isinstance(part, Mapping):
        raise _unusable(path, f"{name} is not a JSON object")
    return part


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _unusable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} cannot be used: {reason}",
        received=str(path),
        expected="the file of a published VideoReward checkpoint",
        remedy="copy the file again from its source",
    )
