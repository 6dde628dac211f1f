"""LoRA adapters on the linear layers of the DiT, through PEFT (report Table 9).

Targets are the layers the release adapts: self-attention qkv and proj, cross-attention q, kv and
proj, and the three FFN matrices of every block. Adapter weights are float32 whatever the base
dtype, and their initial values are named by (seed, layer), so two runs start bitwise equal.
Several named adapters can be stacked; with adapters off the base model is exact.
"""

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from longtake.core.lora_files import (
    LoraLayerWeights,
    LoraWeights,
    read_lora,
    write_peft,
    write_published,
)
from longtake.core.weights import listed
from longtake.runtime.errors import CheckpointError, UserError
from longtake.runtime.rng import generator

DEFAULT_ADAPTER = "default"
TARGETS = (
    "attn.qkv",
    "attn.proj",
    "cross_attn.q_linear",
    "cross_attn.kv_linear",
    "cross_attn.proj",
    "ffn.w1",
    "ffn.w2",
    "ffn.w3",
)
_TARGET_PATTERN = re.compile(
    r"blocks\.\d+\.(" + "|".join(re.escape(target) for target in TARGETS) + ")"
)


def add_lora(
    dit: nn.Module,
    rank: int,
    alpha: float,
    seed: int,
    name: str = DEFAULT_ADAPTER,
    targets: Sequence[str] = TARGETS,
) -> nn.Module:
    """Inject a trainable LoRA and freeze everything else; the model's function is unchanged.

    A is uniform in +-1/sqrt(in) (Kaiming with a = sqrt 5, as PEFT draws it), named by ``seed``, and
    B is zero; the update is multiplied by alpha / rank (the report: 64 / 128). The new adapter acts
    on top of those already active.
    """
    assert targets and set(targets) <= set(TARGETS) and rank >= 1 and alpha > 0
    modules = [m for m in target_modules(dit) if m.endswith(tuple(f".{t}" for t in targets))]
    inject_trainable(dit, modules, rank, alpha, seed, name)
    dit.requires_grad_(False)
    for parameter in lora_parameters(dit, name).values():
        parameter.requires_grad_(True)
    return dit


def inject_trainable(
    model: nn.Module,
    modules: Sequence[str],
    rank: int,
    alpha: float,
    seed: int,
    name: str = DEFAULT_ADAPTER,
    dropout: float = 0.0,
) -> None:
    """Add an adapter at its initial values to any linear layers; gradient flags stay as they are.

    The update is multiplied by ``alpha / rank``. A is uniform in +-1/sqrt(in), B is zero;
    ``dropout`` is the share of the inputs of A that are dropped in training mode.
    """
    layers = inject(model, dict.fromkeys(modules, rank), name, dropout)
    for module, layer in layers.items():
        down, up = _factors(layer, name)
        bound = 1 / math.sqrt(down.shape[1])
        # Named by the layer, so that other targets do not change this one's draw.
        draw = torch.rand(down.shape, generator=generator(seed, "lora", module))
        with torch.no_grad():
            down.copy_((2 * draw - 1) * bound)
            up.zero_()
        set_scaling(layer, name, alpha / rank)


def load_lora(
    dit: nn.Module, path: str | Path, name: str = DEFAULT_ADAPTER, multiplier: float = 1.0
) -> nn.Module:
    """Add the LoRA stored at ``path`` (published or PEFT layout) on top of the active adapters.

    ``multiplier`` is the strength of the adapter, on top of the scale in the file. It gets no
    gradients. A CheckpointError lists all layers that do not exist or fit.
    """
    weights, linears = read_lora(path), target_modules(dit)
    problems = []
    for module, layer in weights.items():
        shape = (layer.up.shape[0], layer.down.shape[1])
        if module not in linears:
            problems.append(f"{module} is not a target")
        elif shape != tuple(linears[module].weight.shape):
            expected = tuple(linears[module].weight.shape)
            problems.append(f"{module} is {shape}, the model has {expected}")
    if problems or not weights:
        raise CheckpointError(
            "the LoRA does not fit this model",
            received=f"{path}: {listed(problems)}",
            expected=f"layers among blocks.*.({', '.join(TARGETS)}) with the model's shapes",
            remedy="use a LoRA that was trained on this model",
        )
    layers = inject(dit, {module: layer.rank for module, layer in weights.items()}, name)
    for module, layer in layers.items():
        down, up = _factors(layer, name)
        with torch.no_grad():
            down.copy_(weights[module].down)
            up.copy_(weights[module].up)
        set_scaling(layer, name, weights[module].scaling * multiplier)
    for parameter in lora_parameters(dit, name).values():
        parameter.requires_grad_(False)
    return dit


@contextmanager
def adapters_off(dit: nn.Module) -> Iterator[None]:
    """Within the block the model is bitwise the base model; gradient flags are not touched."""
    # PEFT's own switch also toggles requires_grad of the factors, which would break a graph that
    # is still waiting for its backward pass; the flag its forward reads is enough.
    layers = list(lora_layers(dit).values())
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, state in zip(layers, before, strict=True):
            layer._disable_adapters = state


def lora_layers(dit: nn.Module) -> dict[str, LoraLayer]:
    """Injected layers by module path."""
    return {name: module for name, module in dit.named_modules() if isinstance(module, LoraLayer)}


def adapter_names(dit: nn.Module) -> list[str]:
    """Names of all injected adapters, in the order they were added."""
    return list(dict.fromkeys(n for layer in lora_layers(dit).values() for n in layer.lora_A))


def active_adapters(dit: nn.Module) -> list[str]:
    """Names of the adapters that act in a forward pass."""
    active = {name for layer in lora_layers(dit).values() for name in layer.active_adapters}
    return [name for name in adapter_names(dit) if name in active]


def lora_parameters(dit: nn.Module, name: str = DEFAULT_ADAPTER) -> dict[str, nn.Parameter]:
    """Factors of an adapter, keyed ``<module>.lora_A.weight`` and ``<module>.lora_B.weight``."""
    parameters: dict[str, nn.Parameter] = {}
    for module, layer in lora_layers(dit).items():
        if name in layer.lora_A:
            down, up = _factors(layer, name)
            parameters[f"{module}.lora_A.weight"] = down
            parameters[f"{module}.lora_B.weight"] = up
    return parameters


def lora_state_dict(dit: nn.Module, name: str = DEFAULT_ADAPTER) -> dict[str, Tensor]:
    """Copies of the factors on the CPU, keyed as :func:`lora_parameters`."""
    return {
        key: value.detach().to("cpu", copy=True)
        for key, value in lora_parameters(dit, name).items()
    }


def load_lora_state_dict(
    dit: nn.Module, state: Mapping[str, Tensor], name: str = DEFAULT_ADAPTER
) -> None:
    """Overwrite the factors of an injected adapter (resume)."""
    parameters = lora_parameters(dit, name)
    wrong = sorted(parameters.keys() ^ state.keys()) or sorted(
        key for key in parameters if parameters[key].shape != state[key].shape
    )
    if wrong:
        raise CheckpointError(
            "the saved LoRA does not fit the injected one",
            received=", ".join(wrong[:8]),
            expected=f"the {len(parameters)} factors of adapter {name!r}",
            remedy="resume with the rank and targets of the saved run",
        )
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(state[key])


def lora_weights(dit: nn.Module, name: str = DEFAULT_ADAPTER) -> LoraWeights:
    """An adapter in the neutral form of :mod:`longtake.core.lora_files`, on the CPU."""
    _require(dit, [name])
    weights: LoraWeights = {}
    for module, layer in lora_layers(dit).items():
        if name in layer.lora_A:
            down, up = (f.detach().to("cpu", torch.float32) for f in _factors(layer, name))
            weights[module] = LoraLayerWeights(down, up, float(layer.scaling[name]))
    return weights


def save_lora(
    dit: nn.Module, path: str | Path, layout: str = "peft", name: str = DEFAULT_ADAPTER
) -> Path:
    """Write an adapter: ``peft`` as a folder, ``longcat`` (the published layout) as one file."""
    writers = {"peft": write_peft, "longcat": write_published}
    return writers[layout](lora_weights(dit, name), path)


def target_modules(dit: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers a LoRA may adapt, by module path, whether adapted already or not."""
    linears: dict[str, nn.Linear] = {}
    for path, module in dit.named_modules():
        if _TARGET_PATTERN.fullmatch(path):
            linear = module.base_layer if isinstance(module, LoraLayer) else module
            assert isinstance(linear, nn.Linear)
            linears[path] = linear
    return linears


def inject(
    model: nn.Module, ranks: Mapping[str, int], name: str = DEFAULT_ADAPTER, dropout: float = 0.0
) -> dict[str, LoraLayer]:
    """Create and activate PEFT layers of the given ranks, float32, on the base layer's device.

    ``model`` need not be a DiT; ``ranks`` maps paths of layers to ranks. Values and scale of the
    returned layers are unset: fill them with :func:`inject_trainable`, :func:`apply_lora` or a
    state dict and :func:`set_scaling`.
    """
    if name in adapter_names(model):
        raise UserError(
            "a LoRA adapter of this name is loaded already",
            received=name,
            expected=f"a name other than {', '.join(adapter_names(model))}",
            remedy="pass another name to stack adapters",
        )
    active = active_adapters(model)
    flags = {
        key.replace(".base_layer.", "."): parameter.requires_grad
        for key, parameter in model.named_parameters()
    }
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=1,
        rank_pattern=dict(ranks),
        lora_dropout=dropout,
        target_modules="|".join(re.escape(module) for module in ranks),
        bias="none",
    )
    # PEFT draws initial values from the global generator; they are all overwritten by the callers.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(config, model, adapter_name=name)
    layers = {m: layer for m, layer in lora_layers(model).items() if name in layer.lora_A}
    assert set(layers) == set(ranks), "PEFT adapted other layers than asked"
    # In bfloat16 a step of 1e-4 would be lost on weights above 0.03.
    for layer in layers.values():
        layer.lora_A[name].float()
        layer.lora_B[name].float()
    _activate_only(model, [*active, name])  # injection deactivates and freezes other adapters
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(flags.get(key.replace(".base_layer.", "."), False))
    return layers


def set_scaling(layer: LoraLayer, name: str, scaling: float) -> None:
    """Multiply the update B A of an adapter by ``scaling`` (alpha / rank in PEFT's terms)."""
    layer.scaling[name] = scaling
    layer.lora_alpha[name] = scaling * layer.r[name]


def _require(dit: nn.Module, names: Sequence[str]) -> None:
    known = adapter_names(dit)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UserError(
            "no such LoRA adapter",
            received=", ".join(unknown),
            expected=f"among {', '.join(known) or 'none (no adapter is loaded)'}",
        )


def _factors(layer: LoraLayer, name: str) -> tuple[nn.Parameter, nn.Parameter]:
    """(A [R, in], B [out, R]) of one adapter of one layer."""
    return layer.lora_A[name].weight, layer.lora_B[name].weight


def _activate_only(dit: nn.Module, names: Sequence[str]) -> None:
    for layer in lora_layers(dit).values():
        layer._active_adapter = list(dict.fromkeys(names))
