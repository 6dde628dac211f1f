"""The published files of HPSv3 and VideoReward (VideoAlign): weights and ``model_config.json``.

HPSv3 is one flat state dict. VideoReward is a folder with ``model_config.json`` and
``checkpoint-<step>/``, which holds either the whole PEFT state dict (``model.pth``) or the LoRA and
the other trained tensors apart (``adapter_model.safetensors``, ``non_lora_state_dict.pth``); the
second form needs the base model it was trained from. A ``.pth`` file is a pickle, which may hold
code: it is opened with torch's restricted unpickler and mapped into memory; a file that needs more
than tensors is refused, not trusted.
"""

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longtake.core.weights import check_unique, read_json, shard_paths
from longtake.rewards.frames import FrameSampler
from longtake.rewards.pixels import VIDEOALIGN_PIXELS, PixelConfig
from longtake.rewards.qwen2vl.model import LORA_TARGETS
from longtake.rewards.qwen2vl.weights import current_key
from longtake.rewards.spec import DIMENSIONS, Normalization
from longtake.runtime.errors import CheckpointError

CONFIG_FILE = "model_config.json"
FULL_FILE, ADAPTER_FILE, REST_FILE = (
    "model.pth",
    "adapter_model.safetensors",
    "non_lora_state_dict.pth",
)
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_COPY_AGAIN = "copy the file again from its source; a broken copy is often truncated"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on the disk."""

    shape: torch.Size
    """Known without reading it."""
    source: Path
    """Its file."""
    load: Callable[[], Tensor]
    """Reads it, as a copy on the CPU."""


@dataclass(frozen=True, kw_only=True)
class VideoRewardConfig:
    """What a ``model_config.json`` fixes."""

    pixels: PixelConfig
    """Limits of the frame area; the lower one is a constant of the public code."""
    sampler: FrameSampler
    """Frames per second, or a fixed number of frames."""
    normalization: dict[str, Normalization]
    """Of the dimensions that ``inference_config`` has; empty without one."""
    lora_alpha: float | None
    """Numerator of the LoRA scale; None when the file does not tell."""
    output_dim: int | None
    """Rows of the head; None when the file does not tell."""


def open_hpsv3(path: Path) -> dict[str, StoredTensor]:
    """Tensors by their current names, of a file or a folder with this one file."""
    suffixes = {".safetensors", *PICKLE_SUFFIXES}
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in inside if file.suffix in suffixes]
    if len(files) != 1:
        raise CheckpointError(
            "the weights are not clear",
            received=f"{path}: " + (", ".join(file.name for file in files) or "no weight file"),
            expected="one .safetensors or .pth file",
            remedy="pass the file itself, for example HPSv3.safetensors",
        )
    return _open(files[0])


def step_folder(root: Path, step: int | None) -> Path:
    """The folder ``checkpoint-<step>``; the largest step when None.

    The public loader takes the largest one also when the step is not there.
    """
    numbered = {
        int(match[1]): folder
        for folder in (root.iterdir() if root.is_dir() else ())
        if (match := re.fullmatch(r"checkpoint-(\d+)", folder.name)) and folder.is_dir()
    }
    number = max(numbered, default=None) if step is None else step
    if number not in numbered:
        raise CheckpointError(
            "the checkpoint step is not there",
            received=f"step {number} in {root}",
            expected=f"{CONFIG_FILE} and checkpoint-<step>/, steps {sorted(numbered) or 'none'}",
            remedy=f"pass the folder that holds {CONFIG_FILE}, and a step that is there or none",
        )
    return numbered[number]


def open_videoreward(folder: Path, base: Path | None) -> dict[str, StoredTensor]:
    """Tensors by their current names, LoRA factors apart."""
    if (folder / FULL_FILE).is_file():
        return _open(folder / FULL_FILE)
    if base is None or not all((folder / name).is_file() for name in (ADAPTER_FILE, REST_FILE)):
        raise CheckpointError(
            "the checkpoint is incomplete",
            received=f"{folder} without {FULL_FILE}, base model: {base}",
            expected=f"{FULL_FILE}; or {ADAPTER_FILE}, {REST_FILE} and the base model, from which "
            "the frozen weights come",
            remedy="copy the missing files, or pass the folder of the Qwen2-VL model named in "
            f"{CONFIG_FILE} as base",
        )
    # The trained tensors replace those of the base model, so they come last.
    frozen = {k: v for path in shard_paths(base, "model") for k, v in _open(path).items()}
    tensors = {_base_layer(name): tensor for name, tensor in frozen.items()}
    return tensors | _open(folder / REST_FILE) | _open(folder / ADAPTER_FILE)


def read_config(path: Path) -> VideoRewardConfig:
    """Read a ``model_config.json``; another use than the published one is refused."""
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
            lora_alpha=None if lora.get("lora_alpha") is None else float(lora["lora_alpha"]),
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


def _unusable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} cannot be used: {reason}",
        received=str(path),
        expected="the file of a published VideoReward checkpoint",
        remedy=_COPY_AGAIN,
    )


def _open(path: Path) -> dict[str, StoredTensor]:
    """Tensors of one file of any key layout by their current names, in the order of the file."""
    tensors = _stored(path)
    check_unique({name: current_key(name) for name in tensors}, path)
    return {current_key(name): tensor for name, tensor in tensors.items()}


def _stored(path: Path) -> dict[str, StoredTensor]:
    """Tensors of a safetensors file or a pickled state dict, by name in the order of the file."""
    try:
        if path.suffix in PICKLE_SUFFIXES:
            return _open_pickle(path)
        file: Any = safe_open(path, framework="pt")  # stays open with the tensors that refer to it
        return {
            name: StoredTensor(
                shape=torch.Size(file.get_slice(name).get_shape()),
                source=path,
                load=partial(_copy, partial(file.get_tensor, name), name, path),
            )
            for name in file.keys()  # noqa: SIM118 (safe_open is not iterable)
        }
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} holds more than tensors, or is cut: {_reason(error)}",
            received=str(path),
            expected="a state dict of tensors, which torch loads with weights_only",
            remedy="code in the file is never run; if you trust it, load it elsewhere and save its "
            "state dict as safetensors",
        ) from error
    except (OSError, SafetensorError, RuntimeError, EOFError, KeyError) as error:
        raise CheckpointError(
            f"cannot read {path.name}: {_reason(error)}",
            received=str(path),
            expected=f"a complete .safetensors file or state dict ({', '.join(PICKLE_SUFFIXES)})",
            remedy=_COPY_AGAIN,
        ) from error


def _open_pickle(path: Path) -> dict[str, StoredTensor]:
    """A pickled state dict, also one below a top-level ``model``."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        # Written before torch 1.6: it cannot be mapped, so it is read whole.
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    entries = content.items() if isinstance(content, Mapping) else [("the file", content)]
    others = [f"{k} ({type(v).__name__})" for k, v in entries if not isinstance(v, Tensor)]
    if others:
        raise CheckpointError(
            "the file is not a state dict",
            received=f"{path}: {', '.join(others[:4])}",
            expected="tensors by name, on their own or below `model`",
            remedy="save model.state_dict() instead of the whole training state",
        )
    return {
        str(k): StoredTensor(v.shape, path, partial(_copy, v.detach, str(k), path))
        for k, v in entries
    }


def _reason(error: Exception) -> str:
    """The telling line of torch's long message: the one that names the object, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (named or lines or [type(error).__name__])[0]


def _copy(load: Callable[[], Tensor], name: str, path: Path) -> Tensor:
    tensor = load()
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise CheckpointError(
            f"tensor {name} is quantised or not a weight",
            received=f"{tensor.dtype} in {path}",
            expected="bfloat16, float16 or float32",
            remedy="use the published weights, not a quantised copy",
        )
    return tensor.detach().clone()
