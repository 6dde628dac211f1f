"""HPSv3 on one device: both rewards from one shared pass, against one pass for each reward.

    python bench/bench_hpsv3.py --output bench/results/hpsv3.json    one GPU, 7B, bf16
    python bench/bench_hpsv3.py --tiny                               CPU, seconds, a small model

Weights are random with the published sizes, made on the device: the time does not depend on their
values, and scores can be compared all the same. Tokenizer and template are synthetic, with the
published token counts: 520 before the caption (about; the instruction), 14 after it up to the
reward token. The two ways are measured in turn, through the public rewards and with their
hashing and resizing, each time by scorers that have kept nothing.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import PreTrainedTokenizerFast

from longtake.bench.timing import new_record, parser, positive, read_options, take_turns
from longtake.rewards.contract import VideoBatch
from longtake.rewards.frames import clip_score
from longtake.rewards.hpsv3 import (
    BEST_FRACTION,
    GENERAL,
    GENERAL_PROMPT,
    PERCENTILE,
    HPSv3Scorer,
)
from longtake.rewards.model_inputs import (
    TURN_END,
    TURN_START,
    VISION_END,
    VISION_PADS,
    VISION_START,
    PromptEncoder,
    PromptTemplate,
    check_tokenizer,
)
from longtake.rewards.pixels import HPSV3_PIXELS, num_tokens, patch_grid
from longtake.rewards.qwen2vl.config import RewardModelConfig, hpsv3_config
from longtake.rewards.qwen2vl.layers import HEAD_PREFIX
from longtake.rewards.qwen2vl.model import Qwen2VLRewardModel
from longtake.rewards.qwen2vl.weights import empty_reward_model
from longtake.runtime.files import write_json
from longtake.runtime.rng import generator
from longtake.tests.tiny_reward import TINY_PIXELS, VECTOR_DEVIATION, tiny_config

COLUMNS = (GENERAL, PERCENTILE)
WAYS: dict[str, tuple[tuple[str, ...], ...]] = {
    "shared": (COLUMNS,),
    "independent": tuple((column,) for column in COLUMNS),
}
"""Way -> the columns of each of its scorers."""
INSTRUCTION_TOKENS, CAPTION_TOKENS, CLOSING_TOKENS = 520, 80, 14
REWARD_TOKEN = "<|Reward|>"
_UNUSED = [f"<|unused_{i}|>" for i in range(8)]
ADDED_TOKENS = [_UNUSED[0], TURN_START, TURN_END, *_UNUSED[1:7], VISION_START, VISION_END]
ADDED_TOKENS += [_UNUSED[7], VISION_PADS["image"], VISION_PADS["video"], REWARD_TOKEN]
"""The last ids of the published vocabulary; those that no prompt holds have other names here."""
TINY_WORDS = 200


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options from the command line."""
    own = parser(__doc__)
    own.add_argument("--clips", type=positive, default=1)
    own.add_argument("--frames", type=positive, help="of a clip; default 93, tiny 6")
    own.add_argument("--size", type=positive, nargs=2, help="height and width; default 480 832")
    own.add_argument("--tolerance", type=float, default=1e-3, help="relative, of clip scores")
    return read_options(
        own,
        arguments,
        full={"frames": 93, "size": (480, 832), "repeats": 5},
        tiny={"frames": 6, "size": (60, 104), "repeats": 5},
    )


def model_config(tiny: bool) -> RewardModelConfig:
    """The published HPSv3, or a tiny model with the same order of special tokens."""
    if not tiny:
        return hpsv3_config()
    ids = {token: TINY_WORDS + i for i, token in enumerate(ADDED_TOKENS)}
    return tiny_config(
        "ranknet",
        vocab_size=TINY_WORDS + len(ADDED_TOKENS),
        image_token_id=ids[VISION_PADS["image"]],
        video_token_id=ids[VISION_PADS["video"]],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        reward_token_ids=[ids[REWARD_TOKEN]],
    )


def random_model(
    config: RewardModelConfig, device: torch.device, dtype: torch.dtype, seed: int
) -> Qwen2VLRewardModel:
    """A model whose weights are drawn on the device: backbone in ``dtype``, head in float32."""
    model = empty_reward_model(config)
    draw = torch.Generator(device).manual_seed(seed)
    state = {}
    for name, empty in model.state_dict().items():
        precision = torch.float32 if name.startswith(HEAD_PREFIX) else dtype
        weight = torch.empty(empty.shape, dtype=precision, device=device).normal_(generator=draw)
        if weight.ndim > 1:
            weight.mul_(weight[0].numel() ** -0.5)  # products keep the size of what they take
        else:
            weight.mul_(VECTOR_DEVIATION).add_(float(name.endswith("weight")))
        state[name] = weight
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def synthetic_encoder(config: RewardModelConfig) -> PromptEncoder:
    """Prompts with the published number of tokens; every word is one."""
    num_words = config.backbone.text_config.vocab_size - len(ADDED_TOKENS)
    words = {f"w{i}": i for i in range(num_words)}
    inner = Tokenizer(models.WordLevel(vocab=words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    tokenizer.add_tokens(ADDED_TOKENS, special_tokens=True)
    check_tokenizer(tokenizer, config, (REWARD_TOKEN,))
    before, after = text(INSTRUCTION_TOKENS, "instruction"), text(CLOSING_TOKENS - 1, "closing")
    template = f"{before} {{text_prompt}} {after} {REWARD_TOKEN}"
    return PromptEncoder(
        PromptTemplate(text=template, reward_tokens=(REWARD_TOKEN,)), tokenizer, "image"
    )


def text(num_words: int, name: str) -> str:
    """That many words, always the same ones for a name."""
    draw = torch.randint(TINY_WORDS, (num_words,), generator=generator(0, "bench_hpsv3", name))
    return " ".join(f"w{i}" for i in draw.tolist())


def random_clips(options: argparse.Namespace) -> VideoBatch:
    """Clips of coarse colour noise, every frame another one, with a caption each."""
    height, width = options.size
    shape = (options.clips * options.frames, 3, max(1, height // 60), max(1, width // 60))
    coarse = torch.rand(shape, generator=generator(options.seed, "bench_hpsv3", "clips"))
    fine = interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    video = (fine.clamp(0, 1) * 255).to(torch.uint8)
    return VideoBatch(
        video=video.unflatten(0, (options.clips, options.frames)).to(options.device),
        prompts=[text(CAPTION_TOKENS, f"caption {clip}") for clip in range(options.clips)],
        fps=15.0,
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The record of the benchmark; JSON types."""
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = model_config(options.tiny)
    model = random_model(config, device, dtype, options.seed)
    encoder = synthetic_encoder(config)
    pixels = TINY_PIXELS["hpsv3"] if options.tiny else HPSV3_PIXELS
    batch = random_clips(options)
    outputs: dict[str, dict[str, Tensor]] = {way: {} for way in WAYS}

    def score(way: str) -> None:
        for columns in WAYS[way]:
            scorer = HPSv3Scorer(model, encoder, pixels, columns)
            outputs[way] |= {column: mu[..., 0] for column, mu in scorer.score(batch).items()}

    ways = take_turns({way: functools.partial(score, way) for way in WAYS}, options.repeats, device)
    for times in ways.values():
        times["frames_per_s"] = options.clips * options.frames / times["median_s"]
    vision_tokens = num_tokens(patch_grid(1, *options.size, pixels))
    record = new_record(
        "hpsv3",
        options,
        dtype=str(dtype).removeprefix("torch."),
        parameters=sum(p.numel() for p in model.parameters()),
        prompt_tokens={
            "vision": vision_tokens,
            GENERAL: len(encoder.encode(GENERAL_PROMPT, vision_tokens)),
            PERCENTILE: len(encoder.encode(batch.prompts[0], vision_tokens)),
        },
    )
    return record | {
        "ways": ways,
        "speedup": ways["independent"]["median_s"] / ways["shared"]["median_s"],
        "scores": {
            column: compare(column, outputs["shared"][column], outputs["independent"][column])
            for column in COLUMNS
        },
    }


def compare(column: str, shared: Tensor, independent: Tensor) -> dict[str, Any]:
    """Clip scores of both ways, their largest relative difference, and the same of the frames.

    Frames are compared with the spread of their scores, which tells whether the scores vary.
    """
    best = BEST_FRACTION if column == PERCENTILE else 1.0
    ours, alone = clip_score(shared, best), clip_score(independent, best)
    values: dict[str, Tensor] = {
        "shared": ours,
        "independent": alone,
        "relative_difference": ((ours - alone) / alone).abs().max(),
        "frame_spread": independent.std(correction=0),
        "frame_difference": (shared - independent).abs().max(),
    }
    return {name: value.tolist() for name, value in values.items()}


def main(arguments: Sequence[str]) -> int:
    """Run, print a summary, write the record; 1 if the two ways give different scores."""
    options = parse(arguments)
    record = measure(options)
    if options.output is not None:
        write_json(options.output, record)
    console = Console(highlight=False)
    for way, fields in record["ways"].items():
        peak = "" if fields["peak_gib"] is None else f", peak {fields['peak_gib']:.1f} GiB"
        console.print(
            f"{way:12} {fields['median_s']:.3f} s, {fields['frames_per_s']:.1f} frames/s{peak}"
        )
    worst = max(fields["relative_difference"] for fields in record["scores"].values())
    equal = worst <= options.tolerance
    console.print(f"speed-up     {record['speedup']:.2f}")
    console.print(f"scores       {'equal' if equal else 'DIFFERENT'}, relative {worst:.2g}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
