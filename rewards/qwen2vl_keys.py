"""State-dict keys of Qwen2-VL reward models: the three layouts in use and the LoRA merge.

============ ============================================ ===============================
layout       language model, vision tower                 where
============ ============================================ ===============================
``current``  ``model.language_model.*``, ``model.visual`` our directories, transformers 5
``legacy``   ``model.*``, ``visual.*``                    HPSv3 (transformers 4.45)
``peft``     ``base_model.model.`` + legacy, with LoRA    VideoReward
============ ============================================ ===============================

The head is ``rm_head.*`` in all of them. ``lm_head.weight`` is in the published files and in no
score; it is dropped when loading and written only for the public loaders, which insist on it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from torch import Tensor

from longtake.core.lora_files import listed
from longtake.runtime.errors import CheckpointError, UserError

Layout = Literal["current", "legacy", "peft"]
PEFT_PREFIX = "base_model.model."
LM_HEAD = "lm_head.weight"
SPLIT_ROWS = "reward_rows"
"""Key of the reward-token embeddings while they are trained apart."""
EMBEDDING = "model.language_model.embed_tokens.weight"
_ADAPTER = "default"


def current_key(key: str) -> str:
    """The ``current`` name of a key of any layout; unknown and current keys come back unchanged.

    A LoRA factor without an adapter name (an adapter-only file) gets PEFT's ``default``.
    """
    key = key.removeprefix(PEFT_PREFIX)
    key = re.sub(r"\.(lora_[AB])\.weight$", rf".\1.{_ADAPTER}.weight", key)
    if key.startswith("visual."):
        return f"model.{key}"
    if key.startswith("model.") and not key.startswith(("model.visual.", "model.language_model.")):
        return f"model.language_model.{key.removeprefix('model.')}"
    return key


def current_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of any layout with current keys; applying it twice changes nothing.

    Raises:
        CheckpointError: two keys that would get the same name.
    """
    unique_current_keys(state)
    return {current_key(key): tensor for key, tensor in state.items()}


def unique_current_keys(keys: Iterable[str]) -> dict[str, str]:
    """Current key -> given key.

    Raises:
        CheckpointError: two keys that would get the same name.
    """
    names: dict[str, str] = {}
    clashes = []
    for key in keys:
        name = current_key(key)
        if name in names:
            clashes.append(f"{names[name]} and {key}")
        names[name] = key
    if clashes:
        raise CheckpointError(
            "the checkpoint mixes key layouts",
            received=f"{len(clashes)} doubled keys: {listed(clashes)}",
            expected="every tensor once, in one layout",
            remedy="leave out one of the two copies",
        )
    return names


def public_layout(
    state: Mapping[str, Tensor], layout: Literal["legacy", "peft"], lm_head: Tensor | None = None
) -> dict[str, Tensor]:
    """A current state dict with the keys of a public layout, for the public loaders.

    Args:
        state: current keys. ``legacy`` has no place for LoRA factors: merge them first.
        layout: ``legacy`` (HPSv3) or ``peft`` (VideoReward, with or without LoRA factors).
        lm_head: [vocabulary, D]. The public loaders want the key although no score depends on it;
            None writes the embedding matrix in its place.

    Raises:
        UserError: LoRA factors in the ``legacy`` layout, or split reward rows.
    """
    if SPLIT_ROWS in state:
        raise UserError(
            "the reward rows are not in the embedding matrix",
            received=SPLIT_ROWS,
            expected="the state dict of a model without split rows",
            remedy="call join_reward_rows before exporting",
        )
    if layout == "legacy" and lora_modules(state):
        raise UserError(
            "the legacy layout cannot hold an unmerged LoRA",
            received=f"LoRA factors such as {lora_modules(state)[0]}",
            expected="merged weights",
            remedy="merge first (merge_lora), or use the peft layout",
        )
    prefix = PEFT_PREFIX if layout == "peft" else ""
    full = {**state, LM_HEAD: state[EMBEDDING].clone() if lm_head is None else lm_head}
    return {
        prefix + re.sub(r"^model\.(visual|language_model)\.", _legacy_prefix, key): tensor
        for key, tensor in full.items()
    }


def lora_modules(keys: Iterable[str]) -> list[str]:
    """Paths of the layers for which a state dict holds LoRA factors, in order of appearance."""
    found = (re.split(r"\.lora_[AB]\.", key)[0] for key in keys if ".lora_" in key)
    return list(dict.fromkeys(found))


def merge_lora(state: Mapping[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """Fold LoRA factors into their base weights: W + scaling B A, in float32, rounded once.

    Args:
        state: any layout, with ``base_layer`` weights and the factors of one adapter.
        scaling: alpha / rank; the published VideoReward has 128 / 64.

    Returns:
        The state without LoRA factors and without ``base_layer`` in its keys, current layout. A
        state without a LoRA comes back as it is, in the current layout.

    Raises:
        CheckpointError: a factor without its partner or its base weight, or shapes that do not fit.
    """
    current = current_layout(state)
    problems: list[str] = []
    updates: dict[str, Tensor] = {}
    for module in lora_modules(current):
        names = [f"{module}.base_layer.weight"]
        names += [f"{module}.{factor}.{_ADAPTER}.weight" for factor in ("lora_A", "lora_B")]
        absent = [name for name in names if name not in current]
        if absent:
            problems += [f"{name} is missing" for name in absent]
            continue
        base, down, up = (current[name] for name in names)
        if up.shape[1] != down.shape[0] or (up.shape[0], down.shape[1]) != tuple(base.shape):
            shapes = " x ".join(str(tuple(t.shape)) for t in (up, down))
            problems.append(f"{module}: {shapes} does not fit {tuple(base.shape)}")
            continue
        update = up.float() @ down.float()
        updates[names[0]] = (base.float() + scaling * update).to(base.dtype)
    if problems:
        raise CheckpointError(
            "the LoRA cannot be merged",
            received=f"{len(problems)} problems: {listed(problems)}",
            expected="base_layer, lora_A and lora_B of every adapted layer",
            remedy="copy the checkpoint again from its source",
        )
    return {
        key.replace(".base_layer.", "."): updates.get(key, tensor)
        for key, tensor in current.items()
        if ".lora_" not in key
    }


def _legacy_prefix(match: re.Match[str]) -> str:
    return "visual." if match[1] == "visual" else "model."
