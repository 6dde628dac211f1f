"""Safetensors files of a checkpoint folder: single or sharded, always with a named error.

A folder holds either ``<stem>.safetensors`` or ``<stem>.safetensors.index.json`` with shards, the
convention of diffusers and transformers. A model is built on the meta device and filled shard by
shard, so the peak is the model plus one tensor, and every problem names the file it was found in.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from longtake.runtime.errors import CheckpointError

_MAX_LISTED = 8


def fill_model(
    model: nn.Module,
    source: Path | Mapping[str, Tensor],
    stem: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | Callable[[str], torch.dtype] | None = None,
    *,
    rename: Callable[[str], str | None] = lambda name: name,
    tied: Mapping[str, str] | None = None,
) -> None:
    """Fill a model that was built on the meta device, tensor by tensor, and make it inert.

    Args:
        model: changed in place; in evaluation mode and without gradients afterwards.
        source: the folder of the weights ``stem``, or tensors, which are copied.
        stem: file name without ``.safetensors``; names tensors in errors.
        device: where the weights go.
        dtype: of all weights, or of each by its name in the model; None keeps the stored one.
        rename: name in the file -> name in the model, None for what the model does not have.
        tied: names of the model -> names that they share a parameter with; files may lack them.
    """
    shares = tied or {}
    expected = {key: x for key, x in model.state_dict().items() if key not in shares}
    parts: Iterable[Iterable[tuple[str, Tensor]]]
    if isinstance(source, Path):
        place, files = source, shard_paths(source, stem)
        names = [name for file in files for name in read_names(file)]
        parts = (iter_tensors(file, device) for file in files)
    else:
        place, names, parts = Path(stem), list(source), [source.items()]
    # All names before any tensor: a wrong checkpoint must not cost minutes of reading.
    keys = {name: rename(name) for name in names}
    check_unique(keys, place)
    check_keys({k for k in keys.values() if k is not None} - shares.keys(), expected, place)
    for part in parts:
        filled: dict[str, Tensor] = {}
        for name, tensor in part:
            key = keys[name]
            if key is None or key in shares:
                continue
            check_shape(key, tensor, expected[key].shape, place)
            kind = dtype(key) if callable(dtype) else dtype or tensor.dtype
            filled[key] = tensor.detach().to(device, kind, copy=isinstance(source, Mapping))
        # Meta parameters have no storage to copy into; and a copy would double the peak.
        model.load_state_dict(filled, strict=False, assign=True)
    for key, other in shares.items():
        owner, _, leaf = key.rpartition(".")
        setattr(model.get_submodule(owner), leaf, model.get_parameter(other))
    state = [*model.named_parameters(), *model.named_buffers()]
    left = [name for name, tensor in state if tensor.is_meta]
    assert not left, f"state that no checkpoint holds must be made in forward: {left}"
    model.eval().requires_grad_(False)


def shard_paths(folder: Path, stem: str) -> list[Path]:
    """Files that hold the weights ``stem`` in ``folder``, in reading order."""
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    if not index.is_file():
        if single.is_file():
            return [single]
        raise CheckpointError(
            "weights not found",
            received=str(folder),
            expected=f"{single.name} or {index.name}",
            remedy="copy the missing files or point to a complete checkpoint directory",
        )
    weight_map = read_json(index).get("weight_map")
    names = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise CheckpointError(
            "shards of the checkpoint are missing",
            received=str(folder),
            expected=", ".join(missing) or f"a weight_map in {index.name}",
            remedy="finish the copy of these files",
        )
    return [folder / name for name in names]


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in ``path``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        error: Exception = ValueError(f"it holds a {type(content).__name__}")
    except (OSError, ValueError) as caught:
        error = caught
    raise CheckpointError(
        f"cannot read {path.name}: {error}",
        received=str(path),
        expected="a JSON object in UTF-8",
        remedy="copy the file again from its source",
    ) from error


def iter_tensors(path: Path, device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
    """Yield ``(name, tensor)`` of one safetensors file, reading one tensor at a time.

    Tensors on the CPU are copies: views of the mapped file keep its odd alignment, which slows
    matrix products and changes their rounding, and they die when the file is replaced.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is not iterable)
                tensor = file.get_tensor(name)
                yield name, tensor.clone() if tensor.device.type == "cpu" else tensor
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def read_names(path: Path) -> list[str]:
    """Tensor names of one safetensors file, from its header (errors as :func:`iter_tensors`)."""
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """All tensors of one safetensors file (errors as :func:`iter_tensors`)."""
    return dict(iter_tensors(path, device))


def read_metadata(path: Path) -> dict[str, str]:
    """The header metadata of a safetensors file (errors as :func:`iter_tensors`)."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def check_keys(found: Iterable[str], expected: Iterable[str], source: Path) -> None:
    """Compare state-dict keys."""
    found_set, expected_set = set(found), set(expected)
    missing, unexpected = sorted(expected_set - found_set), sorted(found_set - expected_set)
    if missing or unexpected:
        raise CheckpointError(
            "the weights do not fit the model",
            received=f"{source}: {len(missing)} missing ({listed(missing)}), "
            f"{len(unexpected)} unexpected ({listed(unexpected)})",
            expected=f"exactly the {len(expected_set)} tensors of the model",
            remedy="use the config.json that belongs to these weights",
        )


def check_unique(keys: Mapping[str, str | None], source: Path) -> None:
    """Raise a CheckpointError when two tensors (name -> name in the model) are one in the model."""
    names: dict[str, str] = {}
    doubled = [
        f"{names[key]} and {name}"
        for name, key in keys.items()
        if key is not None and names.setdefault(key, name) != name
    ]
    if doubled:
        raise CheckpointError(
            "the checkpoint mixes key layouts",
            received=f"{source}: {len(doubled)} doubled keys ({listed(doubled)})",
            expected="every tensor once, in one layout",
            remedy="leave out one of the two copies",
        )


def check_shape(name: str, tensor: Tensor, expected: torch.Size, source: Path) -> None:
    """Raise a CheckpointError when ``tensor`` has not the ``expected`` shape."""
    if tensor.shape != expected:
        raise CheckpointError(
            f"tensor {name} has the wrong shape",
            received=f"{tuple(tensor.shape)} in {source}",
            expected=str(tuple(expected)),
            remedy="use the config.json that belongs to these weights",
        )


def write_shards(
    state: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    folder: Path,
    stem: str,
    max_shard_bytes: int = 5 * 2**30,
) -> list[Path]:
    """Write tensors as one file, or as shards of at most ``max_shard_bytes`` plus an index.

    A tensor larger than the limit gets a shard of its own. Keys keep their order. Pairs of name and
    tensor may be made while they are written: no more than one shard is in memory.
    """
    pairs = state.items() if isinstance(state, Mapping) else state
    folder.mkdir(parents=True, exist_ok=True)
    shard_of: list[list[str]] = []
    total = 0
    # Under a temporary name, so that a killed write never looks like a checkpoint.
    for shard in _shards(pairs, max_shard_bytes):
        # The number of shards, which is part of their names, is known at the end only.
        save_file(shard, folder / f"{stem}.part-{len(shard_of)}", metadata={"format": "pt"})
        shard_of.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
        del shard  # before the next one is filled
    if len(shard_of) == 1:
        names = [f"{stem}.safetensors"]
    else:
        count = len(shard_of)
        names = [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        files = {key: name for name, keys in zip(names, shard_of, strict=True) for key in keys}
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1))
    for i, name in enumerate(names):
        (folder / f"{stem}.part-{i}").replace(folder / name)
    return [folder / name for name in names]


def _shards(
    pairs: Iterable[tuple[str, Tensor]], max_shard_bytes: int
) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    filled = 0
    for name, tensor in pairs:
        if shard and filled + tensor.nbytes > max_shard_bytes:
            yield shard
            shard, filled = {}, 0
        shard[name] = tensor.detach().contiguous()
        filled += tensor.nbytes
    yield shard


def digest_tensors(state: Mapping[str, Tensor]) -> str:
    """sha256 of names, dtypes, shapes and bytes, independent of key order and of the file split."""
    # Sorted: files list tensors in the order in which they were split.
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def listed(names: Sequence[str]) -> str:
    """The first names in one line, and how many more there are."""
    more = f"; ... {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return "; ".join(names[:_MAX_LISTED]) + more if names else "none"


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"cannot read {path.name}: {error}",
        received=str(path),
        expected="a complete safetensors file",
        remedy="copy the file again; a broken copy is often truncated",
    )
