"""Questions with their answers, for supervised fine-tuning.

An answer gives one person's rating in each dimension, not the mean of all: an update draws one of
the ratings, so that the odds of the digits become the shares of the raters who gave them, and the
expectation over the digits the mean rating. The loss is on the answer alone; the digit of a
dimension that nobody rated is left out of it.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from longtake.evaluation.dimensions import SCALE
from longtake.evaluation.judge.generative_inputs import ClipQuestions, ShownClip, as_batch
from longtake.evaluation.judge.rated_batches import ClipCache, update_rows
from longtake.evaluation.judge.rated_clips import RatedClips
from longtake.runtime.rng import generator

IGNORED = -100
"""Label of a token that has no part in the loss."""
_UNRATED = sum(SCALE) // 2  # stands in an answer, without a loss
Example = Mapping[str, int]
"""``row`` of a clip, and ``draw``: names the draw of its ratings."""


class RatingDraws:
    """Ratings of the clips of a part.

    Args:
        clips: the part.
        seed: names the draws.
    """

    def __init__(self, clips: RatedClips, seed: int) -> None:
        self._seed, self._dimensions = seed, clips.dimensions
        groups = clips.ratings.groupby(["sample", "dimension"])["score"]
        given = {key: tuple(float(score) for score in scores) for key, scores in groups}
        self._given = [
            tuple(given.get((item.sample, name), ()) for name in clips.dimensions)
            for item in clips.samples.samples
        ]

    def scores(self, row: int, draw: int) -> list[int | None]:
        """A whole score for each dimension of a clip; None: nobody rated it.

        A rating between two whole numbers becomes one of them, the nearer one more often, so that
        its mean over draws is kept.
        """
        found: list[int | None] = []
        for name, ratings in zip(self._dimensions, self._given[row], strict=True):
            if not ratings:
                found.append(None)
                continue
            chance = generator(self._seed, "rating of a clip", row, draw, name)
            which = int(torch.randint(len(ratings), (), generator=chance))
            up = float(torch.rand((), generator=chance)) < ratings[which] - math.floor(
                ratings[which]
            )
            whole = math.floor(ratings[which]) + up
            found.append(min(max(whole, SCALE[0]), SCALE[1]))
        return found


class AnswerCollator:
    """Examples as a batch with labels.

    Args:
        clips: decoded.
        questions: of the judge.
        draws: ratings of the same clips.
    """

    def __init__(
        self, clips: ClipCache[ShownClip], questions: ClipQuestions, draws: RatingDraws
    ) -> None:
        self._clips, self._questions, self._draws = clips, questions, draws

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Inputs of the model, with ``labels`` [B, L]."""
        rows, answers, labels = [], [], []
        tokens = self._questions.tokens
        for example in examples:
            clip = self._clips.frames(example["row"])
            caption = self._clips.clips.samples.samples[example["row"]].caption
            rows.append(self._questions.row(clip, caption))
            scores = self._draws.scores(example["row"], example["draw"])
            answer = tokens.answer([_UNRATED if s is None else s for s in scores])
            answers.append(answer)
            unrated = [p for p, s in zip(tokens.places, scores, strict=True) if s is None]
            labels.append([IGNORED if p in unrated else t for p, t in enumerate(answer)])
        batch = as_batch(rows, self._questions.end, answers)
        ignored = torch.full_like(batch["input_ids"], IGNORED)
        batch["labels"] = torch.cat([ignored[:, : -len(tokens.ids)], torch.tensor(labels)], 1)
        return batch


def training_examples(num_clips: int, batch: int, updates: int, seed: int) -> list[Example]:
    """Examples of all updates in their order; every update has ``batch`` of them.

    Clips come in epochs of a drawn order; where there are fewer than ``batch``, they repeat.
    """
    found: list[Example] = []
    for update in range(updates):
        rows = update_rows(num_clips, batch, update, seed)
        found += [{"row": rows[i % len(rows)], "draw": update * batch + i} for i in range(batch)]
    return found


def held_out_examples(num_clips: int, draws: int) -> list[Example]:
    """Every clip with several draws of its ratings; their numbers differ from those of training."""
    return [{"row": row, "draw": -1 - draw} for draw in range(draws) for row in range(num_clips)]
