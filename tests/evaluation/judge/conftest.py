"""A small rated study whose truth is in plain sight: the brightness of a clip is its quality."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from longtake.core.video import write_mp4
from longtake.evaluation.judge.data import JUDGED
from longtake.evaluation.judge.prompt import judge_prompt
from longtake.evaluation.ratings import Rating, Sample, append_ratings, write_samples
from longtake.runtime.rng import normal
from longtake.sandbox.recipes.tiny_vlm import TinySize, byte_tokenizer, write_tiny_base

SIZE = TinySize(
    width=32, layers=1, heads=2, vision_width=32, vision_layers=1, side=28, frames_per_second=4.0
)


@dataclass(frozen=True)
class Study:
    folder: Path
    samples: Path
    ratings: Path
    base: Path


def make_study(folder: Path, num_prompts: int = 20, models: str = "ABC", seed: int = 0) -> Study:
    rng = np.random.default_rng(seed)
    samples, ratings = [], []
    for p in range(num_prompts):
        caption = f"a gray wall number {p} in room {p // 2}"
        for m, model in enumerate(models):
            name = f"s{p:03d}{model}"
            level = float(np.clip(0.2 + 0.2 * m + rng.normal(0, 0.15), 0.02, 0.98))
            clip = torch.full((4, 3, 28, 28), level)
            write_mp4(clip, folder / f"clips/{name}.mp4", fps=4, lossless=True)
            samples.append(
                Sample(
                    sample=name,
                    model=model,
                    prompt=f"p{p}",
                    caption=caption,
                    video=f"clips/{name}.mp4",
                )
            )
            for rater in range(3):
                for dimension in JUDGED:
                    score = np.clip(np.round(1 + 4 * level + rng.normal(0, 0.3)), 1, 5)
                    ratings.append(
                        Rating(
                            sample=name, dimension=dimension, rater=f"r{rater}", score=float(score)
                        )
                    )
    append_ratings(folder / "ratings.jsonl", ratings)
    write_samples(folder / "samples.csv", samples)
    base = write_tiny_base(
        folder / "base", "videoreward", [item.caption for item in samples], SIZE, seed
    )
    return Study(folder, folder / "samples.csv", folder / "ratings.jsonl", base.path)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"))


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}


def write_tiny_vlm(folder: Path, captions: list[str], family: str = "qwen2_vl") -> Path:
    """A checkpoint of a family with random weights of unit gain, as transformers writes it."""
    import transformers

    tokenizer = byte_tokenizer((), [judge_prompt(JUDGED), *captions], 768)
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    ids, name = tokenizer.get_added_vocab(), FAMILIES[family]
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [4, 2, 2],
        },
    }
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "patch_size": 14}
    vision |= {
        "qwen2_vl": {"embed_dim": 32},
        "qwen2_5_vl": {
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [0],
        },
        "qwen3_vl": {
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 64,
        },
    }[family]
    config = getattr(transformers, f"{name}Config")(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=False,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.ndim > 1:
                deviation = 0.5 if "embed" in key else value[0].numel() ** -0.5
                value.copy_(deviation * normal(value.shape, 0, "tiny vlm", key))
    model.save_pretrained(folder)
    size = {"shortest_edge": 28 * 28, "longest_edge": 64 * 28 * 28}
    kind = "Qwen3VL" if family == "qwen3_vl" else "Qwen2VL"
    processor = getattr(transformers, f"{name}Processor")(
        image_processor=transformers.Qwen2VLImageProcessor(size=size),
        video_processor=getattr(transformers, f"{kind}VideoProcessor")(size=size, patch_size=14),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=FAMILIES)
def each_vlm(request, tmp_path_factory) -> Path:
    return write_tiny_vlm(tmp_path_factory.mktemp("vlm") / request.param, [], request.param)


@pytest.fixture(scope="module")
def tiny_vlm(study, tmp_path_factory) -> Path:
    captions = [f"a gray wall number {p} in room {p // 2}" for p in range(20)]
    return write_tiny_vlm(tmp_path_factory.mktemp("vlm") / "base", captions)
