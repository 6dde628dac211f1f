"""A reward directory: everything that fixes the scores of one learned reward, in one folder.

    reward.json   what the reward is, and size and sha256 of every other file
    template.txt  the user text of its prompt
    tokenizer/    with the reward tokens
    model.safetensors, or shards with model.safetensors.index.json

A directory is written beside its place and renamed, so it is whole or not there. Reading it checks
every file: small ones by digest, weights by size. A trained reward can be written in the layout of
the public loaders as well.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from longtake.core.weights import check_keys, check_shape, read_json, write_shards
from longtake.rewards.model_inputs import (
    PromptEncoder,
    PromptTemplate,
    check_tokenizer,
    load_tokenizer,
)
from longtake.rewards.qwen2vl.layers import HEAD_PREFIX
from longtake.rewards.qwen2vl.model import Qwen2VLRewardModel
from longtake.rewards.qwen2vl.weights import (
    WEIGHTS_STEM,
    empty_reward_model,
    load_reward_model,
    merge_lora,
    public_layout,
)
from longtake.rewards.spec import DIMENSIONS, Normalization, RewardSpec
from longtake.runtime.errors import CheckpointError
from longtake.runtime.files import TEMPORARY, digest

SPEC_FILE, TEMPLATE_FILE, TOKENIZER_FOLDER = "reward.json", "template.txt", "tokenizer"
TOKENIZER_FILE = f"{TOKENIZER_FOLDER}/tokenizer.json"
# Version of ``reward.json``; raised when an older reader would misunderstand it.
FORMAT = 1
# Largest weight file, and with it the memory that writing needs.
SHARD_BYTES = 2 * 2**30
PUBLIC_WEIGHTS = {"hpsv3": "HPSv3.safetensors", "videoreward": "model.pth"}
"""File name of the public layout."""
INFERENCE_CONFIG = "inference_config.json"


@dataclass(frozen=True, kw_only=True)
class RewardDirectory:
    """A directory that was read and checked; its weights are loaded on demand."""

    path: Path
    spec: RewardSpec
    recorded: Mapping[str, Any]
    """The spec as ``reward.json`` has it: parsed, it gets the defaults of the installed
    transformers."""
    template: PromptTemplate
    digests: Mapping[str, str]
    """sha256 of every file, by relative path."""
    provenance: Mapping[str, Any]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, checked against the model."""
        tokenizer = load_tokenizer(self.path / TOKENIZER_FOLDER)
        check_tokenizer(tokenizer, self.spec.model, self.spec.reward_tokens)
        return tokenizer

    def encoder(self) -> PromptEncoder:
        """Captions to token ids."""
        return PromptEncoder(self.template, self.tokenizer(), self.spec.vision)

    def load_model(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Qwen2VLRewardModel:
        """The model in evaluation mode; ``dtype`` is the backbone's, the head is float32."""
        return load_reward_model(self.spec.model, self.path, device, dtype)

    def fingerprint(self) -> dict[str, object]:
        """What fixes the scores: the spec, and digests of template, tokenizer and weights."""
        return {
            **self.recorded,
            "template_sha256": self.digests[TEMPLATE_FILE],
            # Not its tokenizer_config.json, which notes how it was last loaded.
            "tokenizer_sha256": self.digests[TOKENIZER_FILE],
            "weights_sha256": [sha for name, sha in self.digests.items() if _is_weight(name)],
        }


def read_reward_directory(path: str | Path) -> RewardDirectory:
    """Read and check a reward directory; the weights stay on the disk."""
    root = Path(path)
    record: dict[str, Any] = read_json(root / SPEC_FILE)
    files: Any = record.pop("files", None)
    provenance = record.pop("provenance", {})
    try:
        if (version := record.pop("format", None)) != FORMAT:
            raise ValueError(f"format {version!r} is not {FORMAT}")
        listed = {*files} if isinstance(files, Mapping) else set()
        if {TEMPLATE_FILE, TOKENIZER_FILE} - listed or not any(map(_is_weight, listed)):
            raise ValueError("it does not list template, tokenizer and weights")
        if problems := [p for name, entry in files.items() if (p := _problem(root, name, entry))]:
            raise ValueError("; ".join(problems))  # all of them: one copy mends them
        digests = {name: str(entry["sha256"]) for name, entry in files.items()}
        spec = RewardSpec(**record)
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"the reward directory cannot be used: {error}",
            received=str(root),
            expected=f"{SPEC_FILE} as `rewards import` writes it, and the files that it lists",
            remedy="copy the directory again, update longtake, or import the reward again",
        ) from error
    text = (root / TEMPLATE_FILE).read_bytes().decode("utf-8")
    return RewardDirectory(
        path=root,
        spec=spec,
        recorded=record,
        template=PromptTemplate(text=text, reward_tokens=spec.reward_tokens),
        digests=digests,
        provenance=provenance if isinstance(provenance, Mapping) else {},
    )


def write_reward_directory(
    path: str | Path,
    spec: RewardSpec,
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerFast,
    weights: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    *,
    provenance: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> RewardDirectory:
    """Write a reward directory to a new or empty place; after an error nothing is left behind.

    ``weights`` are a state dict of the model or (name, tensor) pairs, which are written as they
    come: a 7B model never needs to be in memory.
    """
    target = Path(path)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise CheckpointError(
            "the place of the reward directory is taken",
            received=str(target),
            expected="a new path or an empty directory",
            remedy="remove it, or choose another path",
        )
    assert template.reward_tokens == spec.reward_tokens
    # Before the weights are written: a tokenizer that does not fit must not cost minutes.
    check_tokenizer(tokenizer, spec.model, spec.reward_tokens)
    temporary = target.absolute().with_name(f"{TEMPORARY}{target.name}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        (temporary / TEMPLATE_FILE).write_bytes(template.text.encode("utf-8"))
        tokenizer.save_pretrained(temporary / TOKENIZER_FOLDER)
        pairs = weights.items() if isinstance(weights, Mapping) else weights
        write_shards(_fitting(pairs, spec, target), temporary, WEIGHTS_STEM, shard_bytes)
        record = {
            "format": FORMAT,
            **spec.model_dump(mode="json"),
            "provenance": dict(provenance or {}),
            "files": _file_records(temporary),
        }
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
        (temporary / SPEC_FILE).write_text(text, encoding="utf-8")
        temporary.replace(target)  # the only step that anybody can see
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the reward directory cannot be written: {error}",
            received=str(target),
            remedy="check the free space and the permissions; nothing was left behind",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return read_reward_directory(target)


def write_in_bfloat16(source: RewardDirectory, path: str | Path) -> RewardDirectory:
    """Copy a reward with its backbone in bfloat16 (half the size), as GPUs load it anyway."""
    return write_reward_directory(
        path,
        source.spec,
        source.template,
        source.tokenizer(),
        source.load_model(dtype=torch.bfloat16).state_dict(),
        provenance=source.provenance,
    )


def export_reward(
    model: Qwen2VLRewardModel,
    path: Path,
    source: RewardDirectory,
    spec: RewardSpec,
    dtype: torch.dtype,
    provenance: Mapping[str, Any],
) -> RewardDirectory:
    """Write a trained reward with the prompt and tokenizer of ``source`` and merged weights."""
    model.join_reward_rows()
    spec = spec.replace(model=model.config.replace(lora_rank=0))
    weights = _merged(model, dtype)
    return write_reward_directory(
        path, spec, source.template, source.tokenizer(), weights, provenance=provenance
    )


def export_public(
    model: Qwen2VLRewardModel, path: Path, spec: RewardSpec, dtype: torch.dtype
) -> Path:
    """Write the weights as the public loaders read them; the path of the file.

    For VideoAlign that is ``model.pth`` with PEFT's keys (LoRA factors beside their base weights)
    or, after full training, with the plain old ones, and its ``inference_config``; for HPSv3
    ``HPSv3.safetensors`` with the old keys and merged weights.
    """
    model.join_reward_rows()
    path.mkdir(parents=True, exist_ok=True)
    target = path / PUBLIC_WEIGHTS[spec.kind]
    # HPSv3's loader knows no adapters, VideoAlign's expects them unmerged.
    if spec.kind == "hpsv3":
        save_file(public_layout(_merged(model, dtype), "legacy"), target, {"format": "pt"})
        return target
    layout: Literal["peft", "legacy"] = "peft" if model.config.lora_rank else "legacy"
    torch.save(public_layout(_stored(model.state_dict(), dtype), layout), target)
    # Its loader wants all three dimensions: one that was not trained keeps its raw scores.
    scales = {name: Normalization(mean=0.0, std=1.0) for name in DIMENSIONS} | spec.normalization
    config = {f"{name}_{k}": v for name, scale in scales.items() for k, v in dict(scale).items()}
    text = json.dumps(config, indent=2) + "\n"
    (path / INFERENCE_CONFIG).write_text(text, encoding="utf-8")
    return target


def _merged(model: Qwen2VLRewardModel, dtype: torch.dtype) -> dict[str, Tensor]:
    config, state = model.config, model.state_dict()
    if config.lora_rank:
        state = merge_lora(state, config.lora_alpha / config.lora_rank)
    return _stored(state, dtype)


def _stored(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    # The head keeps float32: scores of a group would tie in bfloat16.
    return {
        name: tensor.detach().to("cpu", torch.float32 if name.startswith(HEAD_PREFIX) else dtype)
        for name, tensor in state.items()
    }


def _fitting(
    pairs: Iterable[tuple[str, Tensor]], spec: RewardSpec, target: Path
) -> Iterator[tuple[str, Tensor]]:
    """The pairs, after a check that they are the tensors of the model."""
    expected = empty_reward_model(spec.model).state_dict()
    seen: set[str] = set()
    for name, tensor in pairs:
        if name not in expected:
            check_keys([*expected, name], expected, target)
        check_shape(name, tensor, expected[name].shape, target)
        seen.add(name)
        yield name, tensor
    check_keys(seen, expected, target)


def _file_records(root: Path) -> dict[str, dict[str, object]]:
    return {
        file.relative_to(root).as_posix(): {"bytes": file.stat().st_size, "sha256": digest(file)}
        for file in sorted(root.rglob("*"))
        if file.is_file()
    }


def _is_weight(name: str) -> bool:
    return name.endswith(".safetensors")


def _problem(root: Path, name: str, entry: Mapping[str, object]) -> str | None:
    """What is wrong with a file of the directory. Weights are not read: that takes minutes."""
    # The list comes with the download, and must not name other files of the machine.
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{name} leaves the directory")
    file = root / name
    if not file.is_file():
        return f"{name} is missing"
    if file.stat().st_size != entry["bytes"]:
        return f"{name} has {file.stat().st_size} bytes, not {entry['bytes']}"
    if not _is_weight(name) and digest(file) != entry["sha256"]:
        return f"{name} was changed (sha256)"
    return None
