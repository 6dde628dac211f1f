"""Supervised fine-tuning of a vision-language model on questions about videos, by TRL.

Only this module imports ``trl``. TRL's own collator takes images, no videos with a rate, so the
caller's makes the batches and TRL is told to leave the data alone.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

LANGUAGE_LAYERS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""Linear layers of the language model, for LoRA without the vision tower."""
Example = dict[str, int]
"""What names an example to the collator; all examples have the same keys."""


class _Trainer(SFTTrainer):  # type: ignore[misc]  # TRL has no types
    def _send_telemetry(self) -> None:
        """Send nothing: a training run makes no connection."""


def fine_tune(
    model: Any,
    processor: Any,
    arguments: Mapping[str, Any],
    *,
    train: Sequence[Example],
    held_out: Sequence[Example],
    collate: Callable[[Sequence[Example]], dict[str, torch.Tensor]],
    lora: LoraConfig | None,
    activation_checkpointing: bool,
    seed: int,
    callbacks: Sequence[TrainerCallback],
    resume: Path | None,
) -> None:
    """Train ``model``, on the CPU before; checkpoints hold the weights that are trained.

    Args:
        model: of transformers; ``lora`` is laid over it, else its trainable weights are trained.
        processor: of the same checkpoint.
        arguments: of transformers' trainer.
        train: examples in the order in which they are trained on.
        held_out: examples of the evaluations.
        collate: examples -> inputs of the model with ``labels``.
        lora: adapter to train; None trains the weights themselves.
        activation_checkpointing: recompute activations in the backward pass.
        seed: of dropout and LoRA.
        callbacks: of the trainer.
        resume: checkpoint to go on from.
    """
    # Under its name: transformers 5.23 warns of the older one.
    names = {item.name for item in dataclasses.fields(SFTConfig)}
    option = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if n in names)
    config = SFTConfig(
        **arguments,
        **{option: activation_checkpointing, f"{option}_kwargs": {"use_reentrant": False}},
        train_sampling_strategy="sequential",
        seed=seed,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,  # a cut would take tokens of the video
    )
    config._n_gpu = min(config.n_gpu, 1)  # the trainer would split batches over all of them
    with _no_bars():
        trainer = _Trainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(list(train)),
            eval_dataset=Dataset.from_list(list(held_out)),
            data_collator=collate,
            processing_class=processor,
            callbacks=list(callbacks),
            peft_config=lora,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))


@contextmanager
def _no_bars() -> Iterator[None]:
    """Transformers' bars off for the block: ours shows the progress."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
