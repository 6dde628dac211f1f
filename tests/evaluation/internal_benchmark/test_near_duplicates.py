import random
import re
from itertools import combinations

import pytest

from longtake.evaluation.internal_benchmark.near_duplicates import openings, overlaps, trigrams


def brute_force(first: str, second: str) -> float:
    """Jaccard index of word 3-grams, written another way: as sets of joined strings."""
    sets = []
    for text in (first, second):
        words = re.sub(r"[^a-z ]", "", text.lower()).split()
        sets.append({" ".join(words[i : i + 3]) for i in range(len(words) - 2)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.parametrize("seed", range(4))
def test_overlaps_equal_brute_force_over_all_pairs(seed: int) -> None:
    draw = random.Random(seed)
    texts = [", ".join(draw.choices(["A", "b", "c."], k=draw.randint(4, 12))) for _ in range(40)]
    expected = {
        (i, j): index
        for i, j in combinations(range(40), 2)
        if (index := brute_force(texts[i], texts[j])) > 0.3
    }
    found = overlaps(texts, 0.3)
    assert len(expected) > 20
    assert {(pair.first, pair.second): pair.jaccard for pair in found} == pytest.approx(expected)
    assert [p.jaccard for p in found] == sorted((p.jaccard for p in found), reverse=True)


def test_case_and_punctuation_do_not_count() -> None:
    (pair,) = overlaps(["The cat's hat, it FELL.", "the cat's hat it fell"], 0.99)
    assert pair.jaccard == 1
    assert trigrams("The cat\u2019s hat") == {("the", "cat\u2019s", "hat")}


def test_texts_below_three_words_match_only_themselves() -> None:
    assert trigrams("Snow falls") == {("snow", "falls")}
    assert [(p.first, p.second) for p in overlaps(["Snow falls.", "snow falls", "Snow"], 0)] == [
        (0, 1)
    ]


def test_openings_are_grouped_and_ordered() -> None:
    found = openings(["One two three four", "one, two: three", "Two", "zero one two"])
    assert found == {"one two three": [0, 1], "two": [2], "zero one two": [3]}
    assert next(iter(found)) == "one two three"
