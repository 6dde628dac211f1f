"""Cache of prompt embeddings, in memory and optionally on disk.

Keyed by (encoder digest, cleaned prompt). A disk entry carries a sha256 of prompt and values: one
that cannot be read or does not match is treated as absent and written again, because a cache must
never be the reason a run fails or a wrong embedding is used.
"""

import hashlib
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from longtake.runtime.files import replacing


class EmbeddingCache:
    """Embeddings [n, Dc] of prompts without their padding.

    Args:
        folder: where entries persist; None keeps them in memory only.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._memory: dict[tuple[str, str], Tensor] = {}

    @property
    def is_persistent(self) -> bool:
        """Whether entries are kept on disk."""
        return self._folder is not None

    def get(self, digest: str, prompt: str, shape: tuple[int, int]) -> Tensor | None:
        """The stored embedding on the CPU, or None when absent, corrupt or of another shape."""
        found = self._memory.get((digest, prompt))
        if found is None and self._folder is not None:
            found = _read_entry(self._path(digest, prompt), prompt)
        if found is None or tuple(found.shape) != shape:
            return None
        self._memory[digest, prompt] = found
        return found

    def put(self, digest: str, prompt: str, embedding: Tensor) -> None:
        """Store an embedding; a disk that cannot be written leaves the memory entry only."""
        stored = embedding.detach().to("cpu", copy=True).contiguous()
        self._memory[digest, prompt] = stored
        if self._folder is None:
            return
        # One key only: safetensors writes several in an order that changes from run to run.
        metadata = {"sha256": _checksum(prompt, stored)}
        with (
            suppress(OSError, SafetensorError),
            replacing(self._path(digest, prompt)) as temporary,
        ):
            save_file({"embedding": stored}, temporary, metadata=metadata)

    def clear(self) -> None:
        """Forget the entries in memory; those on disk stay, under their encoder's digest."""
        self._memory.clear()

    def _path(self, digest: str, prompt: str) -> Path:
        assert self._folder is not None
        name = hashlib.sha256(prompt.encode()).hexdigest()
        return self._folder / digest[:16] / f"{name}.safetensors"


def _read_entry(path: Path, prompt: str) -> Tensor | None:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            embedding = file.get_tensor("embedding")
    except (OSError, SafetensorError):
        return None
    return embedding if metadata.get("sha256") == _checksum(prompt, embedding) else None


def _checksum(prompt: str, tensor: Tensor) -> str:
    sha = hashlib.sha256(prompt.encode() + b"\0")
    sha.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
