"""Resized frames of clips in memory, shared by all loader processes of a training.

The memory is mapped before the loaders are forked, so a clip that one of them has decoded is there
for all. Started in another way (spawn), a loader keeps frames of its own.
"""

import mmap
import multiprocessing
import platform
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longtake.runtime.errors import UserError

_HEADER = 64
"""Bytes before the places; the first eight count the bytes taken."""
_NO_RESERVE = 0x4000 if platform.machine() in ("x86_64", "aarch64") else 0
"""Linux's MAP_NORESERVE, which Python 3.11 does not name: a bound that is larger than the machine's
memory costs nothing as long as the clips fit."""
_PLACE = 5
"""int64 numbers per clip: offset (0: not there) and a shape of four sizes."""


class FrameCache:
    """Frames uint8 [F, C, H, W] by clip, or patches [t, h, w, 1176]; what does not fit is not kept.

    Args:
        keys: the clips that may be kept.
        num_bytes: memory for frames; it is taken as it fills.

    Raises:
        UserError: more memory than the system gives.
    """

    def __init__(self, keys: Iterable[Hashable], num_bytes: int) -> None:
        self._number = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        self._num_bytes = num_bytes
        self._map()

    def _map(self) -> None:
        count = len(self._number)
        first = _HEADER + count * _PLACE * 8
        self._lock = multiprocessing.Lock()
        try:
            flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NO_RESERVE
            self._memory = mmap.mmap(-1, first + self._num_bytes, flags=flags)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"the memory for frames cannot be had: {error}",
                received=f"{self._num_bytes / 2**20:.0f} MiB",
                expected="what the system lets a process map",
                remedy="lower cache_mib; clips that do not fit are decoded each time",
            ) from error
        self._end = first + self._num_bytes
        # numpy: a slice of it costs a fraction of torch's, and leaves the interpreter's lock alone.
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._taken = np.frombuffer(self._memory, np.int64, 1)
        self._places = np.frombuffer(self._memory, np.int64, count * _PLACE, _HEADER).reshape(
            count, _PLACE
        )
        self._taken[0] = first

    def __getstate__(self) -> dict[str, Any]:
        """The mapping itself stays behind."""
        return {"_number": self._number, "_num_bytes": self._num_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """An empty cache of the same clips."""
        self.__dict__.update(state)
        self._map()

    def __len__(self) -> int:
        """Clips that are there."""
        return int((self._places[:, 0] > 0).sum())

    def get(self, key: Hashable) -> Tensor | None:
        """Frames of a clip, not to be written to; None if they are not there."""
        offset, *shape = self._places[self._number[key]].tolist()
        if not offset:
            return None
        size = shape[0] * shape[1] * shape[2] * shape[3]
        return torch.from_numpy(self._bytes[offset : offset + size].reshape(shape))

    def put(self, key: Hashable, frames: Tensor) -> None:
        """Keep frames if there is room; a clip that is there already is not kept twice."""
        place = self._places[self._number[key]]
        with self._lock:
            offset = int(self._taken[0])
            if int(place[0]) or offset + frames.nbytes > self._end:
                return
            self._taken[0] = offset + frames.nbytes
            # Under the lock: a clip may only be found once its frames are there.
            self._bytes[offset : offset + frames.nbytes] = frames.reshape(-1).numpy()
            place[1:] = frames.shape
            place[0] = offset
