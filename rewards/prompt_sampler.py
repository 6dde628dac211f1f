"""Order of the training pairs: those of one prompt one after the other, prompts shuffled."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from longtake.runtime.rng import generator


class PromptSampler(Sampler[int]):
    """Visits every row once per epoch, prompt by prompt.

    Pairs of one prompt share clips, and a batch scores a clip once: six pairs of four clips cost
    four forward passes in place of twelve. The order within a prompt and of the prompts is drawn
    anew for each epoch, and depends on the seed and the epoch alone.

    Args:
        groups: rows of each prompt.
        seed: names the draw.
    """

    def __init__(self, groups: Sequence[Sequence[int]], seed: int) -> None:
        self._groups = groups
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; Trainer calls it, also when it resumes."""
        self._epoch = epoch

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups)

    def __iter__(self) -> Iterator[int]:
        draw = generator(self._seed, "order of prompts", self._epoch)
        for number in torch.randperm(len(self._groups), generator=draw).tolist():
            group = self._groups[number]
            for place in torch.randperm(len(group), generator=draw).tolist():
                yield group[place]
