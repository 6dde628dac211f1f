"""Simulated annotators: noisy judgements of the oracles' truth, with ties and a taste for colour.

An annotator compares two clips of a prompt in one dimension. Its impression of a clip is the oracle
score of the dimension plus ``colour_bias`` times the colourfulness of the clip. With d = impression
of A minus impression of B and logistic noise e of scale ``noise``, the label is A when
d + e > tie_threshold, B when d + e < -tie_threshold and "same" in between. So

    P(A) = sigmoid((d - tie_threshold) / noise),   P(B) = sigmoid((-d - tie_threshold) / noise),

which is Bradley-Terry with ties for scores d / noise and the tie factor
k = exp(tie_threshold / noise): a reward head trained with that loss can fit these labels exactly.

Several raters may judge a pair independently; the label is then what more than half of them say,
and "same" without such a majority.

Units: scores, noise and threshold are in oracle points (the oracles span [0, 1]); the bias is in
oracle points per unit of colourfulness, which spans [0, 1] too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from longtake.runtime.config import Config

Word = Literal["A", "same", "B"]
# Label, oracle score of A minus B, colourfulness of A minus B.
Judgement = tuple[Word, float, float]

# Dimension of a label (visual quality, motion quality, text alignment) -> its oracle. Motion is
# judged without the caption: VideoAlign's motion token stands before it and never sees it.
DIMENSION_ORACLES: dict[str, str] = {
    "VQ": "visual",
    "MQ": "unprompted_motion",
    "TA": "alignment",
}

# Share of a frame's pixels that make its colourfulness; the smallest sprite covers 2.6 %.
COLOURFUL_SHARE = 0.05


class Annotator(Config):
    """How a simulated annotator errs."""

    noise: float = Field(default=0.05, ge=0)
    """Scale of the logistic noise, oracle points; 0 judges without error."""
    tie_threshold: float = Field(default=0.08, ge=0)
    """Noisy differences up to this size are ties, oracle points."""
    colour_bias: float = 0.15
    """Oracle points that a fully colourful clip gains over a gray one; 0 is none."""
    raters: int = Field(default=1, ge=1)
    """How many judge each pair, with independent noise; their majority counts."""

    def probabilities(self, difference: Tensor) -> Tensor:
        """Chances of A, same and B [..., 3] float64 for impressions of A minus B [...]."""
        difference = difference.double()
        threshold = self.tie_threshold
        if self.noise == 0:
            a, b = (difference > threshold).double(), (difference < -threshold).double()
        else:
            a = torch.sigmoid((difference - threshold) / self.noise)
            b = torch.sigmoid((-difference - threshold) / self.noise)
        a, b = self._majority(a), self._majority(b)
        return torch.stack([a, 1 - a - b, b], dim=-1)

    def judge(self, difference: Tensor, generator: torch.Generator) -> list[Word]:
        """Draw one label per impression of A minus impression of B [N]."""
        shape = (self.raters, difference.shape[0])
        u = torch.rand(shape, generator=generator, dtype=torch.float64)
        noise = self.noise * torch.logit(u, eps=1e-12)  # logistic, by inversion
        noisy = difference.double() + noise
        a = 2 * (noisy > self.tie_threshold).sum(0) > self.raters
        b = 2 * (noisy < -self.tie_threshold).sum(0) > self.raters
        return [
            "A" if wins else "B" if loses else "same"
            for wins, loses in zip(a.tolist(), b.tolist(), strict=True)
        ]

    def _majority(self, p: Tensor) -> Tensor:
        """Chance that more than half of the raters say what one says with chance ``p``."""
        n = self.raters
        chances = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n // 2 + 1, n + 1)]
        return torch.stack(chances).sum(0)


def colourfulness(video: Tensor) -> Tensor:
    """Mean chroma (largest minus smallest channel) of each frame's most colourful 5 % of pixels.

    Of clips [B, T, 3, H, W], uint8 or float in [0, 1]; [B] float32 in [0, 1]: 0 is gray, a
    saturated red sprite gives about 0.8.
    """
    pixels = video.float() / 255 if video.dtype == torch.uint8 else video.float()
    chroma = (pixels.amax(2) - pixels.amin(2)).flatten(2)  # [B, T, H*W]
    count = max(1, int(COLOURFUL_SHARE * chroma.shape[-1]))
    return chroma.topk(count, dim=-1).values.mean((1, 2))


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelStatistics:
    """What the labels of one dimension look like."""

    count: int
    tie_share: float
    agreement: float
    """Share of decided labels that name the clip with the higher oracle score; pairs with equal
    scores are left out. NaN when nothing is left."""
    colour_preference: float
    """Excess of wins over losses of the more colourful clip, per pair, over what an annotator of
    the same noise without colour bias would give. Its expectation is exactly 0 without a bias,
    whatever the clips."""


def label_statistics(judgements: Sequence[Judgement], annotator: Annotator) -> LabelStatistics:
    """Statistics of the pairs, at least one, that ``annotator`` judged in one dimension."""
    words, truths, colours = zip(*judgements, strict=True)
    label = torch.tensor([{"A": 1, "same": 0, "B": -1}[word] for word in words])
    truth = torch.tensor(truths, dtype=torch.float64)
    colour = torch.tensor(colours, dtype=torch.float64)
    clear = (label != 0) & (truth != 0)
    agree = label[clear] == truth[clear].sign()
    p_a, _, p_b = annotator.probabilities(truth).unbind(-1)
    return LabelStatistics(
        count=len(judgements),
        tie_share=float((label == 0).double().mean()),
        agreement=float(agree.double().mean()),
        colour_preference=float(((label - (p_a - p_b)) * colour.sign()).mean()),
    )
