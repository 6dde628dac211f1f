"""Building a reward directory from the published files of HPSv3 or VideoReward.

Needed are the weights, the user's copy of the public source (for the prompt template) and the
tokenizer of Qwen2-VL. Everything is checked by name and shape before anything large is read; the
weights then pass through memory one shard at a time.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import longtake
from longtake.core.weights import check_keys, read_json
from longtake.rewards.pixels import HPSV3_PIXELS
from longtake.rewards.published_layout import (
    CONFIG_FILE,
    VideoRewardConfig,
    find_step,
    open_hpsv3,
    open_videoreward,
    read_videoreward_config,
)
from longtake.rewards.published_weights import StoredTensor
from longtake.rewards.qwen2vl.config import (
    HeadKind,
    RewardModelConfig,
    RotaryPrecision,
    backbone_config,
    hpsv3_config,
    videoreward_config,
)
from longtake.rewards.qwen2vl.layers import infer_head
from longtake.rewards.qwen2vl.weights import EMBEDDING, LM_HEAD, empty_reward_model, merge_lora
from longtake.rewards.reward_directory import RewardDirectory, write_reward_directory
from longtake.rewards.reward_spec import ColorMode, RewardKind, RewardSpec
from longtake.rewards.reward_tokenizer import add_reward_tokens, check_tokenizer, load_tokenizer
from longtake.rewards.template_source import (
    HPSV3_TEMPLATE,
    VIDEOALIGN_TEMPLATE,
    TemplateDigest,
    read_template,
)
from longtake.runtime.errors import CheckpointError, UserError
from longtake.runtime.progress import progress_bar

TEMPLATES: dict[RewardKind, TemplateDigest] = {
    "hpsv3": HPSV3_TEMPLATE,
    "videoreward": VIDEOALIGN_TEMPLATE,
}
_LORA_DOWN, _LORA_UP = ".lora_A.default.weight", ".lora_B.default.weight"


def import_reward(
    kind: RewardKind,
    weights: str | Path,
    source: str | Path,
    tokenizer: str | Path,
    out: str | Path,
    *,
    step: int | None = None,
    base: str | Path | None = None,
    merge: bool = True,
    color_mode: ColorMode = "rgb",
    backbone: str | Path | None = None,
    rotary: RotaryPrecision = "bf16",
    template: TemplateDigest | None = None,
) -> RewardDirectory:
    """Build the reward directory ``out``.

    Args:
        kind: ``hpsv3`` or ``videoreward``.
        weights: HPSv3: the file (or a folder with it). VideoReward: the folder with
            ``model_config.json`` and ``checkpoint-<step>/``.
        source: wheel, checkout or ``.py`` file of the public code.
        tokenizer: directory of the Qwen2-VL tokenizer; reward tokens that it lacks are added.
        out: new or empty directory.
        step: VideoReward checkpoint; None is the largest.
        base: VideoReward whose LoRA is stored apart: folder of the Qwen2-VL base model.
        merge: fold a LoRA into the weights (in float32, rounded once). False keeps the factors,
            for parity with the public model, whose bfloat16 scores differ at the 1e-2 level.
        color_mode: what the weights were trained on; the published ones are ``rgb``.
        backbone: ``config.json`` of a backbone of another size than the published one.
        rotary: precision of the rotary tables; the published weights need ``bf16``.
        template: digest of another template than the published one.

    Raises:
        UserError: an unknown kind or an option that does not belong to it, or a source without the
            template.
        CheckpointError: files that are missing, cut or do not fit. Nothing is left at ``out``.
    """
    if kind not in TEMPLATES:
        raise UserError(
            "kind of reward is unknown", received=kind, expected=", ".join(sorted(TEMPLATES))
        )
    if kind == "hpsv3" and (step is not None or base is not None):
        raise UserError(
            "HPSv3 is one file", received=f"step={step}, base={base}", expected="neither of them"
        )
    prompt = read_template(source, template or TEMPLATES[kind])
    words = load_tokenizer(tokenizer)
    added = add_reward_tokens(words, prompt.reward_tokens)
    public: VideoRewardConfig | None = None
    if kind == "hpsv3":
        place = Path(weights)
        tensors = open_hpsv3(place)
    else:
        place = find_step(Path(weights), step)
        public = read_videoreward_config(place.parent / CONFIG_FILE)
        tensors = open_videoreward(place, None if base is None else Path(base))
    stored = _model_config(kind, tensors, backbone, rotary, public, place)
    _check_tensors(tensors, stored, place)
    check_tokenizer(words, stored, prompt.reward_tokens)
    spec = RewardSpec(
        kind=kind,
        model=dataclasses.replace(stored, lora_rank=0) if merge else stored,
        reward_tokens=prompt.reward_tokens,
        pixels=HPSV3_PIXELS if public is None else public.pixels,
        sampler=None if public is None else public.sampler,
        color_mode=color_mode,
        normalization={} if public is None else public.normalization,
    )
    tensors.pop(LM_HEAD, None)
    total = sum(1 for name in tensors if not merge or ".lora_" not in name)
    scaling = stored.lora_alpha / stored.lora_rank if stored.lora_rank and merge else None
    return write_reward_directory(
        out,
        spec,
        prompt,
        words,
        _shown(_read(tensors, scaling), f"import {kind}", total),
        provenance={
            "longtake": longtake.__version__,
            "weights": sorted({str(tensor.source.name) for tensor in tensors.values()}),
            "checkpoint": place.name,
            "source": Path(source).name,
            "reward_tokens_added": added,
            "lora_merged": scaling is not None,
        },
        progress=True,
    )


def _model_config(
    kind: RewardKind,
    tensors: Mapping[str, StoredTensor],
    backbone: str | Path | None,
    rotary: RotaryPrecision,
    public: VideoRewardConfig | None,
    place: Path,
) -> RewardModelConfig:
    """Configuration of the model as it is stored, with its LoRA when there is one."""
    head = infer_head({name: tensor.shape for name, tensor in tensors.items()})
    if (head == "ranknet") != (kind == "hpsv3"):
        raise CheckpointError(
            "the weights are of another reward",
            received=f"a {head} head in {place}",
            expected="ranknet for hpsv3, a linear head for videoreward",
            remedy="import them as the other kind",
        )
    _check_head(head, public, place)
    fields: dict[str, Any] = {"rotary": rotary}
    ranks = {int(t.shape[0]) for name, t in tensors.items() if name.endswith(_LORA_DOWN)}
    if ranks:
        fields["lora_rank"], fields["lora_alpha"] = _lora(ranks, public, place)
    published = hpsv3_config() if kind == "hpsv3" else videoreward_config(head)
    if backbone is not None:
        sizes = backbone_config(read_json(Path(backbone)))
        if EMBEDDING in tensors:  # training fits the vocabulary to the tokenizer
            sizes.text_config.vocab_size = int(tensors[EMBEDDING].shape[0])
        rows = sizes.text_config.vocab_size
        # The reward tokens are appended, so theirs are the last rows.
        fields["backbone"] = sizes
        fields["reward_token_ids"] = range(rows - len(published.reward_token_ids), rows)
    return dataclasses.replace(published, **fields)


def _lora(ranks: set[int], public: VideoRewardConfig | None, place: Path) -> tuple[int, float]:
    alpha = None if public is None else public.lora_alpha
    if len(ranks) != 1 or alpha is None:
        raise CheckpointError(
            "the scale of the LoRA is not clear",
            received=f"ranks {sorted(ranks)}, lora_alpha {alpha} for {place}",
            expected=f"one rank, and lora_alpha in {CONFIG_FILE}",
            remedy="copy the checkpoint again from its source",
        )
    return next(iter(ranks)), alpha


def _check_head(head: HeadKind, public: VideoRewardConfig | None, place: Path) -> None:
    rows = {"shared_linear": 1, "diagonal_linear": 3}.get(head)
    if public is not None and public.output_dim not in (None, rows):
        raise CheckpointError(
            "the head does not fit its configuration",
            received=f"{rows} rows in {place}",
            expected=f"output_dim {public.output_dim}, as {CONFIG_FILE} says",
            remedy="copy weights and configuration from one source",
        )


def _check_tensors(
    tensors: Mapping[str, StoredTensor], config: RewardModelConfig, place: Path
) -> None:
    """Names and shapes against the model; ``lm_head`` may be there and is checked and dropped."""
    expected = empty_reward_model(config).state_dict()
    check_keys(tensors.keys() - {LM_HEAD}, expected, place)
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    shapes[LM_HEAD] = shapes[EMBEDDING]
    wrong = [
        f"{name} {tuple(tensor.shape)}, not {tuple(shapes[name])}"
        for name, tensor in tensors.items()
        if tensor.shape != shapes[name]
    ]
    if wrong:
        raise CheckpointError(
            "the weights do not fit the model",
            received=f"{place}: {len(wrong)} wrong shapes: " + "; ".join(wrong[:4]),
            expected="the shapes of the published model, or of the given backbone",
            remedy="pass the config.json of this backbone, or the published weights",
        )


def _read(
    tensors: Mapping[str, StoredTensor], scaling: float | None
) -> Iterator[tuple[str, Tensor]]:
    """Read and convert tensor by tensor; with a ``scaling``, LoRA factors are merged."""
    for name, tensor in tensors.items():
        if scaling is None:
            yield name, tensor.load()
        elif name.endswith(".base_layer.weight"):
            layer = name.removesuffix(".base_layer.weight")
            parts = [name, f"{layer}{_LORA_DOWN}", f"{layer}{_LORA_UP}"]
            yield from merge_lora({part: tensors[part].load() for part in parts}, scaling).items()
        elif ".lora_" not in name:
            yield name.replace(".base_layer.", "."), tensor.load()


def _shown(
    pairs: Iterator[tuple[str, Tensor]], description: str, total: int
) -> Iterator[tuple[str, Tensor]]:
    """The pairs, with a progress bar while they are taken."""
    with progress_bar(description, total) as bar:
        for done, pair in enumerate(pairs, start=1):
            yield pair
            bar.update(done)
