"""The shipped sets pass, and every rule is broken once to see that it is named."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from longtake.evaluation.internal_benchmark.schema import (
    ImagePrompt,
    ReferenceImage,
    TextPrompt,
    count_words,
    read_taxonomy,
)
from longtake.evaluation.internal_benchmark.suite import (
    read_image_set,
    read_images,
    read_text_set,
)
from longtake.evaluation.internal_benchmark.validator import (
    MAX_SAME_OPENING,
    T2V_AUTO,
    T2V_HUMAN,
    Check,
    check_disjoint,
    check_image_prompts,
    check_text_prompts,
)

human = cache(lambda: tuple(read_text_set("t2v_human")))
auto = cache(lambda: tuple(read_text_set("t2v_auto")))
Texts = list[TextPrompt]


def failed(checks: list[Check]) -> dict[str, Check]:
    return {check.rule: check for check in checks if not check.passed}


def first(prompts: Texts, wanted: Callable[[TextPrompt], bool]) -> int:
    return next(index for index, prompt in enumerate(prompts) if wanted(prompt))


def retold(prompt: TextPrompt, text: str) -> TextPrompt:
    return replace(prompt, prompt=text, words=count_words(text))


def relabelled(prompts: Texts, old: str, new: tuple[str, ...]) -> Texts:
    return [
        replace(p, categories=tuple(dict.fromkeys((*(c for c in p.categories if c != old), *new))))
        if old in p.categories
        else p
        for p in prompts
    ]


def test_the_shipped_sets_pass() -> None:
    taxonomy = read_taxonomy()
    checks = {
        "human": check_text_prompts(human(), taxonomy, T2V_HUMAN),
        "auto": check_text_prompts(auto(), taxonomy, T2V_AUTO),
        "both": check_disjoint(human(), auto()),
        "i2v": check_image_prompts(read_image_set(), read_images()),
    }
    assert {name: failed(found) for name, found in checks.items()} == {name: {} for name in checks}
    assert [len(found) for found in checks.values()] == [15, 8, 2, 23]


def test_the_counts_of_section_5_1_by_hand() -> None:
    """Recounted without the validator: percentages of the report at 500 prompts, 48 categories."""
    words = [len(prompt.prompt.split()) for prompt in human()]
    counts = {c.name: sum(c.name in p.categories for p in human()) for c in read_taxonomy()}
    assert round(100 * max(counts.values()) / 500, 1) == 39.2
    assert round(100 * sum(count <= 25 for count in counts.values()) / 48, 1) == 58.3
    assert round(100 * sum(n < 20 for n in words) / 500, 1) == 34.8
    assert round(100 * sum(n > 51 for n in words) / 500, 1) == 34.6
    assert (min(words), max(words), len(counts), min(counts.values()) > 0) == (4, 121, 48, True)


def remove_one(prompts: Texts) -> Texts:
    return prompts[1:]


def top_loses_one(prompts: Texts) -> Texts:
    at = first(prompts, lambda p: "entity_generation" in p.categories and len(p.categories) > 2)
    prompts[at : at + 1] = relabelled([prompts[at]], "entity_generation", ())
    return prompts


def rare_becomes_common(prompts: Texts) -> Texts:
    at = first(prompts, lambda p: "vehicle" not in p.categories)
    prompts[at] = replace(prompts[at], categories=(*prompts[at].categories, "vehicle"))
    return prompts


def category_vanishes(prompts: Texts) -> Texts:
    return relabelled(prompts, "inductive_reasoning", ("lighting",))


def short_grows(prompts: Texts) -> Texts:
    at = first(prompts, lambda p: p.words == 19)
    prompts[at] = retold(prompts[at], prompts[at].prompt + " Quietly.")
    return prompts


def long_shrinks(prompts: Texts) -> Texts:
    at = first(prompts, lambda p: p.words > 51)
    prompts[at] = retold(prompts[at], " ".join(prompts[at].prompt.split()[:51]))
    return prompts


def shortest_grows(prompts: Texts) -> Texts:
    return [retold(p, p.prompt + " Again.") if p.words == 4 else p for p in prompts]


def longest_grows(prompts: Texts) -> Texts:
    return [retold(p, p.prompt + " Again.") if p.words == 121 else p for p in prompts]


def unknown_category(prompts: Texts) -> Texts:
    prompts[3] = replace(prompts[3], categories=(*prompts[3].categories, "drama"))
    return prompts


def repeated_id(prompts: Texts) -> Texts:
    prompts[3] = replace(prompts[3], id=prompts[4].id)
    return prompts


def wrong_words(prompts: Texts) -> Texts:
    prompts[3] = replace(prompts[3], words=prompts[3].words + 1)
    return prompts


def other_language(prompts: Texts) -> Texts:
    prompts[3] = replace(prompts[3], language="de")
    return prompts


def double_space(prompts: Texts) -> Texts:
    prompts[3] = replace(prompts[3], prompt=prompts[3].prompt.replace(" ", "  ", 1))
    return prompts


def near_copy(prompts: Texts) -> Texts:
    at = first(prompts, lambda p: p.words > 60)
    words = prompts[at].prompt.split()
    words[30:33] = ["zig", "zag", "zog"]
    other = first(prompts, lambda p: p.words > 60 and p.id != prompts[at].id)
    prompts[other] = retold(prompts[other], " ".join(words))
    return prompts


def same_opening(prompts: Texts) -> Texts:
    for at in range(MAX_SAME_OPENING + 1):
        prompts[at] = retold(prompts[at], "Close shot of " + prompts[at].prompt)
    return prompts


@pytest.mark.parametrize(
    ("change", "rule", "found", "example"),
    [
        (remove_one, "number of prompts", "499", ""),
        (top_loses_one, "prompts of the top category", "195", ""),
        (rare_becomes_common, "categories on at most 5 %", "27", ""),
        (category_vanishes, "number of categories", "47", ""),
        (short_grows, "prompts below 20 words", "173", ""),
        (long_shrinks, "prompts above 51 words", "172", ""),
        (shortest_grows, "words of the shortest prompt", "5", ""),
        (longest_grows, "words of the longest prompt", "122", ""),
        (unknown_category, "known categories", "1", "t2v-h-004"),
        (repeated_id, "ids occur once", "1", "t2v-h-005"),
        (wrong_words, "stated words", "1", "t2v-h-004"),
        (other_language, "language is en", "1", "t2v-h-004"),
        (double_space, "single spaces, no line breaks", "1", "t2v-h-004"),
        (near_copy, "3-gram overlap of two prompts at most 0.2", "1", "t2v-h-"),
        (same_opening, "the same three first words at most 5 times", "1", "'close shot of' 6"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_violation_of_a_text_set_is_named(
    change: Callable[[Texts], Texts], rule: str, found: str, example: str
) -> None:
    broken = failed(check_text_prompts(change(list(human())), read_taxonomy(), T2V_HUMAN))
    assert rule in broken
    assert broken[rule].found == found
    assert example in " ".join(broken[rule].examples)


def test_shared_ids_and_texts_between_the_sets_are_named() -> None:
    stolen = replace(auto()[0], prompt=human()[7].prompt)
    broken = failed(check_disjoint(human(), [stolen, *auto()[1:9]]))
    assert broken.keys() == {"sets share no near duplicate"}
    assert broken["sets share no near duplicate"].examples == (f"{human()[7].id}/{stolen.id}",)
    twin = replace(auto()[0], id=human()[7].id)
    assert failed(check_disjoint(human(), [twin])).keys() == {"sets share no id"}


Images = list[ReferenceImage]
Prompts = list[ImagePrompt]
Change = Callable[[Prompts, Images], tuple[Prompts, Images]]


def image_with(**values: object) -> Change:
    return lambda prompts, images: (prompts, [replace(images[0], **values), *images[1:]])


def prompt_with(kind: str, **values: object) -> Change:
    def change(prompts: Prompts, images: Images) -> tuple[Prompts, Images]:
        at = next(i for i, prompt in enumerate(prompts) if prompt.prompt_type == kind)
        prompts[at] = replace(prompts[at], **values)
        return prompts, images

    return change


def lose_an_image(prompts: Prompts, images: Images) -> tuple[Prompts, Images]:
    return prompts, images[1:]


def lose_a_prompt(prompts: Prompts, images: Images) -> tuple[Prompts, Images]:
    return prompts[1:], images


def one_quality(prompts: Prompts, images: Images) -> tuple[Prompts, Images]:
    return prompts, [replace(image, quality="high") for image in images]


def repeat_a_prompt(prompts: Prompts, images: Images) -> tuple[Prompts, Images]:
    concise = [i for i, prompt in enumerate(prompts) if prompt.prompt_type == "concise"]
    prompts[concise[0]] = replace(prompts[concise[0]], prompt=prompts[concise[1]].prompt)
    return prompts, images


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lose_an_image, "number of images"),
        (lose_an_image, "known images"),
        (image_with(id="i2v-002"), "image ids occur once"),
        (image_with(file="i2v-002.png"), "image files occur once"),
        (image_with(sha256=""), "digests are SHA-256"),
        (image_with(style="fresco"), "known styles"),
        (image_with(content=("abstract", "robot")), "known contents"),
        (image_with(quality="low"), "known qualities"),
        (image_with(aspect="4:3"), "known aspect ratios"),
        (image_with(resolution="480p"), "known resolutions"),
        (one_quality, "every quality, aspect and resolution occurs"),
        (lose_a_prompt, "number of prompts"),
        (lose_a_prompt, "every image has every prompt type once"),
        (prompt_with("concise", prompt_type="vague"), "known prompt types"),
        (prompt_with("concise", prompt="", words=0), "prompt is empty exactly for type empty"),
        (prompt_with("empty", prompt="Go.", words=1), "prompt is empty exactly for type empty"),
        (
            prompt_with("detailed", prompt="It goes.", words=2),
            "detailed prompt is longer than the concise one",
        ),
        (repeat_a_prompt, "no prompt twice"),
        (prompt_with("concise", id="i2v-050-concise"), "ids occur once"),
        (prompt_with("concise", words=99), "stated words"),
    ],
)
def test_each_violation_of_the_image_set_is_named(change: Change, rule: str) -> None:
    prompts, images = change(read_image_set(), read_images())
    assert rule in failed(check_image_prompts(prompts, images))


def test_examples_are_cut_but_counted() -> None:
    prompts = [replace(prompt, language="fr") for prompt in human()]
    check = failed(check_text_prompts(prompts, read_taxonomy(), T2V_HUMAN))["language is en"]
    assert check.found == "500" and len(check.examples) == 5


def test_an_empty_set_is_reported_not_raised() -> None:
    broken = failed(check_text_prompts([], read_taxonomy(), T2V_HUMAN))
    assert broken["number of prompts"].found == "0"
    assert broken["prompts of the top category"].found == "0"
