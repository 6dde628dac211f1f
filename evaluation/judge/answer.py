"""What a judge that answers in text is asked, and the one form of answer that counts.

The answer has a line for each dimension, its title and a whole number from 1 to 5:

    Text-Alignment: 4
    Visual Quality: 3
    Motion Quality: 5

Anything else (another order, a missing line, words around it) is not read: a lenient parser takes
numbers from sentences that mean something else. Such a video is unscored with
:data:`PARSE_FAILURE`, and the report card counts it.
"""

import re
from collections.abc import Sequence

from longtake.evaluation.dimensions import DIMENSIONS, SCALE
from longtake.runtime.errors import UserError

PARSE_FAILURE = "the answer cannot be parsed"
"""Start of the reason of a video whose answer is not of the form above."""
CAPTION = "{caption}"
"""Stands in the prompt where the caption goes."""
_SHOWN = 120
"""Characters of a wrong answer that are kept."""


def titles(dimensions: Sequence[str]) -> tuple[str, ...]:
    """Titles of rated dimensions, as the prompt and the answer call them.

    Raises:
        UserError: none, an unknown one, or one twice.
    """
    unknown = [name for name in dimensions if name not in DIMENSIONS]
    if unknown or not dimensions or len(set(dimensions)) < len(dimensions):
        raise UserError(
            "these dimensions cannot be asked for",
            received=", ".join(dimensions) or "none",
            expected=f"each once of: {', '.join(DIMENSIONS)}",
        )
    return tuple(DIMENSIONS[name].title for name in dimensions)


def judge_prompt(dimensions: Sequence[str]) -> str:
    """The question to the model, with :data:`CAPTION` once; questions and tiers are the raters'.

    Raises:
        UserError: see :func:`titles`.
    """
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
    """The answer that gives these scores.

    Raises:
        UserError: see :func:`titles`.
    """
    pairs = zip(titles(dimensions), scores, strict=True)
    return "\n".join(f"{title}: {score}" for title, score in pairs)


def parse_answer(text: str, dimensions: Sequence[str]) -> tuple[int, ...]:
    """Scores of an answer; only space at its end is forgiven.

    Raises:
        ValueError: not an answer; the message starts with :data:`PARSE_FAILURE` and quotes it.
    """
    low, high = SCALE
    lines = [f"{re.escape(title)}: ([{low}-{high}])" for title in titles(dimensions)]
    found = re.fullmatch("\n".join(lines), text.rstrip(), flags=re.ASCII)
    if found is None:
        raise ValueError(parse_failure(text))
    return tuple(int(digit) for digit in found.groups())


def parse_failure(text: str) -> str:
    """Reason of a video whose answer was ``text``."""
    cut = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return f"{PARSE_FAILURE}: {cut!r}"
