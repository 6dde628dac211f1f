"""LoRA file layouts: the published one and PEFT's, read and written through one neutral form.

Neutral form, per linear layer: ``delta(x) = scaling * B (A x)`` with A [R, in] and B [out, R].

Published layout: one safetensors file, the dots of a module path spelt as a marker. A fused layer
(qkv, kv) of n parts keeps one ``lora_down`` of n stacked [r, in] blocks and n ``lora_up.blocks.i``
[out/n, r]; part i sees block i only. That is a neutral LoRA of rank R = n r whose B is
block-diagonal. The other way, any A is repeated n times and B cut into n row blocks.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from longtake.core.weights import listed, read_json, read_tensors
from longtake.runtime.errors import CheckpointError

PUBLISHED_PREFIX = "lora"
PUBLISHED_DOT = "___lorahyphen___"
PEFT_PREFIX = "base_model.model."
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

#: Parts of the fused linear layers; every other target has one.
NUM_PARTS = {"attn.qkv": 3, "cross_attn.kv_linear": 2}


@dataclasses.dataclass(frozen=True, slots=True)
class LoraLayerWeights:
    """One layer's LoRA in the neutral form."""

    down: Tensor
    """A, [R, in]."""
    up: Tensor
    """B, [out, R]."""
    scaling: float
    """Multiplies B A; alpha / rank in PEFT's terms."""

    @property
    def rank(self) -> int:
        """R, the rows of A."""
        return int(self.down.shape[0])


#: Module path -> weights, for example ``blocks.0.attn.qkv``.
LoraWeights = dict[str, LoraLayerWeights]


def num_parts(module: str) -> int:
    """Fused parts of the layer at ``module`` (3 for qkv, 2 for kv, else 1)."""
    return NUM_PARTS.get(".".join(module.split(".")[-2:]), 1)


def read_lora(path: str | Path) -> LoraWeights:
    """Read a published-layout file, a PEFT folder, or a PEFT weight file beside its config."""
    source = Path(path)
    if source.is_dir():
        return _from_peft(source / PEFT_WEIGHTS, source / PEFT_CONFIG)
    if not source.is_file():
        raise CheckpointError(
            "LoRA not found",
            received=str(source),
            expected=f"a .safetensors file in the published layout, or a folder with {PEFT_CONFIG}",
            remedy="check the path",
        )
    tensors = read_tensors(source)
    if any(key.startswith(PUBLISHED_PREFIX + PUBLISHED_DOT) for key in tensors):
        return from_published(tensors, source)
    if (source.parent / PEFT_CONFIG).is_file():
        return _from_peft(source, source.parent / PEFT_CONFIG)
    raise CheckpointError(
        "unknown LoRA layout",
        received=f"{source} with keys such as {next(iter(tensors), 'none')}",
        expected=f"keys that start with {PUBLISHED_PREFIX}{PUBLISHED_DOT}, or {PEFT_CONFIG} beside",
        remedy="convert the file to the published or the PEFT layout",
    )


def from_published(tensors: Mapping[str, Tensor], source: Path) -> LoraWeights:
    """Neutral form of the tensors of a published-layout file; incomplete layers raise."""
    layers: dict[str, dict[str, Tensor]] = {}
    problems = []
    for key, tensor in tensors.items():
        marked, _, field = key.partition(".")
        prefix, _, path = marked.partition(PUBLISHED_DOT)
        if prefix != PUBLISHED_PREFIX or not path:
            problems.append(f"unexpected key {key}")
            continue
        layers.setdefault(path.replace(PUBLISHED_DOT, "."), {})[field] = tensor
    weights: LoraWeights = {}
    for module, fields in layers.items():
        parts = _up_names(fields)
        missing = {"alpha_scale", "lora_down.weight", *parts} - set(fields)
        extra = set(fields) - {"alpha_scale", "lora_down.weight", *parts}
        problems += [f"{module}: missing {name}" for name in sorted(missing)]
        problems += [f"{module}: unexpected {name}" for name in sorted(extra)]
        if missing or extra:
            continue
        down, ups = fields["lora_down.weight"].float(), [fields[p].float() for p in parts]
        if down.shape[0] != sum(up.shape[1] for up in ups):
            problems.append(f"{module}: {down.shape[0]} down rows do not fit the up blocks")
            continue
        scaling = float(fields["alpha_scale"])
        weights[module] = LoraLayerWeights(down, _block_diagonal(ups), scaling)
    _raise_if(problems, source)
    return weights


def to_published(weights: LoraWeights) -> dict[str, Tensor]:
    """Tensors of the published layout; :func:`from_published` gives back the same function.

    A block-diagonal B is written compactly, so files of that layout survive a round trip as they
    are; any other B of a fused layer costs n copies of A.
    """
    tensors: dict[str, Tensor] = {}
    for module, layer in weights.items():
        key = PUBLISHED_DOT.join([PUBLISHED_PREFIX, *module.split(".")])
        parts = num_parts(module)
        down, ups = layer.down, [layer.up]
        if parts > 1:
            # Files of the release come back as they were; any B fits the layout at n copies of A.
            ups = _diagonal_blocks(layer.up, parts)
            if not ups:
                down, ups = down.repeat(parts, 1), list(layer.up.chunk(parts, dim=0))
        tensors[f"{key}.alpha_scale"] = torch.tensor(layer.scaling, dtype=torch.float32)
        tensors[f"{key}.lora_down.weight"] = down.contiguous()
        if parts == 1:
            tensors[f"{key}.lora_up.weight"] = ups[0].contiguous()
        for i, up in enumerate(ups if parts > 1 else []):
            tensors[f"{key}.lora_up.blocks.{i}.weight"] = up.contiguous()
    return tensors


def write_published(weights: LoraWeights, path: str | Path) -> Path:
    """Write one file in the published layout."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(to_published(weights), target, metadata={"kind": "dit_lora"})
    return target


def write_peft(weights: LoraWeights, folder: str | Path) -> Path:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT does."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    ranks = {module: layer.rank for module, layer in weights.items()}
    alphas = {module: layer.scaling * layer.rank for module, layer in weights.items()}
    rank = max(ranks.values(), default=1)
    alpha = max(alphas.values(), default=1.0)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _whole(alpha),
        "rank_pattern": {m: r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {m: _whole(a) for m, a in alphas.items() if a != alpha},
        "target_modules": sorted(weights),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
    }
    tensors = {}
    for module, layer in weights.items():
        tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"] = layer.down.contiguous()
        tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"] = layer.up.contiguous()
    save_file(tensors, target / PEFT_WEIGHTS, metadata={"format": "pt"})
    (target / PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return target


def _from_peft(weight_file: Path, config_file: Path) -> LoraWeights:
    settings = read_json(config_file)
    known = set(LoraConfig.__dataclass_fields__)
    try:
        config = LoraConfig(**{k: v for k, v in settings.items() if k in known})
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the PEFT config cannot be used: {error}",
            received=str(config_file),
            expected="a LoRA configuration of PEFT",
            remedy="save the adapter again with PEFT",
        ) from error
    if config.peft_type != "LORA" or config.use_dora or config.bias != "none" or config.lora_bias:
        raise CheckpointError(
            "this kind of PEFT adapter is not supported",
            received=f"peft_type={config.peft_type}, use_dora={config.use_dora}, "
            f"bias={config.bias}",
            expected="plain LoRA without DoRA or biases",
            remedy="merge it into the base weights, or retrain it as plain LoRA",
        )
    downs, ups, problems = {}, {}, []
    for key, tensor in read_tensors(weight_file).items():
        name = key.removeprefix(PEFT_PREFIX)
        if name.endswith(".lora_A.weight"):
            downs[name.removesuffix(".lora_A.weight")] = tensor.float()
        elif name.endswith(".lora_B.weight"):
            ups[name.removesuffix(".lora_B.weight")] = tensor.float()
        else:
            problems.append(f"unexpected key {key}")
    problems += [f"{m}: missing lora_B" for m in sorted(downs.keys() - ups.keys())]
    problems += [f"{m}: missing lora_A" for m in sorted(ups.keys() - downs.keys())]
    weights: LoraWeights = {}
    for module in downs.keys() & ups.keys():
        rank = downs[module].shape[0]
        stated = _pattern(config.rank_pattern, module, config.r)
        if rank != stated or ups[module].shape[1] != rank:
            problems.append(f"{module}: rank {rank} in the weights, {stated} in the config")
            continue
        alpha = _pattern(config.alpha_pattern, module, config.lora_alpha)
        # rsLoRA divides by the root of the rank; a factor of 11 at rank 128.
        scaling = alpha / (rank**0.5 if config.use_rslora else rank)
        weights[module] = LoraLayerWeights(downs[module], ups[module], scaling)
    _raise_if(problems, weight_file)
    return {module: weights[module] for module in downs if module in weights}


def _pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """PEFT's rule without its regular expressions: the whole path or a suffix of it."""
    for key, value in patterns.items():
        if module == key or module.endswith(f".{key}"):
            return value
    return default


def _up_names(fields: Mapping[str, Tensor]) -> list[str]:
    """Names of the up matrices in part order; gaps in the numbering show up as missing."""
    blocks = [n for n in fields if n.startswith("lora_up.blocks.") and n.endswith(".weight")]
    if not blocks:
        return ["lora_up.weight"]
    return [f"lora_up.blocks.{i}.weight" for i in range(len(blocks))]


def _block_diagonal(blocks: list[Tensor]) -> Tensor:
    matrix: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return matrix


def _diagonal_blocks(up: Tensor, parts: int) -> list[Tensor]:
    """The ``parts`` diagonal blocks of B, or an empty list when B is not block-diagonal."""
    out, rank = up.shape
    if rank % parts or out % parts:
        return []
    rows, columns = out // parts, rank // parts
    blocks = [up[i * rows : (i + 1) * rows, i * columns : (i + 1) * columns] for i in range(parts)]
    return blocks if torch.equal(_block_diagonal(blocks), up) else []


def _whole(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _raise_if(problems: list[str], source: Path) -> None:
    if problems:
        raise CheckpointError(
            "the LoRA file is incomplete or not a LoRA of this kind",
            received=f"{source}: {listed(problems)}",
            expected="down, up and scale for every layer, nothing else",
            remedy="copy the file again from its source",
        )
