"""The shipped benchmark holds the counts of report section 5.1 and our own rules of quality."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache

import pytest
from PIL import Image

from longtake.evaluation.benchmark import (
    I2V_FILE,
    IMAGES_FILE,
    INTERNAL_SUITE,
    ImagePrompt,
    ReferenceImage,
    TextPrompt,
    pixel_digest,
    read_records,
    read_taxonomy,
    read_text_set,
    scene_name,
    trigrams,
    write_images,
)
from longtake.runtime.errors import UserError

human = cache(lambda: tuple(read_text_set("t2v_human")))
auto = cache(lambda: tuple(read_text_set("t2v_auto")))
pictures = cache(lambda: tuple(read_records(INTERNAL_SUITE / IMAGES_FILE, ReferenceImage)))
prompts_of_images = cache(lambda: tuple(read_records(INTERNAL_SUITE / I2V_FILE, ImagePrompt)))


def near_duplicates(texts, above=0.2):
    """Pairs of texts by the Jaccard index of their word 3-grams; only sharing pairs are visited."""
    grams = [trigrams(text) for text in texts]
    owners, shared = defaultdict(list), Counter()
    for index, own in enumerate(grams):
        for gram in own:
            shared.update((other, index) for other in owners[gram])
            owners[gram].append(index)
    return [
        (texts[a], texts[b])
        for (a, b), n in shared.items()
        if n / (len(grams[a]) + len(grams[b]) - n) > above
    ]


def test_the_human_set_has_the_counts_of_section_5_1():
    # At 500 prompts and 48 categories the report's percentages are whole numbers.
    words = [len(prompt.prompt.split()) for prompt in human()]
    counts = Counter(name for prompt in human() for name in prompt.categories)
    assert (len(human()), len(auto()), len(read_taxonomy())) == (500, 728, 48)
    assert set(counts) == {category.name for category in read_taxonomy()}
    assert max(counts.values()) == 196  # 39.2 %
    assert sum(count <= 25 for count in counts.values()) == 28  # 58.3 % on <= 5 % of the prompts
    assert sum(n < 20 for n in words) == 174  # 34.8 %
    assert sum(n > 51 for n in words) == 173  # 34.6 %
    assert (min(words), max(words)) == (4, 121)


def test_the_image_set_has_100_images_with_the_four_prompts():
    kinds = Counter((prompt.image, prompt.prompt_type) for prompt in prompts_of_images())
    assert len(pictures()) == 100 == len({image.file for image in pictures()})
    assert set(kinds.values()) == {1} and len(kinds) == 400
    assert {image for image, _ in kinds} == {image.id for image in pictures()}
    for field in ("quality", "aspect", "resolution"):
        assert len({getattr(image, field) for image in pictures()}) >= 2
    assert all(re.fullmatch(r"[0-9a-f]{64}", image.sha256) for image in pictures())
    by_kind = {(p.image, p.prompt_type): p for p in prompts_of_images()}
    for (image, kind), prompt in by_kind.items():
        assert (prompt.prompt == "") == (kind == "empty")
        if kind == "detailed":
            assert prompt.words > by_kind[image, "concise"].words


@pytest.mark.parametrize("name", ["human", "auto", "both", "i2v"])
def test_prompts_are_different_and_well_formed(name):
    prompts = {
        "human": human(),
        "auto": auto(),
        "both": human() + auto(),
        "i2v": prompts_of_images(),
    }
    own = [p for p in prompts[name] if p.prompt]
    assert len({p.id for p in own}) == len(own)
    for prompt in own:
        assert prompt.prompt == " ".join(prompt.prompt.split()) and prompt.language == "en"
        assert prompt.words == len(prompt.prompt.split())
    if name == "i2v":  # the three prompts of an image speak of the same things
        own = [p for p in own if p.prompt_type == "detailed"]
    assert near_duplicates([p.prompt for p in own]) == []
    if name != "both":
        openings = Counter(" ".join(p.prompt.lower().split()[:3]) for p in own)
        assert max(openings.values()) <= 5, openings.most_common(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": "7"}, "words"),
        ({"categories": "action"}, "categories"),
        ({"seed": 3}, "seed"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_records_with_other_fields_are_refused(tmp_path, change, message):
    line = json.loads((INTERNAL_SUITE / "t2v_human.jsonl").read_text().splitlines()[0])
    (tmp_path / "t2v_human.jsonl").write_text(json.dumps(line | change) + "\n")
    with pytest.raises(UserError, match=message):
        read_text_set("t2v_human", tmp_path)
    assert read_records(INTERNAL_SUITE / "t2v_human.jsonl", TextPrompt)[0].id == line["id"]


def test_images_are_drawn_at_their_size_with_a_manifest(tmp_path):
    def draw(image):
        return Image.new("RGB", image.size(), (10, 20, int(image.id[-1])))

    listed = pictures()[:3]
    written = write_images(listed, draw, tmp_path, "720p")
    assert read_records(tmp_path / IMAGES_FILE, ReferenceImage) == written
    for image in written:
        with Image.open(tmp_path / image.file) as picture:
            assert picture.size == image.size() and min(picture.size) == 720
            assert pixel_digest(picture) == image.sha256 != ""
    assert scene_name(replace(listed[0], origin="sandbox:3:14")) == (3, 14)
    with pytest.raises(UserError, match="cannot be drawn"):
        scene_name(replace(listed[0], origin="my photograph"))
