"""Caption pretraining of tiny reward backbones: its texts, its loss, its data and its result."""

import json
import math

import pytest
import torch
from torch.utils.data import DataLoader

from longtake.rewards.directory import read_reward_directory
from longtake.rewards.hpsv3 import GENERAL_PROMPT
from longtake.rewards.pixels import normalize_patches
from longtake.runtime.errors import DivergenceError
from longtake.sandbox.captions import caption, parse_caption
from longtake.sandbox.facts import split_of
from longtake.sandbox.recipes import captions
from longtake.sandbox.recipes.captions import (
    ATTRIBUTES,
    CaptionBatches,
    CaptionConfig,
    caption_loss,
    captioned_clips,
    misstated,
    pretrain_on_captions,
    verdict_texts,
    wrong_facts,
)
from longtake.sandbox.recipes.tiny_vlm import TinySize, write_tiny_base
from longtake.sandbox.scene import sample_scene

SIZE = TinySize(width=32, layers=1, heads=2, vision_width=32, vision_layers=1, side=56)
CONFIG = CaptionConfig(updates=3, batch_clips=4)


@pytest.fixture(scope="module", params=["videoreward", "hpsv3"])
def base(request, tmp_path_factory):
    said = captioned_clips(40, 5, 0)[1]
    texts = [*(text.caption for text in said), *verdict_texts(), GENERAL_PROMPT]
    return write_tiny_base(tmp_path_factory.mktemp("base") / "b", request.param, texts, SIZE, 0)


def batch_of(base, number=0, **settings):
    data = CaptionBatches(base.spec, base.encoder(), CONFIG, 3, **settings)
    batch = data[number]
    batch["pixel_values"] = normalize_patches(batch["pixel_values"], base.spec.pixels)
    return batch


def test_texts_name_scene_faults_and_damage_of_the_train_split():
    video, said = captioned_clips(80, 1, 0)
    assert video.shape == (80, 17, 3, 64, 64) and video.dtype == torch.uint8
    verdicts = {part for text in said for part in (*text.verdict.split("; "), text.condition)}
    assert verdicts <= set(verdict_texts()) and len(verdicts) > 12
    right = sum(text.verdict == "fits" for text in said)
    assert 25 <= right <= 65  # some changes concern what the caption leaves out
    for text in said:
        facts = parse_caption(text.caption)
        assert all(split_of(s.shape, s.colour, s.motion) == "train" for s in facts.sprites)
    still = [bool((clip == clip[:1]).all()) for clip in video]
    stopped = [text.condition == "static" for text in said]
    assert any(stopped)
    assert all(is_still for is_still, stop in zip(still, stopped, strict=True) if stop)
    grades = {int(t.condition[-1]) for t in said if t.condition not in ("clean", "static")}
    assert grades == {1, 2, 3, 4}


def test_loss_is_the_mean_surprise_of_the_text(base):
    model, batch = base.load_model().float(), batch_of(base)
    total, count = 0.0, 0
    end = base.spec.model.backbone.vision_end_token_id
    for row in range(4):  # one row at a time, no padding, token by token
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        per_clip = batch["pixel_values"].chunk(4)[row]
        one = model.hidden_states(
            ids[None], torch.ones_like(ids)[None], per_clip, batch["grid_thw"][row : row + 1]
        )[0]
        for place in range(ids.tolist().index(end), len(ids) - 1):
            scores = (model.embedding.weight @ one[place]) / math.sqrt(SIZE.width)
            total -= (scores[ids[place + 1]] - scores.logsumexp(0)).item()
            count += 1
    assert caption_loss(model, batch).item() == pytest.approx(total / count, rel=1e-4)


def test_batches_depend_on_seed_and_number_alone(base):
    data = CaptionBatches(base.spec, base.encoder(), CONFIG, 3)
    by_loaders = list(DataLoader(data, batch_size=None, num_workers=2))
    assert len(by_loaders) == 3
    for number in (2, 0):
        for name, value in data[number].items():
            assert torch.equal(value, by_loaders[number][name])
    other = CaptionBatches(base.spec, base.encoder(), CONFIG, 4)[0]
    assert not torch.equal(other["pixel_values"], data[0]["pixel_values"])


def texts_of(base, **settings):
    config = CaptionConfig(updates=1, batch_clips=60)
    batch = CaptionBatches(base.spec, base.encoder(), config, 3, **settings)[0]
    tokenizer = base.tokenizer()
    return [tokenizer.decode(row) for row in batch["input_ids"]], captioned_clips(60, 3, 0)[1]


@pytest.mark.parametrize("is_motion", [False, True])
def test_the_damage_is_named_where_the_head_reads_it(base, is_motion):
    texts, said = texts_of(base, is_motion=is_motion)
    general = 0
    for text, clip in zip(texts, said, strict=True):
        if GENERAL_PROMPT in text:
            general += 1
            assert f"{GENERAL_PROMPT}; {clip.condition}" in text and clip.caption not in text
            continue
        facts = f"{clip.caption}; {clip.verdict}"
        whole = f"{clip.condition}; {facts}" if is_motion else f"{facts}; {clip.condition}"
        assert whole in text
    assert 18 <= general <= 42 if base.spec.kind == "hpsv3" else general == 0


@pytest.mark.parametrize(("share", "gray"), [(0.0, 0), (1.0, 4)])
def test_the_gray_share_is_gray(base, share, gray, monkeypatch):
    monkeypatch.setattr(captions, "GRAY_SHARE", share)
    data = CaptionBatches(base.spec, base.encoder(), CONFIG, 3, is_motion=True)
    channels = data[0]["pixel_values"].unflatten(1, (3, -1)).chunk(4)
    assert sum(bool((clip == clip[:, :1]).all()) for clip in channels) == gray


def test_pretraining_learns_and_writes_a_base(base, tmp_path):
    config = CaptionConfig(updates=40, batch_clips=4, learning_rate=2e-2)
    target = tmp_path / "head" / "base"
    data = CaptionBatches(base.spec, base.encoder(), config, 0)
    result = pretrain_on_captions(base, data, target, "cpu")
    again = read_reward_directory(target)
    assert again.spec == base.spec and again.encoder().template == base.encoder().template
    start, trained = base.load_model().float(), result.load_model().float()
    with torch.no_grad():
        before, after = (caption_loss(m, batch_of(base)).item() for m in (start, trained))
    assert after < 0.8 * before
    last = [json.loads(row) for row in (tmp_path / "head" / "captions.jsonl").open()][-1]
    assert last["update"] == 40 and last["loss"] == result.provenance["captions"]["loss"]


def test_divergence_is_an_error_and_leaves_no_base(base, tmp_path):
    config = CaptionConfig(updates=60, batch_clips=2, learning_rate=1e30)
    data = CaptionBatches(base.spec, base.encoder(), config, 0)
    with pytest.raises(DivergenceError, match="gradient of caption pretraining is nan"):
        pretrain_on_captions(base, data, tmp_path / "base", "cpu")
    assert not (tmp_path / "base").exists()


def facts_that_differ(a, b):
    """By the fields of the facts, without any caption."""
    found = {
        name
        for one, two in zip(a.sprites, b.sprites, strict=True)
        for name in ("colour", "shape", "size", "motion", "speed")
        if getattr(one, name) != getattr(two, name)
    }
    return found | ({"background"} if a.background != b.background else set())


@pytest.mark.parametrize("changes", [1, 3])
def test_what_changed_and_is_said_is_found_wrong(changes):
    seen = set()
    for index in range(150):
        scene = sample_scene(4, index, "train")
        other = misstated(scene, index, changes)
        differ = facts_that_differ(scene.facts(), other.facts())
        # Another motion can bring or take a speed with it; nothing else moves by itself.
        assert len(differ - {"speed"}) <= changes
        assert all(split_of(s.shape, s.colour, s.motion) == "train" for s in other.sprites)
        assert len({s.colour for s in other.sprites}) == len(other.sprites)
        text = caption(other, index)
        wrong = wrong_facts(scene.facts(), text)
        assert set(wrong) <= differ and wrong == sorted(wrong, key=ATTRIBUTES.index)
        full = caption(other, index, states=("colour", "shape", "motion"))
        stated = {"colour", "shape", "motion"}
        assert stated & set(wrong_facts(scene.facts(), full)) == stated & differ
        seen |= differ
    assert seen == set(ATTRIBUTES)
