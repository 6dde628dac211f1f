"""Caption pretraining: a tiny reward's or judge's backbone learns to say what it sees.

The published heads start from Qwen2-VL, which can describe a clip. From pairs of clips alone a tiny
backbone finds shapes, motions and defects slowly, as a label is one bit. Captions of rendered,
partly damaged scenes name all of them, and renders cost nothing. The text is a caption of the
sandbox, half of the time with wrong facts, followed by what is wrong in it and by the damage and
its strength from 1 to 4 ("...; wrong colour; noise 3"). It stands where the reward's prompt holds
the caption; the loss is the cross-entropy of the next token. A head that reads its score before the
caption gets the damage first ("noise 3; ..."); an image reward, which will also be asked with the
fixed prompt of ``hpsv3_general``, gets that one half of the time ("...; noise 3").
"""

import dataclasses
import random
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from longtake.core.video import to_uint8
from longtake.rewards.directory import RewardDirectory, write_reward_directory
from longtake.rewards.frames import to_grayscale
from longtake.rewards.hpsv3 import GENERAL_PROMPT
from longtake.rewards.model_inputs import (
    PromptEncoder,
    PromptTemplate,
    clip_inputs,
    collate_clips,
    shown_frames,
)
from longtake.rewards.pixels import normalize_patches
from longtake.rewards.qwen2vl.model import Qwen2VLRewardModel
from longtake.rewards.spec import RewardKind, RewardSpec
from longtake.runtime.config import Config
from longtake.runtime.device import pick_device
from longtake.runtime.files import write_jsonl
from longtake.runtime.progress import progress_bar
from longtake.runtime.rng import derive_key, generator
from longtake.sandbox.captions import SPLIT_ATTRIBUTES, caption, parse_caption
from longtake.sandbox.corruptions import (
    CORRUPTIONS,
    SATURATION_RANGE,
    apply_damage,
    draw_damage,
    scale_saturation,
)
from longtake.sandbox.facts import (
    BACKGROUNDS,
    COLOURS,
    FPS,
    MOTIONS,
    SHAPES,
    SIZES,
    SPEEDS,
    SPRITE_ATTRIBUTES,
    Facts,
    split_of,
)
from longtake.sandbox.recipes.tiny_vlm import TinySize, write_tiny_base
from longtake.sandbox.render import render
from longtake.sandbox.scene import LANE_MOTIONS, Scene, Sprite, sample_scenes
from longtake.training.flow_matching import finite, learning_rate

# What a caption can state, and misstate.
ATTRIBUTES = (*SPRITE_ATTRIBUTES, "background")
# Strengths that a text tells apart.
GRADES = 4
DAMAGED_SHARE = 0.6
# Share of the other clips whose first frame stands still.
STATIC_SHARE = 0.25
# Share of captions with one to three wrong facts.
MISSTATED_SHARE = 0.5
# Share of an image reward's texts with the fixed prompt in the place of a caption.
GENERAL_SHARE = 0.5
# Share of clips with another saturation, which no text mentions.
SATURATED_SHARE = 0.5
# Share of the clips that a motion reward's backbone sees in the gray of its own inputs.
GRAY_SHARE = 0.5
WARMUP_UPDATES = 50
LOG_EVERY = 50


class CaptionConfig(Config):
    """How the backbone is pretrained."""

    updates: NonNegativeInt = 2500
    """AdamW steps; 0 starts the heads from random weights."""
    batch_clips: PositiveInt = 64
    """Clips per update, each rendered once."""
    learning_rate: PositiveFloat = 1.5e-3
    """Peak, after a warm-up of 50 updates; cosine to 0."""


def verdict_texts() -> list[str]:
    """All that may follow a caption, for the tokenizer to learn."""
    names = [name.replace("_", " ") for name in CORRUPTIONS]
    damage = [f"{name} {n + 1}" for name in names for n in range(GRADES)]
    return ["fits", *(f"wrong {name}" for name in ATTRIBUTES), "clean", "static", *damage]


def misstated(scene: Scene, seed: int, changes: int = 1) -> Scene:
    """A scene to caption in place of ``scene``: up to ``changes`` of its attributes are others.

    Attributes are drawn with replacement; one that cannot change stays. Only the facts of the
    result are meant to be used. It stays in the train split when ``scene`` is in it.
    """
    draws = random.Random(derive_key(seed, "misstated"))
    for _ in range(changes):
        attribute = draws.choice(ATTRIBUTES)
        if attribute == "background":
            others = [name for name in BACKGROUNDS if name != scene.background]
            scene = dataclasses.replace(scene, background=draws.choice(others))
            continue
        slot = draws.randrange(len(scene.sprites))
        sprites = list(scene.sprites)
        sprites[slot] = _other(scene, sprites[slot], attribute, draws)
        changed = dataclasses.replace(scene, sprites=tuple(sprites))
        if _is_train(changed) >= _is_train(scene):
            scene = changed
    return scene


def wrong_facts(truth: Facts, text: str) -> list[str]:
    """Attributes that a caption states and that are not so, in the order of :data:`ATTRIBUTES`.

    ``truth`` holds all facts of the clip, sprites in the caption's order.
    """
    told = parse_caption(text)
    wrong = {
        name
        for stated, true in zip(told.sprites, truth.sprites, strict=True)
        for name, value in stated.stated().items()
        if getattr(true, name) != value
    }
    if told.background not in (None, truth.background):
        wrong.add("background")
    return [name for name in ATTRIBUTES if name in wrong]


def _other(scene: Scene, sprite: Sprite, attribute: str, draws: random.Random) -> Sprite:
    """The sprite with another value of an attribute; a still one has no speed to change."""
    pair = len(scene.sprites) > 1
    taken = [other.colour for other in scene.sprites]
    options: dict[str, Sequence[str]] = {
        "colour": [name for name in COLOURS if name not in taken],
        "shape": [name for name in SHAPES if name != sprite.shape],
        "size": [name for name in SIZES if name != sprite.size],
        "motion": [m for m in (LANE_MOTIONS if pair else MOTIONS) if m != sprite.motion],
        "speed": [] if sprite.speed is None else [s for s in SPEEDS if s != sprite.speed],
    }
    if not options[attribute]:
        return sprite
    value = draws.choice(options[attribute])
    if attribute != "motion":
        change: dict[str, Any] = {attribute: value}
        return dataclasses.replace(sprite, **change)
    speed = None if value == "still" else sprite.speed or draws.choice(list(SPEEDS))
    return dataclasses.replace(sprite, motion=value, speed=speed)


def _is_train(scene: Scene) -> bool:
    """Whether every sprite's combination belongs to the train split."""
    return all(split_of(s.shape, s.colour, s.motion) == "train" for s in scene.sprites)


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionText:
    """What is said about a clip."""

    caption: str
    """Of its scene, perhaps misstated."""
    verdict: str
    """What is wrong in the caption, or "fits"."""
    condition: str
    """"clean", "static", or a damage and its grade."""


def captioned_clips(count: int, seed: int, batch: int) -> tuple[Tensor, list[CaptionText]]:
    """Clips uint8 [count, T, 3, H, W] and texts of a batch; only scenes of the train split."""
    scenes = sample_scenes(derive_key(seed, "captioned scenes"), batch * count, count, "train")
    video = render(scenes, dtype=torch.float32)
    rng = generator(seed, "captioned damage", batch)
    # The order of draws names the clips of a batch: what is added comes after.
    names, strengths = draw_damage(count, rng, DAMAGED_SHARE)
    video = apply_damage(video, names, strengths, rng)
    texts: list[CaptionText] = []
    for row, (scene, draw) in enumerate(
        zip(scenes, torch.rand(count, 4, generator=rng).tolist(), strict=True)
    ):
        truth = scene.facts()
        strength = float(strengths[row])
        if strength > 0:
            name = names[row].replace("_", " ")
            condition = f"{name} {min(GRADES, 1 + int(GRADES * strength))}"
        elif draw[0] < STATIC_SHARE:
            video[row] = video[row, :1].clone()
            condition = "static"
            stopped = [dataclasses.replace(s, motion="still", speed=None) for s in truth.sprites]
            truth = dataclasses.replace(truth, sprites=tuple(stopped))
        else:
            condition = "clean"
        if draw[1] < SATURATED_SHARE:
            low, high = SATURATION_RANGE
            video[row] = scale_saturation(video[row], low + (high - low) * draw[2])
        key = derive_key(seed, "captioned text", batch, row)
        if draw[3] < MISSTATED_SHARE:
            scene = misstated(scene, key, 1 + int(3 * draw[3] / MISSTATED_SHARE))
        text = caption(scene, key, states=SPLIT_ATTRIBUTES)
        wrong = "; ".join(f"wrong {name}" for name in wrong_facts(truth, text))
        texts.append(CaptionText(caption=text, verdict=wrong or "fits", condition=condition))
    return to_uint8(video), texts


class CaptionBatches(Dataset[dict[str, Tensor]]):
    """Batch u as arguments of the reward model (``collate_clips``); named by seed and u alone.

    A head of motion alone (``is_motion``) reads its score before the caption and from gray clips:
    its texts name the damage first, and half of its clips are gray. An image reward gets one random
    frame of each clip.
    """

    def __init__(
        self,
        spec: RewardSpec,
        encoder: PromptEncoder,
        config: CaptionConfig,
        seed: int,
        is_motion: bool = False,
    ) -> None:
        self.spec, self.encoder, self.config = spec, encoder, config
        self.seed, self.is_motion = seed, is_motion

    def __len__(self) -> int:
        return self.config.updates

    def __getitem__(self, batch: int) -> dict[str, Tensor]:
        count = self.config.batch_clips
        video, texts = captioned_clips(count, self.seed, batch)
        draws = torch.rand(count, 3, generator=generator(self.seed, "captioned view", batch))
        clips = []
        for frames, text, (gray, when, general) in zip(video, texts, draws.tolist(), strict=True):
            if self.spec.sampler is None:
                frames = frames[[int(when * len(frames))]]
            else:
                frames = frames[self.spec.sampler.indices(len(frames), FPS)]
            if self.is_motion and gray < GRAY_SHARE:
                frames = to_grayscale(frames, "bt601")
            shown, words = shown_frames(frames, self.spec), self._words(text, general)
            clips.append(clip_inputs(shown, words, self.encoder, key=None, stop_at=None))
        return collate_clips(clips)

    def _words(self, text: CaptionText, general: float) -> str:
        if self.spec.kind == "hpsv3" and general < GENERAL_SHARE:
            return f"{GENERAL_PROMPT}; {text.condition}"
        facts = f"{text.caption}; {text.verdict}"
        return f"{text.condition}; {facts}" if self.is_motion else f"{facts}; {text.condition}"


def caption_loss(model: Qwen2VLRewardModel, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy, nats per token, of what follows the image or video.

    The output matrix is the embedding, over the square root of the width (unit gain). ``batch``
    holds the arguments of the model's forward pass, patches normalised.
    """
    ids = batch["input_ids"].to(model.device)
    mask = batch["attention_mask"].to(model.device, torch.bool)
    states = model.hidden_states(**batch)
    seen = (ids == model.config.backbone.vision_end_token_id).cumsum(1) > 0
    is_text = (seen & mask)[:, 1:] & seen[:, :-1]  # not the end of the vision tokens itself
    logits = F.linear(states[:, :-1][is_text], model.embedding.weight) / states.shape[-1] ** 0.5
    return F.cross_entropy(logits.float(), ids[:, 1:][is_text])


def captioned_base(
    folder: Path,
    kind: RewardKind,
    captions: Iterable[str],
    size: TinySize,
    config: CaptionConfig,
    *,
    seed: int,
    template: PromptTemplate | None = None,
    is_motion: bool = False,
    device: str = "auto",
    loaders: int = 0,
) -> Path:
    """The reward directory ``folder/base`` of a small backbone that can caption; made if missing.

    Its tokenizer learns the words of ``captions``. Without updates the weights stay random. The
    prompt is by default that of the tiny reward of the kind; ``is_motion`` as
    :class:`CaptionBatches`. The losses go to ``folder/captions.jsonl``.
    """
    base, random = folder / "base", folder / "random"
    if base.is_dir():
        return base
    shutil.rmtree(random, ignore_errors=True)  # of an interrupted run
    texts = [*captions, *verdict_texts(), GENERAL_PROMPT]
    if not config.updates:
        return write_tiny_base(base, kind, texts, size, seed, template=template).path
    start = write_tiny_base(random, kind, texts, size, seed, template=template)
    data = CaptionBatches(start.spec, start.encoder(), config, seed, is_motion)
    pretrain_on_captions(start, data, base, device, loaders)
    shutil.rmtree(random)
    return base


def pretrain_on_captions(
    source: RewardDirectory, data: CaptionBatches, target: Path, device: str, loaders: int = 0
) -> RewardDirectory:
    """Train the backbone of ``source`` on captions and write it to the new directory ``target``.

    The loss of every 50 updates goes to ``captions.jsonl`` beside it. Nothing is kept of an
    interrupted run: it takes minutes.
    """
    config = data.config
    model = source.load_model().float().to(pick_device(device)).train()
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.98)
    )
    losses: list[Tensor] = []
    records: list[dict[str, float]] = []
    batches = DataLoader(data, batch_size=None, num_workers=loaders)
    with progress_bar(f"captions {target.parent.name}", config.updates) as bar:
        for update, batch in enumerate(batches, start=1):
            optimizer.param_groups[0]["lr"] = learning_rate(
                config.learning_rate, update - 1, config.updates, WARMUP_UPDATES
            )
            batch = {name: value.to(model.device) for name, value in batch.items()}
            batch["pixel_values"] = normalize_patches(batch["pixel_values"], source.spec.pixels)
            loss = caption_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            finite(norm, "gradient of caption pretraining", update)
            optimizer.step()
            losses.append(loss.detach())
            if len(losses) == LOG_EVERY or update == config.updates:
                records.append({"update": update, "loss": float(torch.stack(losses).mean())})
                losses.clear()
                bar.update(update, loss=records[-1]["loss"])
    write_jsonl(target.parent / "captions.jsonl", records)
    provenance = {"updates": config.updates, "seed": data.seed, "loss": records[-1]["loss"]}
    return write_reward_directory(
        target,
        source.spec,
        source.encoder().template,
        source.tokenizer(),
        model.state_dict(),
        provenance={"captions": provenance},
    )
