"""The answer as tokens: where its digits stand, and scores from the distribution over the digits.

The score of a dimension is the expectation over the five digits at the place of its digit,

    s = sum_{d=1..5} d exp(z_d) / sum_{d=1..5} exp(z_d),

with the logits z given the prompt and the answer so far. It is finer than the most likely digit
and, after training on single ratings, an estimate of their mean: the cross-entropy is least where
the probability of each digit is the share of the raters who gave it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.evaluation.dimensions import SCALE
from longtake.evaluation.judge.answer import answer_text
from longtake.runtime.errors import CheckpointError

DIGITS = tuple(range(SCALE[0], SCALE[1] + 1))


@dataclass(frozen=True, kw_only=True)
class AnswerTokens:
    """All answers share their tokens except for the digits."""

    ids: tuple[int, ...]
    """Token ids of an answer, the end of the turn last; length A."""
    places: tuple[int, ...]
    """Index of each dimension's digit in ``ids``; length D."""
    digits: tuple[tuple[int, ...], ...]
    """[D, 5] token ids of the digits 1 to 5 at each place."""

    def answer(self, scores: Sequence[int]) -> list[int]:
        """Token ids of the answer with these scores, the end of the turn last."""
        ids = list(self.ids)
        for place, digits, score in zip(self.places, self.digits, scores, strict=True):
            ids[place] = digits[score - SCALE[0]]
        return ids

    def expectation(self, logits: Tensor) -> Tensor:
        """Expected scores.

        Args:
            logits: [..., A, V], the row before each token of the answer predicting it: row a is
                the distribution of token a.

        Returns:
            float64 [..., D] in [1, 5].
        """
        found = []
        for place, digits in zip(self.places, self.digits, strict=True):
            chosen = logits[..., place, list(digits)].double()
            values = torch.tensor(DIGITS, dtype=torch.float64, device=logits.device)
            found.append((chosen.softmax(-1) * values).sum(-1))
        return torch.stack(found, -1)


def answer_tokens(
    encode: Callable[[str], list[int]], end: int, dimensions: Sequence[str]
) -> AnswerTokens:
    """Find the digits in the tokens of an answer.

    Args:
        encode: text -> token ids, nothing added.
        end: id of the token that ends the model's turn.
        dimensions: lines of the answer.

    Raises:
        CheckpointError: a tokenizer that joins a digit with what stands beside it.
    """
    size = len(dimensions)
    same = [encode(answer_text(dimensions, [digit] * size)) for digit in DIGITS]
    columns = list(zip(*same, strict=True)) if len({len(ids) for ids in same}) == 1 else []
    places = tuple(place for place, column in enumerate(columns) if len(set(column)) > 1)
    tokens = AnswerTokens(
        ids=(*same[0], end), places=places, digits=tuple(columns[place] for place in places)
    )
    mixed = [DIGITS[(3 * place + 1) % len(DIGITS)] for place in range(size)]
    whole = len(places) == size and all(len(set(column)) == len(DIGITS) for column in tokens.digits)
    if not (whole and tokens.answer(mixed)[:-1] == encode(answer_text(dimensions, mixed))):
        raise CheckpointError(
            "the tokenizer does not give every digit of an answer a token of its own",
            received=f"{len(places)} tokens that change with the digits of {size} lines",
            expected="one for each line, as the tokenizers of Qwen2-VL and later have",
        )
    return tokens
