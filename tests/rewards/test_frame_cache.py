"""Frames that loader processes share."""

import copy
import multiprocessing
import pickle

import pytest
import torch
from torch import Tensor

from longtake.rewards.frame_cache import FrameCache
from longtake.runtime.errors import UserError


def _frames(seed: int, count: int = 3) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 4, 6), generator=draw, dtype=torch.uint8)


def test_kept_frames_come_back_and_unknown_ones_are_none() -> None:
    cache = FrameCache(["a", "b", "c", "a"], 1000)
    assert cache.get("a") is None
    cache.put("b", _frames(1))
    cache.put("c", _frames(2, 1))
    assert cache.get("a") is None
    for key, frames in (("b", _frames(1)), ("c", _frames(2, 1))):
        found = cache.get(key)
        assert found is not None and found.dtype == torch.uint8
        assert torch.equal(found, frames)


def test_what_does_not_fit_is_left_out_and_smaller_ones_still_fit() -> None:
    cache = FrameCache(range(4), 3 * 72 + 2 * 72)
    cache.put(0, _frames(0))
    cache.put(1, _frames(1))
    cache.put(2, _frames(2, 2))
    assert cache.get(1) is None
    for key, frames in ((0, _frames(0)), (2, _frames(2, 2))):
        found = cache.get(key)
        assert found is not None and torch.equal(found, frames)
    cache.put(0, _frames(5))
    found = cache.get(0)
    assert found is not None and torch.equal(found, _frames(0))


def test_a_cache_without_memory_keeps_nothing() -> None:
    cache = FrameCache(["a"], 0)
    cache.put("a", _frames(0))
    assert cache.get("a") is None


def _fill(cache: FrameCache, part: int) -> None:
    for key in range(part, 60):  # the parts overlap
        cache.put(key, _frames(key))


def test_processes_share_it() -> None:
    cache = FrameCache(range(60), 60 * 216)
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=_fill, args=(cache, part)) for part in (0, 1, 2, 3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    for key in range(60):
        found = cache.get(key)
        assert found is not None and torch.equal(found, _frames(key))


def test_a_pickled_one_starts_empty() -> None:
    cache = FrameCache(["a"], 300)
    cache.put("a", _frames(0))
    for other in (pickle.loads(pickle.dumps(cache)), copy.deepcopy(cache)):
        assert other.get("a") is None
        other.put("a", _frames(1))
        assert torch.equal(other.get("a"), _frames(1))
    found = cache.get("a")
    assert found is not None and torch.equal(found, _frames(0))


def test_more_memory_than_can_be_mapped_is_explained() -> None:
    for num_bytes in (1 << 50, 1 << 70):
        with pytest.raises(UserError, match="lower cache_mib"):
            FrameCache(["a"], num_bytes)
