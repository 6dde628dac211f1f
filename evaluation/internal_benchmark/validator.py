"""What the prompt sets must look like: the counts of section 5.1 and our own rules of quality.

The report prints percentages; at 500 prompts and 48 categories they are whole numbers: 39.2 % is
196 prompts, 58.3 % is 28 categories, 34.8 % and 34.6 % are 174 and 173 prompts. Every rule gives
one :class:`Check`, passed or not, so nothing is tested silently.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from longtake.evaluation.internal_benchmark.near_duplicates import openings, overlaps
from longtake.evaluation.internal_benchmark.schema import (
    ASPECTS,
    CONTENTS,
    PROMPT_TYPES,
    QUALITIES,
    RESOLUTIONS,
    STYLES,
    Category,
    ImagePrompt,
    ReferenceImage,
    TextPrompt,
    count_words,
)

SHORT_BELOW, LONG_ABOVE = 20, 51
"""Section 5.1: concise prompts have < 20 words, highly detailed ones > 51."""
RARE_SHARE = 0.05
"""Section 5.1: a category of the long tail is on this share of the prompts or less."""

# Ours: the report says "semantic diversity" without a measure.
MAX_JACCARD = 0.2
MAX_SAME_OPENING = 5

_MAX_EXAMPLES = 5
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Outcome of one rule.

    Args:
        rule: name of the rule.
        expected: what the rule asks.
        found: what the set has.
        passed: whether they agree.
        examples: ids that break the rule, at most five.
    """

    rule: str
    expected: str
    found: str
    passed: bool
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTargets:
    """Counts that a text-to-video set must have; None where the report gives none.

    Args:
        prompts: number of prompts.
        categories: number of categories in use.
        top_category: prompts of the most frequent category.
        rare_categories: categories on at most 5 % of the prompts.
        short: prompts of fewer than 20 words.
        long: prompts of more than 51 words.
        shortest: words of the shortest prompt.
        longest: words of the longest prompt.
    """

    prompts: int
    categories: int | None = None
    top_category: int | None = None
    rare_categories: int | None = None
    short: int | None = None
    long: int | None = None
    shortest: int | None = None
    longest: int | None = None


T2V_HUMAN = TextTargets(
    prompts=500,
    categories=48,
    top_category=196,
    rare_categories=28,
    short=174,
    long=173,
    shortest=4,
    longest=121,
)
T2V_AUTO = TextTargets(prompts=728)
I2V_IMAGES = 100


def no_exception(rule: str, offenders: Sequence[str]) -> Check:
    """A rule that no record may break, given those that do."""
    return Check(
        rule=rule,
        expected="none",
        found=str(len(offenders)) if offenders else "none",
        passed=not offenders,
        examples=tuple(offenders[:_MAX_EXAMPLES]),
    )


def check_text_prompts(
    prompts: Sequence[TextPrompt], taxonomy: Sequence[Category], targets: TextTargets
) -> list[Check]:
    """Check one text-to-video set against its targets and the rules of quality."""
    names = {category.name for category in taxonomy}
    unknown = [prompt.id for prompt in prompts if not names.issuperset(prompt.categories)]
    # A name occurs once in a prompt: the schema refuses repetitions.
    per_category = Counter(name for prompt in prompts for name in prompt.categories)
    rare = sum(count <= RARE_SHARE * len(prompts) for count in per_category.values())
    lengths = [count_words(prompt.prompt) for prompt in prompts]
    counts = (
        ("number of prompts", targets.prompts, len(prompts)),
        ("number of categories", targets.categories, len(per_category)),
        (
            "prompts of the top category",
            targets.top_category,
            max(per_category.values(), default=0),
        ),
        ("categories on at most 5 %", targets.rare_categories, rare),
        ("prompts below 20 words", targets.short, sum(n < SHORT_BELOW for n in lengths)),
        ("prompts above 51 words", targets.long, sum(n > LONG_ABOVE for n in lengths)),
        ("words of the shortest prompt", targets.shortest, min(lengths, default=0)),
        ("words of the longest prompt", targets.longest, max(lengths, default=0)),
    )
    return [
        *(_equal(rule, target, found) for rule, target, found in counts if target is not None),
        no_exception("known categories", unknown),
        *_check_records(prompts),
        *_check_texts([prompt.id for prompt in prompts], [prompt.prompt for prompt in prompts]),
    ]


def check_disjoint(human: Sequence[TextPrompt], auto: Sequence[TextPrompt]) -> list[Check]:
    """Check that the human and the automatic set share no id and no text, nor nearly so.

    The 2:1 merge of section 5.1 joins scores of different prompts; a prompt in both sets would
    count twice.
    """
    ids = {prompt.id for prompt in human}
    texts = [prompt.prompt for prompt in (*human, *auto)]
    close = [
        f"{human[pair.first].id}/{auto[pair.second - len(human)].id}"
        for pair in overlaps(texts, MAX_JACCARD)
        if pair.first < len(human) <= pair.second
    ]
    return [
        no_exception("sets share no id", [prompt.id for prompt in auto if prompt.id in ids]),
        no_exception("sets share no near duplicate", close),
    ]


def check_image_prompts(
    prompts: Sequence[ImagePrompt], images: Sequence[ReferenceImage]
) -> list[Check]:
    """Check the image-to-video set: 100 images, each with the four prompt types once."""
    known = {image.id for image in images}
    pairs = Counter((prompt.image, prompt.prompt_type) for prompt in prompts)
    wanted = {(image, kind) for image in known for kind in PROMPT_TYPES}
    by_pair = {(prompt.image, prompt.prompt_type): prompt for prompt in prompts}
    written = [prompt for prompt in prompts if prompt.prompt_type != "empty"]
    not_longer = [
        prompt.id
        for prompt in written
        if prompt.prompt_type == "detailed"
        and (concise := by_pair.get((prompt.image, "concise"))) is not None
        and count_words(prompt.prompt) <= count_words(concise.prompt)
    ]
    detailed = [prompt for prompt in written if prompt.prompt_type == "detailed"]
    texts = [prompt.prompt for prompt in written]
    return [
        *check_images(images),
        _equal("number of prompts", len(known) * len(PROMPT_TYPES), len(prompts)),
        no_exception(
            "known images", [prompt.id for prompt in prompts if prompt.image not in known]
        ),
        no_exception(
            "known prompt types", [p.id for p in prompts if p.prompt_type not in PROMPT_TYPES]
        ),
        no_exception(
            "every image has every prompt type once",
            [f"{image}-{kind}" for image, kind in sorted(wanted) if pairs[image, kind] != 1],
        ),
        no_exception(
            "prompt is empty exactly for type empty",
            [p.id for p in prompts if (p.prompt == "") != (p.prompt_type == "empty")],
        ),
        no_exception("detailed prompt is longer than the concise one", not_longer),
        no_exception("no prompt twice", [p.id for p in written if texts.count(p.prompt) > 1]),
        *_check_records(prompts),
        *_check_texts([p.id for p in detailed], [p.prompt for p in detailed]),
    ]


def check_images(images: Sequence[ReferenceImage]) -> list[Check]:
    """Check the manifest of reference images; the files are checked by :mod:`~.images`."""
    unused = [
        f"{name} {value}"
        for name, values in (
            ("quality", QUALITIES),
            ("aspect", ASPECTS),
            ("resolution", RESOLUTIONS),
        )
        for value in values
        if value not in {getattr(image, name) for image in images}
    ]
    return [
        _equal("number of images", I2V_IMAGES, len(images)),
        no_exception("image ids occur once", _repeated(image.id for image in images)),
        no_exception("image files occur once", _repeated(image.file for image in images)),
        no_exception(
            "digests are SHA-256", [i.id for i in images if not _SHA256.fullmatch(i.sha256)]
        ),
        no_exception("known styles", [i.id for i in images if i.style not in STYLES]),
        no_exception(
            "known contents", [i.id for i in images if not set(CONTENTS).issuperset(i.content)]
        ),
        no_exception("known qualities", [i.id for i in images if i.quality not in QUALITIES]),
        no_exception("known aspect ratios", [i.id for i in images if i.aspect not in ASPECTS]),
        no_exception(
            "known resolutions", [i.id for i in images if i.resolution not in RESOLUTIONS]
        ),
        no_exception("every quality, aspect and resolution occurs", unused),
    ]


def _check_records(prompts: Sequence[TextPrompt] | Sequence[ImagePrompt]) -> list[Check]:
    """Rules that hold for a record of either task."""
    return [
        no_exception("ids occur once", _repeated(prompt.id for prompt in prompts)),
        no_exception("stated words", [p.id for p in prompts if p.words != count_words(p.prompt)]),
        no_exception("language is en", [p.id for p in prompts if p.language != "en"]),
        no_exception(
            "single spaces, no line breaks",
            [p.id for p in prompts if p.prompt != " ".join(p.prompt.split())],
        ),
    ]


def _check_texts(ids: Sequence[str], texts: Sequence[str]) -> list[Check]:
    """No near duplicates and no opening that recurs."""
    close = overlaps(texts, MAX_JACCARD)
    recurring = {
        opening: owners
        for opening, owners in openings(texts).items()
        if len(owners) > MAX_SAME_OPENING
    }
    return [
        no_exception(
            f"3-gram overlap of two prompts at most {MAX_JACCARD}",
            [f"{ids[pair.first]}/{ids[pair.second]} {pair.jaccard:.2f}" for pair in close],
        ),
        no_exception(
            f"the same three first words at most {MAX_SAME_OPENING} times",
            [f"{opening!r} {len(owners)} times" for opening, owners in recurring.items()],
        ),
    ]


def _equal(rule: str, expected: int, found: int) -> Check:
    return Check(rule=rule, expected=str(expected), found=str(found), passed=expected == found)


def _repeated(values: Iterable[str]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]
