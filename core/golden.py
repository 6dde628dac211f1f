"""Comparison with golden files: recorded activations of the public implementations.

A golden file carries weights, inputs and outputs; its metadata names its ``kind``. Our code runs
on the same weights and inputs and every output is compared by its largest absolute error. Outputs
named ``wrong.*`` are negative controls: matching one fails the check. A file of kind ``bsa`` holds
several cases of block-sparse attention: queries, keys and values in plain order, the selected
blocks, the output and perhaps gradients, recorded in bfloat16.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtake.core import flow, guidance
from longtake.core.dit import DiTConfig, LongCatDiT
from longtake.core.guidance import encode_condition
from longtake.core.lora import load_lora
from longtake.core.text import clean_prompt
from longtake.core.weights import check_keys, read_json, read_metadata, read_tensors
from longtake.kernels.block_sparse import (
    BlockIndex,
    BlockLayout,
    attention_from_index,
    pool_blocks,
    select_from_pooled,
)
from longtake.runtime.errors import CheckpointError, UserError

#: Outputs of the DiT (measured: 1e-6).
DIT_TOLERANCE = 1e-5
SCHEDULE_TOLERANCE = 1e-6
SHIPPED = Path(__file__).resolve().parents[1] / "tests" / "data"
"""Golden files of a checkout."""
#: Of outputs, relative to the largest entry where that is above 1 (measured: 3.2e-3; one rounding
#: of the recorded bfloat16 alone is 3.9e-3 of an entry).
OUTPUT_TOLERANCE = 5e-3
#: The recorded backward pass rounds scaled keys to bfloat16 as well (measured: 5.9e-3).
GRADIENT_TOLERANCE = 1e-2
GRADIENTS = {"dq": "q", "dk": "k", "dv": "v"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GoldenResult:
    """Comparison of one recorded output."""

    name: str
    max_abs_error: float
    """Largest absolute difference; infinite when the shapes differ."""
    tolerance: float
    magnitude: float = float("nan")
    """Largest absolute recorded value, to read the error against."""
    is_control: bool = False
    """A negative control passes when the error is above the tolerance."""

    @property
    def passed(self) -> bool:
        """Whether the output is as it must be; NaN never passes."""
        if self.is_control:
            return self.max_abs_error > self.tolerance
        return self.max_abs_error <= self.tolerance


#: A check maps (path, tolerance or None for its own default) to results.
GoldenCheck = Callable[[Path, float | None], list[GoldenResult]]


def check_file(
    path: str | Path,
    tolerance: float | None = None,
    checks: Mapping[str, GoldenCheck] | None = None,
) -> list[GoldenResult]:
    """Run our implementation on a golden file: one result per recorded output.

    ``tolerance`` None takes the default of the kind; ``checks`` None are :data:`CHECKS`.
    """
    source, by_kind = Path(path), CHECKS if checks is None else checks
    if not source.is_file():
        raise UserError("golden file not found", received=str(source), remedy="check the path")
    kind = "schedules" if source.suffix == ".json" else read_metadata(source).get("kind", "")
    if kind not in by_kind:
        raise UserError(
            "this kind of golden file is not supported yet",
            received=f"kind {kind!r} in {source}",
            expected=", ".join(sorted(by_kind)),
        )
    return by_kind[kind](source, tolerance)


def compare(
    recorded: Mapping[str, Tensor], ours: Mapping[str, Tensor], tolerance: float
) -> list[GoldenResult]:
    """Results for every output in ``ours``, then for every ``wrong.*`` control in ``recorded``.

    A control is compared with each of our outputs of its shape and must match none.
    """
    results = [
        GoldenResult(
            name=name,
            max_abs_error=max_abs_error(value, recorded.get(name)),
            tolerance=tolerance,
            magnitude=float(recorded[name].abs().max()) if name in recorded else float("nan"),
        )
        for name, value in ours.items()
    ]
    for name, control in recorded.items():
        if name.startswith("wrong."):
            errors = [max_abs_error(value, control) for value in ours.values()]
            results.append(
                GoldenResult(
                    name=name,
                    max_abs_error=min(errors, default=float("inf")),
                    tolerance=tolerance,
                    is_control=True,
                )
            )
    return results


def max_abs_error(ours: Tensor, recorded: Tensor | None) -> float:
    """Largest absolute difference in float64; infinite for a missing or differently shaped one."""
    if recorded is None or ours.shape != recorded.shape:
        return float("inf")
    return float((ours.detach().double() - recorded.double()).abs().max())


def require_inputs(tensors: Mapping[str, Tensor], needed: Iterable[str], path: Path) -> None:
    """Raise a CheckpointError that names the inputs a golden file lacks."""
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise CheckpointError(
            "the golden file lacks inputs",
            received=str(path),
            expected=", ".join(missing),
            remedy="copy the file again from its source",
        )


def not_computed(names: Iterable[str], tolerance: float) -> list[GoldenResult]:
    """Failed results for recorded outputs that our code does not produce."""
    return [
        GoldenResult(name=name, max_abs_error=float("inf"), tolerance=tolerance)
        for name in sorted(names)
    ]


def metadata_json(metadata: Mapping[str, str], key: str, path: Path) -> dict[str, Any]:
    """The JSON object under ``key`` of a golden file's metadata; CheckpointError without one."""
    try:
        return dict(json.loads(metadata[key]))
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"the golden file has no usable {key} in its metadata",
            received=str(path),
            expected=f"{key} as JSON",
            remedy="copy the file again from its source",
        ) from error


def check_dit(path: Path, tolerance: float | None = None) -> list[GoldenResult]:
    """Kind ``dit``: forward, zero-pad mode, condition latents, cache, gradients and LoRA.

    Without ``tolerance``, outputs have to meet :data:`DIT_TOLERANCE`, gradients relative to their
    largest entry where that is above 1: sums over all tokens reach 64, where one float32 step is
    4e-6, and against a float64 run the recorded values are themselves off by 3.1e-5. A recorded
    output that cannot be computed counts as failed.
    """
    tensors, metadata = read_tensors(path), read_metadata(path)
    config = DiTConfig.from_dict(metadata_json(metadata, "config", path))
    num_cond = int(metadata.get("num_cond_latents", "0"))
    needed = ("in.hidden_states", "in.timestep", "in.encoder_hidden_states")
    require_inputs(tensors, (*needed, "in.encoder_attention_mask"), path)
    inputs = {name.removeprefix("in."): t for name, t in tensors.items() if name.startswith("in.")}
    weights = {
        name.removeprefix("weights."): tensor
        for name, tensor in tensors.items()
        if name.startswith("weights.")
    }
    dit = _build(config, weights, path)
    ours: dict[str, Tensor] = {}
    ours |= _forward_and_gradients(dit, inputs, tensors)
    padded = _build(dataclasses.replace(config, text_tokens_zero_pad=True), weights, path)
    with torch.no_grad():
        ours["zero_pad.out"] = padded(**inputs)
        ours |= _condition_outputs(dit, inputs, tensors, num_cond)
        ours |= _lora_output(dit, inputs, path)
    recorded = {
        name
        for name in tensors
        if not name.startswith(("in.", "weights.", "wrong.")) and name not in _EXTRA_INPUTS
    }
    ours = {name: value for name, value in ours.items() if name in recorded}
    gradients = {name: value for name, value in ours.items() if name.startswith("grad.")}
    activations = {name: value for name, value in ours.items() if name not in gradients}
    bound = DIT_TOLERANCE if tolerance is None else tolerance
    results = compare(tensors, activations, bound)
    for result in compare({n: t for n, t in tensors.items() if n in gradients}, gradients, bound):
        relative = bound
        if tolerance is None and result.name == "grad.t_embedder.mlp.0.weight":
            # Its factor is the cosine of angles up to the timestep in float32, off by one step of
            # the angle; CPUs differ by as much (against float64: 1.3e-5 here, 1.6e-5 recorded).
            relative += float(inputs["timestep"].abs().max()) * torch.finfo(torch.float32).eps
        allowed = relative * max(1.0, result.magnitude)
        results.append(dataclasses.replace(result, tolerance=allowed))
    return results + not_computed(recorded - ours.keys(), bound)


def check_dit_lora(path: Path, tolerance: float | None = None) -> list[GoldenResult]:
    """Kind ``dit_lora``: checked through the ``dit`` file beside it, whose ``lora.out`` uses it."""
    model = path.parent / path.name.replace("_lora", "")
    if model == path or not model.is_file():
        raise UserError(
            "a dit_lora file is checked on the model beside it",
            received=str(path),
            expected=str(model),
            remedy="copy the dit file into the same folder",
        )
    return [r for r in check_dit(model, tolerance) if r.name.startswith("lora.")]


def check_schedules(path: Path, tolerance: float | None = None) -> list[GoldenResult]:
    """``schedules.json``: sigma lists, refinement lists, CFG-Zero* and prompt cleaning."""
    bound = SCHEDULE_TOLERANCE if tolerance is None else tolerance
    content: dict[str, Any] = read_json(path)
    if not content.keys() & {"schedules", "refine", "cfg_zero", "prompt_clean"}:
        raise UserError(
            "this kind of golden file is not supported yet",
            received=f"{path} with keys {sorted(content)[:8]}",
            expected="the keys schedules, refine, cfg_zero or prompt_clean",
        )
    pairs: list[tuple[str, Tensor, Tensor]] = []
    for s in content.get("schedules", []):
        kind = "distilled" if s["distilled"] else "plain"
        name = f"schedules.{kind}.{s['steps']}.shift_{s['shift']:g}"
        ours = flow.sigmas(s["steps"], s["shift"], distilled=s["distilled"])
        base = flow.base_sigmas(s["steps"], distilled=s["distilled"])
        pairs.append((name, ours, torch.tensor(s["sigmas"], dtype=torch.float64)))
        pairs.append((f"{name}.base", base, torch.tensor(s["base_sigmas"], dtype=torch.float64)))
    for r in content.get("refine", []):
        ours = flow.refine_sigmas(r["t_thresh"], num_steps=r["steps"], shift=r["shift"])
        name = f"refine.{r['steps']}.t_{r['t_thresh']:g}.shift_{r['shift']:g}"
        pairs.append((name, ours, torch.tensor(r["sigmas"], dtype=torch.float64)))
    results = [
        GoldenResult(name=name, max_abs_error=max_abs_error(ours, golden), tolerance=bound)
        for name, ours, golden in pairs
    ]
    if "cfg_zero" in content:
        results += _check_guidance(content["cfg_zero"], bound)
    for i, (raw, cleaned) in enumerate(content.get("prompt_clean", [])):
        error = 0.0 if clean_prompt(raw) == cleaned else float("inf")
        results.append(GoldenResult(name=f"prompt_clean.{i}", max_abs_error=error, tolerance=bound))
    return results


_EXTRA_INPUTS = frozenset({"cond.timestep", "grad.cotangent"})


def _build(config: DiTConfig, weights: Mapping[str, Tensor], source: Path) -> LongCatDiT:
    with torch.device("meta"):
        dit = LongCatDiT(config)
    check_keys(weights, dit.state_dict(), source)
    dit.load_state_dict({k: v.clone() for k, v in weights.items()}, assign=True)
    return dit.eval()


def _forward_and_gradients(
    dit: LongCatDiT, inputs: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """``t2v.out`` and gradients of sum(t2v.out * cotangent) for the recorded parameters."""
    names = [
        n.removeprefix("grad.") for n in tensors if n.startswith("grad.") and n not in _EXTRA_INPUTS
    ]
    out = dit(**inputs)
    outputs = {"t2v.out": out.detach()}
    if names and "grad.cotangent" in tensors:
        parameters = dict(dit.named_parameters())
        grads = torch.autograd.grad(
            (out * tensors["grad.cotangent"]).sum(), [parameters[name] for name in names]
        )
        outputs |= {f"grad.{name}": grad for name, grad in zip(names, grads, strict=True)}
    return outputs


def _condition_outputs(
    dit: LongCatDiT, inputs: Mapping[str, Tensor], tensors: Mapping[str, Tensor], num_cond: int
) -> dict[str, Tensor]:
    """``cond.out``, the cache ``kv.{i}.k/v`` and ``kv.out``."""
    if not num_cond or "cond.timestep" not in tensors:
        return {}
    timestep = tensors["cond.timestep"]
    latents = inputs["hidden_states"]
    outputs = {"cond.out": dit(**{**inputs, "timestep": timestep}, num_cond_latents=num_cond)}
    condition = encode_condition(dit, latents[:, :, :num_cond])
    assert condition.key_values is not None
    for i, (k, v) in enumerate(condition.key_values):
        outputs[f"kv.{i}.k"], outputs[f"kv.{i}.v"] = k, v
    noisy = {
        **inputs,
        "hidden_states": latents[:, :, num_cond:],
        "timestep": timestep[:, num_cond:],
    }
    outputs["kv.out"] = dit(**noisy, num_cond_latents=num_cond, kv_cache=condition.key_values)
    return outputs


def _lora_output(dit: LongCatDiT, inputs: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """``lora.out``, when the LoRA lies beside the file; without it the output counts as failed."""
    beside = path.with_name(f"{path.stem}_lora{path.suffix}")
    if not beside.is_file():
        return {}
    load_lora(dit, beside)
    return {"lora.out": dit(**inputs)}


def _check_guidance(record: Mapping[str, Any], tolerance: float) -> list[GoldenResult]:
    cond, uncond = (torch.tensor(record[key]) for key in ("cond", "uncond"))
    ours = {
        "cfg_zero.scale": guidance.cfg_zero_scale(cond, uncond).flatten(),
        "cfg_zero.guided_4": guidance.cfg_zero(cond, uncond, 4.0),
    }
    recorded = {
        "cfg_zero.scale": torch.tensor(record["scale"]).flatten(),
        "cfg_zero.guided_4": torch.tensor(record["guided_4"]),
    }
    return compare(recorded, ours, tolerance)


def check_block_sparse(path: Path, tolerance: float | None = None) -> list[GoldenResult]:
    """Kind ``bsa``: masks up to ties, outputs and gradients of the recorded masks.

    The error of a mask is the number of query blocks whose selection differs by more than the
    order of exactly tied blocks; it has to be 0. Attention runs in float32 on the recorded
    values, so that no rounding but the recorded one enters. ``tolerance`` replaces
    :data:`OUTPUT_TOLERANCE` and :data:`GRADIENT_TOLERANCE`.
    """
    tensors, metadata = read_tensors(path), read_metadata(path)
    cases = sorted({name.split(".")[0] for name in tensors})
    results = []
    for case in cases:
        require_inputs(tensors, (f"{case}.{name}" for name in ("q", "k", "v", "block_mask")), path)
        recorded = {
            name.removeprefix(f"{case}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{case}.")
        }
        rule = metadata_json(metadata, case, path)
        try:
            found = _check_case(recorded, rule, tolerance)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"the golden file's rule of the case {case} cannot be read: {error}",
                received=str(rule),
                expected="grid_q, grid_k, block_q, block_k, sparsity, cdf_threshold",
                remedy="copy the file again from its source",
            ) from error
        results += [dataclasses.replace(r, name=f"{case}.{r.name}") for r in found]
    return results


def _check_case(
    recorded: Mapping[str, Tensor], rule: Mapping[str, Any], tolerance: float | None
) -> list[GoldenResult]:
    layout_q = BlockLayout(tuple(rule["grid_q"]), tuple(rule["block_q"]))
    layout_k = BlockLayout(tuple(rule["grid_k"]), tuple(rule["block_k"]))
    mask = recorded["block_mask"].bool()
    inputs = {name: recorded[name].float().requires_grad_() for name in "qkv"}
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    out = attention_from_index(q, k, v, BlockIndex.from_dense_mask(mask), layout_q, layout_k)
    assert isinstance(out, Tensor)
    names = [name for name in GRADIENTS if name in recorded]
    ours = {"out": out.detach()}
    if names and "do" in recorded:
        sources = [inputs[GRADIENTS[name]] for name in names]
        gradients = torch.autograd.grad(out, sources, recorded["do"].float())
        ours |= dict(zip(names, gradients, strict=True))
    differing = _rows_beyond_ties(recorded, rule, layout_q, layout_k)
    results = [GoldenResult(name="block_mask", max_abs_error=differing, tolerance=0.0)]
    for result in compare({name: recorded[name] for name in ours if name in recorded}, ours, 0.0):
        default = OUTPUT_TOLERANCE if result.name == "out" else GRADIENT_TOLERANCE
        bound = (default if tolerance is None else tolerance) * max(1.0, result.magnitude)
        results.append(dataclasses.replace(result, tolerance=bound))
    known = {"q", "k", "v", "do", "block_mask", *ours}
    return results + not_computed(recorded.keys() - known, 0.0)


def _rows_beyond_ties(
    recorded: Mapping[str, Tensor],
    rule: Mapping[str, Any],
    layout_q: BlockLayout,
    layout_k: BlockLayout,
) -> float:
    """Query blocks whose recorded and own blocks differ in more than which of the tied ones."""
    dtype = recorded["q"].dtype
    q_pool = pool_blocks(layout_q.to_block(recorded["q"], 2), layout_q).to(dtype)
    k_pool = pool_blocks(layout_k.to_block(recorded["k"], 2), layout_k).to(dtype)
    ranked = q_pool @ k_pool.mT
    number = 0 if rule["sparsity"] is None else int((1 - rule["sparsity"]) * ranked.shape[-1])
    counts = torch.full(ranked.shape[:-1], number)
    if rule["cdf_threshold"] is not None:
        ranked = (ranked * q_pool.shape[-1] ** -0.5).softmax(-1)
        # The public rule stops below the threshold, ours reaches it: only the numbers of blocks
        # are repeated here, and which blocks they are is left to our selection.
        mass = _scan(ranked.sort(dim=-1, descending=True).values)
        counts = counts.maximum((mass.float() <= rule["cdf_threshold"]).sum(-1))
    mask = torch.zeros_like(ranked, dtype=torch.bool)
    for count in counts[counts > 0].unique().tolist():
        index = select_from_pooled(q_pool, k_pool, topk=count)
        mask |= index.to_dense_mask() & (counts == count)[..., None]
    masks = mask, recorded["block_mask"].bool()
    ours, theirs = (ranked.masked_fill(~mask, -torch.inf).sort(dim=-1).values for mask in masks)
    return float((ours != theirs).any(-1).sum())


def _scan(x: Tensor) -> Tensor:
    """Prefix sums along the last axis in the order of a parallel scan, rounded in each step.

    In bfloat16 the order of additions decides which sums reach a threshold; this is the one of
    the GPU that the public implementation ran on. The last axis has a power of two of entries.
    """
    half = 1
    while half < x.shape[-1]:
        pair = x.unflatten(-1, (-1, 2, half))
        x = torch.stack((pair[..., 0, :], pair[..., 1, :] + pair[..., 0, -1:]), dim=-2).flatten(-3)
        half *= 2
    return x


CHECKS: dict[str, GoldenCheck] = {
    "bsa": check_block_sparse,
    "dit": check_dit,
    "dit_lora": check_dit_lora,
    "schedules": check_schedules,
}
"""Checks by kind."""
