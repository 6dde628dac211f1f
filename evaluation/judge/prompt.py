"""What a judge that answers in text is asked, the one form of answer that counts, and its score.

The answer has a line for each dimension, its title and a whole number from 1 to 5:

    Text-Alignment: 4
    Visual Quality: 3
    Motion Quality: 5

Anything else (another order, a missing line, words around it) is not read: a lenient parser takes
numbers from sentences that mean something else. Such a video is unscored with
:data:`PARSE_FAILURE`, and the report card counts it.

The score of a dimension is the expectation over the five digits at the place of its digit,

    s = sum_{d=1..5} d exp(z_d) / sum_{d=1..5} exp(z_d),

with the logits z given the prompt and the answer so far. It is finer than the most likely digit
and, after training on single ratings, an estimate of their mean: the cross-entropy is least where
the probability of each digit is the share of the raters who gave it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longtake.evaluation.dimensions import DIMENSIONS, SCALE
from longtake.runtime.errors import CheckpointError, UserError

if TYPE_CHECKING:
    from torch import Tensor

PARSE_FAILURE = "the answer cannot be parsed"
"""Start of the reason of a video whose answer is not of the form above."""
CAPTION = "{caption}"
"""Stands in the prompt where the caption goes."""
DIGITS = tuple(range(SCALE[0], SCALE[1] + 1))
_QUOTED = 120  # characters of a wrong answer that are kept


def titles(dimensions: Sequence[str]) -> tuple[str, ...]:
    """Titles of rated dimensions, as the prompt and the answer call them."""
    unknown = [name for name in dimensions if name not in DIMENSIONS]
    if unknown or not dimensions or len(set(dimensions)) < len(dimensions):
        raise UserError(
            "these dimensions cannot be asked for",
            received=", ".join(dimensions) or "none",
            expected=f"each once of: {', '.join(DIMENSIONS)}",
        )
    return tuple(DIMENSIONS[name].title for name in dimensions)


def judge_prompt(dimensions: Sequence[str]) -> str:
    """The question, with :data:`CAPTION` once; questions and tiers are those that raters see."""
    low, high = SCALE
    lines = [
        "The video was generated from this text:",
        CAPTION,
        "",
        f"Rate it as a careful person would, in whole numbers from {low} (worst) to {high} (best).",
    ]
    for name, title in zip(dimensions, titles(dimensions), strict=True):
        tiers = " ".join(f"{score}: {text}" for score, text in enumerate(DIMENSIONS[name].tiers, 1))
        lines.append(f"{title}. {DIMENSIONS[name].question} {tiers}")
    lines += ["", "Answer with these lines alone, a number in place of N:"]
    return "\n".join([*lines, *(f"{title}: N" for title in titles(dimensions))])


def answer_text(dimensions: Sequence[str], scores: Sequence[int]) -> str:
    """The answer that gives these scores."""
    pairs = zip(titles(dimensions), scores, strict=True)
    return "\n".join(f"{title}: {score}" for title, score in pairs)


def parse_answer(text: str, dimensions: Sequence[str]) -> tuple[int, ...] | None:
    """Scores of an answer, or None; only space at its end is forgiven."""
    lines = [f"{re.escape(title)}: ([{DIGITS[0]}-{DIGITS[-1]}])" for title in titles(dimensions)]
    match = re.fullmatch("\n".join(lines), text.rstrip(), flags=re.ASCII)
    return None if match is None else tuple(int(digit) for digit in match.groups())


def parse_failure(text: str) -> str:
    """Reason of a video whose answer was ``text``."""
    # Quoted, so that a person sees what the model says instead; cut, because it may not stop.
    cut = text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..."
    return f"{PARSE_FAILURE}: {cut!r}"


@dataclass(frozen=True, kw_only=True)
class AnswerTokens:
    """The answer as tokens ``ids`` [A], the end of the turn last: only digits differ.

    The digit of each dimension stands at ``positions`` [D] and is one of ``digits`` [D, 5].
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    digits: tuple[tuple[int, ...], ...]

    def answer(self, scores: Sequence[int]) -> list[int]:
        """Token ids of the answer with these scores, the end of the turn last."""
        ids = list(self.ids)
        for position, digits, score in zip(self.positions, self.digits, scores, strict=True):
            ids[position] = digits[score - DIGITS[0]]
        return ids

    def expectation(self, logits: "Tensor") -> "Tensor":
        """Expected scores float64 [..., D] in [1, 5].

        ``logits`` [..., A, V]: row a is the distribution of token a given those before it.
        """
        import torch

        chosen = torch.stack(
            [logits[..., p, list(d)] for p, d in zip(self.positions, self.digits, strict=True)], -2
        ).double()  # [..., D, 5]
        return (chosen.softmax(-1) * torch.tensor(DIGITS, device=logits.device)).sum(-1)


def answer_tokens(
    encode: Callable[[str], list[int]], end: int, dimensions: Sequence[str]
) -> AnswerTokens:
    """Find the digits in the tokens of an answer.

    ``encode`` maps text to token ids and adds nothing; ``end`` ends the model's turn. A tokenizer
    that joins a digit with what stands beside it is refused: its odds mean something else.
    """
    size = len(dimensions)
    # By comparing whole answers: how a digit is tokenised depends on the space before it.
    same = [encode(answer_text(dimensions, [digit] * size)) for digit in DIGITS]
    columns = list(zip(*same, strict=True)) if len({len(ids) for ids in same}) == 1 else []
    positions = tuple(i for i, column in enumerate(columns) if len(set(column)) > 1)
    tokens = AnswerTokens(
        ids=(*same[0], end), positions=positions, digits=tuple(columns[i] for i in positions)
    )
    # Answers of equal digits could hide that one digit changes the token of the next line.
    mixed = [DIGITS[(3 * line + 1) % len(DIGITS)] for line in range(size)]
    whole = len(positions) == size and all(len(set(ids)) == len(DIGITS) for ids in tokens.digits)
    if not (whole and tokens.answer(mixed)[:-1] == encode(answer_text(dimensions, mixed))):
        raise CheckpointError(
            "the tokenizer does not give every digit of an answer a token of its own",
            received=f"{len(positions)} tokens that change with the digits of {size} lines",
            expected="one for each line, as the tokenizers of Qwen2-VL and later have",
        )
    return tokens
