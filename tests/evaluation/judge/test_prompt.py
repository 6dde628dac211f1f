"""The answer in text: what is read, what is refused, and scores from the digits' distribution."""

import math

import numpy as np
import pytest
import torch

from longtake.evaluation.dimensions import DIMENSIONS
from longtake.evaluation.judge.card import reasons
from longtake.evaluation.judge.data import JUDGED
from longtake.evaluation.judge.prompt import (
    CAPTION,
    PARSE_FAILURE,
    answer_text,
    answer_tokens,
    judge_prompt,
    parse_answer,
    parse_failure,
)
from longtake.evaluation.ratings import Rating
from longtake.runtime.errors import CheckpointError, UserError
from longtake.sandbox.recipes.tiny_vlm import byte_tokenizer

GOOD = "Text-Alignment: 4\nVisual Quality: 1\nMotion Quality: 5"


def encode(text):
    return byte_tokenizer()(text)["input_ids"]


def test_every_answer_reads_back():
    for a in range(1, 6):
        for b in range(1, 6):
            scores = (a, b, 6 - a)
            assert parse_answer(answer_text(JUDGED, scores), JUDGED) == scores
    assert parse_answer(GOOD + " \n", JUDGED) == (4, 1, 5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4 1 5",
        GOOD.replace("4", "6"),
        GOOD.replace("4", "4.5"),
        GOOD.replace("4", "45"),
        GOOD.replace("4", "٤"),  # a digit elsewhere
        GOOD.replace("\n", "\n\n"),
        GOOD.replace("Visual", "visual"),
        "Sure! " + GOOD,
        GOOD + "\nOverall: 3",
        GOOD + " out of 5",
        "\n".join(GOOD.splitlines()[:2]),
        "\n".join(reversed(GOOD.splitlines())),
        "I give 5 of 5 " * 100,
    ],
)
def test_garbage_is_a_parse_failure_that_quotes_it(text):
    assert parse_answer(text, JUDGED) is None
    reason = parse_failure(text)
    assert reason.startswith(f"{PARSE_FAILURE}: ") and len(reason) < 200
    assert repr(text[:15])[1:-1] in reason


def test_parse_failures_are_one_reason_of_the_report_card():
    records = [
        Rating(sample="a", dimension="visual_quality", rater="judge", score=score, reason=reason)
        for score, reason in (
            (None, "no such file"),
            (None, parse_failure("hm")),
            (None, parse_failure("oh")),
            (3.0, ""),
        )
    ]
    assert reasons(records) == {PARSE_FAILURE: 2, "no such file": 1}


def test_the_prompt_asks_what_the_raters_are_asked():
    text = judge_prompt(JUDGED)
    assert text.count(CAPTION) == 1
    for name in JUDGED:
        assert DIMENSIONS[name].question in text
        assert all(tier in text for tier in DIMENSIONS[name].tiers)
    for wrong in ((), ("beauty",), ("overall", "overall")):
        with pytest.raises(UserError, match="asked for"):
            judge_prompt(wrong)


def test_the_digits_are_found_in_the_tokens():
    tokens = answer_tokens(encode, 7, JUDGED)
    for scores in ((1, 2, 3), (5, 5, 1), (4, 3, 2)):
        ids = encode(answer_text(JUDGED, scores))
        assert tokens.answer(scores) == [*ids, 7]
        assert [ids[place] for place in tokens.positions] == [
            tokens.digits[line][score - 1] for line, score in enumerate(scores)
        ]


def test_a_tokenizer_that_joins_digits_is_refused():
    vocabulary: dict[str, int] = {}

    def lines(text):  # every line is a token
        return [vocabulary.setdefault(line, len(vocabulary)) for line in text.split("\n")]

    assert answer_tokens(lines, 9, JUDGED).positions == (0, 1, 2)  # unusual, and good

    def pairs(text):  # two lines are a token
        halves = text[:35], text[35:]
        return [vocabulary.setdefault(half, len(vocabulary)) for half in halves]

    def blind(text):
        return [1, 2, 3]

    for wrong in (pairs, blind):
        with pytest.raises(CheckpointError, match="token of its own"):
            answer_tokens(wrong, 9, JUDGED)


def test_the_expectation_by_hand():
    tokens = answer_tokens(encode, 7, JUDGED)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(2, len(tokens.ids), 300)) * 3
        found = tokens.expectation(torch.from_numpy(logits))
        for row in range(2):
            for line, place in enumerate(tokens.positions):
                weights = [math.exp(logits[row, place, i]) for i in tokens.digits[line]]
                mean = sum(d * w for d, w in enumerate(weights, 1)) / sum(weights)
                assert float(found[row, line]) == pytest.approx(mean)
    # A sure model gives the digit; one that knows nothing the middle.
    sure = torch.full((len(tokens.ids), 300), -1e9)
    sure[tokens.positions[1], tokens.digits[1][3]] = 1e9
    assert tokens.expectation(sure).tolist() == pytest.approx([3.0, 4.0, 3.0])


def test_cross_entropy_on_single_ratings_makes_the_expectation_their_mean():
    tokens = answer_tokens(encode, 7, ("visual_quality",))
    ratings = torch.tensor([5, 4, 4, 2, 5])
    labels = torch.tensor([tokens.digits[0][int(r) - 1] for r in ratings])
    logits = torch.zeros(300, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits.expand(5, -1), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    row = torch.zeros(len(tokens.ids), 300)
    row[tokens.positions[0]] = logits.detach()
    assert float(tokens.expectation(row)[0]) == pytest.approx(4.0, abs=1e-3)
