"""Preference pairs as model inputs: clips are decoded once, and paired with their labels."""

import mmap
import multiprocessing
import platform
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from longtake.core.video import read_video
from longtake.rewards.frames import even_frames
from longtake.rewards.model_inputs import (
    ClipInputs,
    PromptEncoder,
    clip_inputs,
    collate_clips,
    shown_frames,
)
from longtake.rewards.pairs import TIE, UNLABELLED, PreferencePair
from longtake.rewards.spec import DIMENSIONS, RewardSpec
from longtake.runtime.errors import UserError

# Linux's MAP_NORESERVE, which Python 3.11 does not name: a bound that is larger than the machine's
# memory costs nothing as long as the clips fit (the tiny judge's default is 64 GiB).
NO_RESERVE = 0x4000 if platform.machine() in ("x86_64", "aarch64") else 0
# Patches of the last clips that a loader keeps.
RECENT_BYTES = 1 << 26


class FrameCache:
    """Frames uint8 [F, C, H, W] by clip in memory that all loader processes share.

    The memory is mapped before the loaders are forked, so a clip that one of them has decoded is
    there for all; it is taken as it fills, and what does not fit is not kept. An anonymous mapping
    and not numpy.memmap: a file would need a disk or /dev/shm of that size, and a full one ends the
    process without a word.
    """

    def __init__(self, keys: Iterable[Hashable], num_bytes: int) -> None:
        self._number = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        self._num_bytes = num_bytes
        self._lock = multiprocessing.Lock()
        # Offset (0: not there) and shape of each clip; then the bytes taken; then the frames.
        table = (len(self._number) * 5 + 1) * 8
        try:
            flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | NO_RESERVE
            memory = mmap.mmap(-1, table + num_bytes, flags=flags)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"the memory for frames cannot be had: {error}",
                received=f"{num_bytes / 2**20:.0f} MiB",
                remedy="lower cache_mib; clips that do not fit are decoded each time",
            ) from error
        # numpy: a slice of it costs a fraction of torch's, and leaves the interpreter's lock alone.
        self._bytes = np.frombuffer(memory, np.uint8)
        numbers = np.frombuffer(memory, np.int64, table // 8)
        self._places, self._taken = numbers[:-1].reshape(-1, 5), numbers[-1:]
        self._taken[0] = table

    def __reduce__(self) -> tuple[Any, ...]:
        """Loaders that are not forked get an empty cache of their own."""
        return FrameCache, (tuple(self._number), self._num_bytes)

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
            if place[0] or offset + frames.nbytes > len(self._bytes):
                return
            self._taken[0] = offset + frames.nbytes
            # Under the lock: a clip may only be found once its frames are there.
            self._bytes[offset : offset + frames.nbytes] = frames.reshape(-1).numpy()
            place[1:] = frames.shape
            place[0] = offset


class ClipKey(NamedTuple):
    """What the inputs of a clip follow from; ``slot`` is the frame for an image reward."""

    path: str
    fps: float | None
    prompt: str
    slot: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PairInputs:
    """One row of a batch: n labels, the number of the pair in the data set, both clips."""

    labels: list[int]
    pair: int
    a: ClipInputs
    b: ClipInputs


def trained_tokens(spec: RewardSpec, dimensions: Sequence[str]) -> tuple[int, ...]:
    """Indices of the reward tokens that score ``dimensions``; an image reward has one score."""
    images = spec.kind == "hpsv3"
    if (images and len(dimensions) != 1) or not (images or set(dimensions) <= set(DIMENSIONS)):
        raise UserError(
            "the reward does not score this dimension",
            received=", ".join(dimensions),
            expected=f"some of {', '.join(DIMENSIONS)}; for hpsv3 one column of labels",
        )
    return (0,) if images else tuple(DIMENSIONS.index(name) for name in dimensions)


class PairDataset(Dataset[PairInputs]):
    """Pairs of a reward; an image reward gets one row per chosen frame of a pair.

    Every pair has a label that is trained. ``keep_ties`` says whether the loss knows ties; else
    they count as not labelled. ``general_prompt`` stands in the place of the caption in every
    second row of a pair of an image reward.
    """

    def __init__(
        self,
        pairs: Sequence[PreferencePair],
        dimensions: Sequence[str],
        spec: RewardSpec,
        encoder: PromptEncoder,
        root: Path,
        *,
        keep_ties: bool,
        frames_per_clip: int = 1,
        general_prompt: str | None = None,
        cache_bytes: int = 0,
    ) -> None:
        self.pairs, self.dimensions, self.spec, self.encoder = pairs, dimensions, spec, encoder
        self.root, self.keep_ties = root, keep_ties
        # Attention is causal: what follows the last trained token costs and changes nothing.
        self._stop = spec.reward_tokens[max(trained_tokens(spec, dimensions))]
        self._frames_per_clip, self._general_prompt = frames_per_clip, general_prompt
        self._rows = [
            (index, slot)
            for index, pair in enumerate(pairs)
            for slot in range(1 if spec.kind == "videoreward" else _num_rows(pair, frames_per_clip))
        ]
        clips = ((p.path_a, p.fps_a) for p in pairs), ((p.path_b, p.fps_b) for p in pairs)
        self._cache = FrameCache(chain(*clips), cache_bytes)
        self._recent: dict[ClipKey, ClipInputs] = {}
        self._recent_bytes = 0
        self._check()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> PairInputs:
        index, _ = self._rows[row]
        pair = self.pairs[index]
        labels = [pair.label(name) for name in self.dimensions]
        if not self.keep_ties:
            # The weight of an update counts labels, so what the loss cannot use must be none.
            labels = [UNLABELLED if label == TIE else label for label in labels]
        a, b = self._keys(row)
        return PairInputs(labels=labels, pair=index, a=self._inputs(a), b=self._inputs(b))

    def clip_keys(self) -> list[tuple[ClipKey, ClipKey]]:
        """What is scored as A and as B in each row; equal keys get equal scores."""
        return [self._keys(row) for row in range(len(self))]

    def rows_of_prompts(self) -> list[list[int]]:
        """Rows of each prompt, prompts in the order in which they first appear."""
        groups: dict[str, list[int]] = {}
        for row, (index, _) in enumerate(self._rows):
            groups.setdefault(self.pairs[index].prompt, []).append(row)
        return list(groups.values())

    def _keys(self, row: int) -> tuple[ClipKey, ClipKey]:
        index, slot = self._rows[row]
        pair = self.pairs[index]
        prompt = (self._general_prompt if slot % 2 else None) or pair.prompt
        return (
            ClipKey(pair.path_a, pair.fps_a, prompt, slot),
            ClipKey(pair.path_b, pair.fps_b, prompt, slot),
        )

    def _inputs(self, key: ClipKey) -> ClipInputs:
        """Inputs of a clip; those of the last clips are kept: pairs of a prompt share clips."""
        inputs = self._recent.get(key)
        if inputs is None:
            frames = self._frames(key.path, key.fps)
            if self.spec.kind == "hpsv3":
                frames = frames[min(key.slot, len(frames) - 1)][None]
            inputs = clip_inputs(frames, key.prompt, self.encoder, key=key, stop_at=self._stop)
            self._recent_bytes += inputs.patches.nbytes
            if self._recent_bytes > RECENT_BYTES:
                # All at once: pairs of a prompt come together, and older clips do not come again.
                self._recent.clear()
                self._recent_bytes = inputs.patches.nbytes
            self._recent[key] = inputs
        return inputs

    def _frames(self, path: str, fps: float | None) -> Tensor:
        """Chosen frames uint8 [F, 3, H, W] in the colour and size that the model sees."""
        kept = self._cache.get((path, fps))
        if kept is not None:
            return kept
        video, _ = read_video(self.root / path)
        if self.spec.sampler is None:
            chosen = even_frames(len(video), self._frames_per_clip)
        else:
            assert fps is not None
            # By the rate of the data set: it is the one that the annotators saw.
            chosen = self.spec.sampler.indices(len(video), fps)
        frames = shown_frames(video[chosen], self.spec)
        self._cache.put((path, fps), frames)
        return frames

    def _check(self) -> None:
        """Tell before the first update what would end the training hours later."""
        files = sorted({path for pair in self.pairs for path in (pair.path_a, pair.path_b)})
        problems = [f"{path} is missing" for path in files if not (self.root / path).is_file()]
        for pair in self.pairs:
            if problem := self.encoder.problem(pair.prompt):
                problems.append(f"{pair.prompt!r}: {problem}")
            if self.spec.sampler is not None and None in (pair.fps_a, pair.fps_b):
                problems.append(f"{pair.path_a} or {pair.path_b} has no playback rate")
        if problems:
            raise UserError(
                "clips of the preference data cannot be used",
                received=f"{len(problems)} problems in {self.root}: {'; '.join(problems[:3])}",
                expected="paths relative to this folder; rates for a video reward",
                remedy="set data.root to the folder of the clips, or remove these pairs",
            )


def collate_pairs(rows: Sequence[PairInputs]) -> dict[str, Tensor]:
    """A batch of B pairs; a clip that several of them compare is in it once.

    ``labels`` int64 [B, n], ``pairs`` int64 [B], ``clips`` int64 [2, B] (which of the C clips is A
    and which is B), and the inputs of the reward model.
    """
    clips: dict[Hashable, ClipInputs] = {}
    for row in rows:
        clips |= {row.a.key: row.a, row.b.key: row.b}
    number = {key: index for index, key in enumerate(clips)}
    return {
        "labels": torch.tensor([row.labels for row in rows]),
        "pairs": torch.tensor([row.pair for row in rows]),
        "clips": torch.tensor([[number[row.a.key], number[row.b.key]] for row in rows]).T,
        **collate_clips(list(clips.values())),
    }


def _num_rows(pair: PreferencePair, frames_per_clip: int) -> int:
    counts = [count for count in (pair.num_frames_a, pair.num_frames_b) if count is not None]
    return min([frames_per_clip, *counts]) if counts else 1
