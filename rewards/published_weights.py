"""Published weight files as tensors that are read one at a time, and nothing but tensors.

A ``.pth`` file is a pickle, which may hold code. It is opened with torch's restricted unpickler and
mapped into memory; a file that needs more than tensors is refused, not trusted.
"""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longtake.core.weights import shard_paths
from longtake.rewards.qwen2vl.weights import unique_current_keys
from longtake.runtime.errors import CheckpointError

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on the disk.

    Args:
        shape: known without reading it.
        source: its file.
        load: reads it, as a copy on the CPU.
    """

    shape: torch.Size
    source: Path
    load: Callable[[], Tensor]


def open_weights(path: Path) -> dict[str, StoredTensor]:
    """Tensors of one published file by name, in the order of the file.

    Args:
        path: ``.safetensors``, or a pickled state dict, also one below a top-level ``model``.

    Raises:
        CheckpointError: missing, cut, or holding something else than floating-point tensors.
    """
    if not path.is_file():
        raise CheckpointError(
            "weights not found",
            received=str(path),
            expected=f"a .safetensors file or a state dict ({', '.join(PICKLE_SUFFIXES)})",
            remedy="check the path",
        )
    if path.suffix in PICKLE_SUFFIXES:
        return _open_pickle(path)
    return _open_safetensors(path)


def open_shards(folder: Path, stem: str) -> dict[str, StoredTensor]:
    """Tensors of a single or sharded set of safetensors files (errors as :func:`open_weights`)."""
    tensors: dict[str, StoredTensor] = {}
    for path in shard_paths(folder, stem):
        tensors |= _open_safetensors(path)
    return tensors


def with_current_keys(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of any layout by their current names, in the given order.

    Raises:
        CheckpointError: two names for one tensor.
    """
    return {new: tensors[old] for new, old in unique_current_keys(tensors).items()}


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        file: Any = safe_open(path, framework="pt")  # stays open with the tensors that refer to it
        return {
            name: StoredTensor(
                shape=torch.Size(file.get_slice(name).get_shape()),
                source=path,
                load=partial(_from_file, file, name, path),
            )
            for name in file.keys()  # noqa: SIM118 (safe_open is not iterable)
        }
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read {path.name}: {error}",
            received=str(path),
            expected="a complete safetensors file",
            remedy="copy the file again; a broken copy is often truncated",
        ) from error


def _open_pickle(path: Path) -> dict[str, StoredTensor]:
    content = _unpickle(path)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        entries = content.items() if isinstance(content, Mapping) else [("the file", content)]
        others = [f"{k} ({type(v).__name__})" for k, v in entries if not isinstance(v, Tensor)]
        raise CheckpointError(
            "the file is not a state dict",
            received=f"{path}: {', '.join(others[:4])}",
            expected="tensors by name, on their own or below `model`",
            remedy="save model.state_dict() instead of the whole training state",
        )
    return {
        str(name): StoredTensor(
            shape=tensor.shape, source=path, load=partial(_copied, tensor, str(name), path)
        )
        for name, tensor in content.items()
    }


def _unpickle(path: Path) -> object:
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            # Written before torch 1.6: it cannot be mapped, so it is read whole.
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} holds more than tensors, or is cut: {_reason(error)}",
            received=str(path),
            expected="a state dict of tensors, which torch loads with weights_only",
            remedy="code in the file is never run; if you trust it, load it elsewhere and save its "
            "state dict as safetensors",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"cannot read {path.name}: {_reason(error)}",
            received=str(path),
            expected="a complete file of torch.save",
            remedy="copy the file again; a broken copy is often truncated",
        ) from error


def _reason(error: Exception) -> str:
    """The telling line of torch's long message: the one that names the object, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (named or lines or [type(error).__name__])[0]


def _from_file(file: Any, name: str, path: Path) -> Tensor:
    return _copied(file.get_tensor(name), name, path)


def _copied(tensor: Tensor, name: str, path: Path) -> Tensor:
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise CheckpointError(
            f"tensor {name} is quantised or not a weight",
            received=f"{tensor.dtype} in {path}",
            expected="bfloat16, float16 or float32",
            remedy="use the published weights, not a quantised copy",
        )
    return tensor.detach().clone()
