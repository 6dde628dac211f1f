"""TRL's SFTTrainer, set up for answers about videos. Only this module imports ``trl``.

TRL's own collator takes images, no videos with a rate, so ours makes the batches and TRL is told to
leave the data alone. Its usage report to the network is off.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from longtake.evaluation.judge.sft_config import GenerativeTrainingConfig
from longtake.evaluation.judge.sft_examples import AnswerCollator, Example
from longtake.runtime.errors import UserError

_LANGUAGE = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""Linear layers of the language model."""
Log = Callable[[int, dict[str, float]], None]
"""Finished updates, and numbers to record."""


class _Trainer(SFTTrainer):  # type: ignore[misc]
    def _send_telemetry(self) -> None:
        """Send nothing: a training run makes no connection."""


class _Reports(TrainerCallback):  # type: ignore[misc]
    """Passes numbers and checkpoints on, and ends a training that diverged."""

    def __init__(self, log: Log, saved: Callable[[int, Path, int], None]) -> None:
        self._log, self._saved = log, saved

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:  # the last one, whatever its number
            control.should_log = control.should_evaluate = control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        logs = dict(logs or {})
        if "loss" in logs:
            loss, norm = float(logs["loss"]), float(logs["grad_norm"])
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise UserError(
                    "the training of the judge diverged",
                    received=f"loss {loss}, gradient norm {norm} in update {state.global_step - 1}",
                    expected="finite numbers",
                    remedy="lower learning_rate, or use precision=float32; checkpoints are intact",
                )
            accuracy = float(logs["mean_token_accuracy"])
            record = {"loss": loss, "grad_norm": norm, "token_accuracy": accuracy}
            self._log(state.global_step, record)
        elif "eval_loss" in logs:
            self._log(state.global_step, {"eval_loss": float(logs["eval_loss"])})

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._saved(state.global_step, folder, int(state.best_global_step))


def run_trainer(
    model: Any,
    processor: Any,
    config: GenerativeTrainingConfig,
    folder: Path,
    *,
    train: tuple[Sequence[Example], AnswerCollator],
    held: tuple[Sequence[Example], AnswerCollator],
    device: torch.device,
    resume: Path | None,
    log: Log,
    saved: Callable[[int, Path, int], None],
) -> None:
    """Train.

    Args:
        model: of the base, on the CPU.
        processor: of the base.
        config: of the training.
        folder: gets the trainer's checkpoints.
        train: examples in their order, and what makes batches of them.
        held: the same of the part that chooses the update.
        device: of the training.
        resume: checkpoint to go on from.
        log: called after each update and evaluation.
        saved: called with the finished updates, the checkpoint, and the number of updates with the
            lowest loss so far.

    Raises:
        UserError: the training diverged.
    """
    _freeze(model, config)
    both = _Both(train[1], held[1])
    with _no_bars():
        trainer = _Trainer(
            model=model,
            args=_arguments(config, folder, device),
            train_dataset=_dataset(train[0], is_held=False),
            eval_dataset=_dataset(held[0], is_held=True),
            data_collator=both,
            processing_class=processor,
            callbacks=[_Reports(log, saved)],
            peft_config=_lora(config) if config.method == "lora" else None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))


class _Both:
    """One collator for two parts: the trainer knows one."""

    def __init__(self, train: AnswerCollator, held: AnswerCollator) -> None:
        self._collators = (train, held)

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        return self._collators[examples[0]["held"]](examples)


def _dataset(examples: Sequence[Example], *, is_held: bool) -> Dataset:
    return Dataset.from_dict(
        {
            "row": [example["row"] for example in examples],
            "draw": [example["draw"] for example in examples],
            "held": [int(is_held)] * len(examples),
        }
    )


def _freeze(model: Any, config: GenerativeTrainingConfig) -> None:
    """For method full; LoRA freezes everything but itself."""
    if config.method == "full" and not config.train_vision:
        model.model.visual.requires_grad_(False)


def _lora(config: GenerativeTrainingConfig) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules="all-linear" if config.train_vision else _LANGUAGE,
    )


def _arguments(config: GenerativeTrainingConfig, folder: Path, device: torch.device) -> Any:
    workers = config.workers if device.type == "cuda" else 0  # on a CPU they would only compete
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=config.updates,
        per_device_train_batch_size=config.micro_batch,
        per_device_eval_batch_size=config.micro_batch,
        gradient_accumulation_steps=config.batch_clips // config.micro_batch,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine" if config.schedule == "cosine" else "constant_with_warmup",
        warmup_steps=math.ceil(config.warmup_share * config.updates),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bfloat16",
        **_checkpointing(config),
        eval_strategy="steps",
        eval_steps=config.eval_every,
        save_strategy="steps",
        save_steps=config.eval_every,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would hide a training that diverged
        train_sampling_strategy="sequential",  # the examples come in the order of their updates
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,  # a cut would take tokens of the video
        seed=config.seed,
        use_cpu=device.type == "cpu",
        report_to="none",
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:  # the trainer would split batches over all of them
        arguments._n_gpu = 1
    return arguments


def _checkpointing(config: GenerativeTrainingConfig) -> dict[str, Any]:
    """The option under its name; transformers 5.23 warns of the older one."""
    names = {item.name for item in dataclasses.fields(SFTConfig)}
    name = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if n in names)
    return {name: config.gradient_checkpointing, f"{name}_kwargs": {"use_reentrant": False}}


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
