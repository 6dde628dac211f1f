"""A Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint in the layout of transformers, from the disk only.

The processor of these models resizes videos with torchvision, an optional package here.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from longtake.core.weights import read_json
from longtake.runtime.errors import CheckpointError, UserError

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""`model_type` in ``config.json`` of what can be loaded."""


def check_checkpoint(folder: Path) -> None:
    """Refuse what cannot be loaded, before the weights are read.

    Raises:
        CheckpointError: no such checkpoint, or another model.
        UserError: torchvision is not installed.
    """
    found = read_json(folder / "config.json").get("model_type")
    if found not in MODEL_TYPES:
        raise CheckpointError(
            "the checkpoint is not a model that judges videos in text",
            received=f"model_type {found!r} in {folder}",
            expected=", ".join(MODEL_TYPES),
        )
    if find_spec("torchvision") is None:
        raise UserError(
            "this judge needs the package `torchvision`",
            received="not installed",
            remedy="pip install 'longtake[judge]'",
        )


def load_processor(folder: Path) -> Any:
    """The processor of a checkpoint: tokenizer, chat template and video preprocessing.

    Raises:
        CheckpointError: missing or damaged, or without a chat template or an end of turn.
        UserError: see :func:`check_checkpoint`.
    """
    check_checkpoint(folder)
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable("the processor", folder, error) from error
    lacking = [
        what
        for what, found in (
            ("a chat template", processor.chat_template),
            ("an end-of-turn token", processor.tokenizer.eos_token_id),
        )
        if not found and found != 0
    ]
    if lacking:
        raise CheckpointError(
            "the checkpoint cannot answer questions",
            received=f"{folder} has no {' and no '.join(lacking)}",
            expected="an instruction-tuned checkpoint with its processor",
        )
    return processor


def load_vlm(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The model, in evaluation mode.

    Raises:
        CheckpointError: missing, damaged or incomplete weights.
        UserError: see :func:`check_checkpoint`.
    """
    check_checkpoint(folder)
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unreadable("the weights", folder, error) from error
    lacking = sorted(str(name) for name in (*report["missing_keys"], *report["mismatched_keys"]))
    if lacking:  # transformers would go on with random ones
        raise CheckpointError(
            "the checkpoint lacks weights",
            received=f"{len(lacking)} tensors, such as {lacking[0]}, in {folder}",
            remedy="copy the checkpoint again from its source",
        )
    return model.to(device).eval()


def _unreadable(what: str, folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{what} of the checkpoint cannot be read: {error}",
        received=str(folder),
        remedy="copy the checkpoint again from its source",
    )
