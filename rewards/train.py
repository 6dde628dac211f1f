"""Training of a head on the reward backbone: by pairs (rewards) or by ratings (the judge).

transformers' Trainer does the loop, the optimiser, the schedule, accumulation and the state of a
checkpoint. What is added:

- the loss of an update is a sum over its entries, divided by their weight in the *whole* update and
  not in a micro-batch, so that the size of a micro-batch does not change the update;
- the validation loss is that of the whole held-out set, free of noise, and the weights with the
  lowest one are the result;
- checkpoints hold only what is trained: a frozen 7B backbone would be copied into each of them.

Ctrl-C ends at once; a resumed run goes on from its last validation and ends bit for bit like one
that was never interrupted.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from longtake.core.weights import (
    check_keys,
    check_shape,
    iter_tensors,
    shard_paths,
    write_shards,
)
from longtake.rewards.directory import RewardDirectory
from longtake.rewards.losses import PairLoss, is_labelled, pair_metrics, rating_loss
from longtake.rewards.pixels import PixelConfig, normalize_patches
from longtake.rewards.qwen2vl.model import Qwen2VLRewardModel
from longtake.rewards.train_config import HeadTrainingConfig
from longtake.runtime.errors import ConfigError, UserError
from longtake.runtime.progress import ProgressBar, progress_bar
from longtake.runtime.rng import derive_key, generator
from longtake.runtime.run_directory import RunDirectory
from longtake.runtime.tracking import Trackers

# Weights of a checkpoint: only the parameters that are trained.
TRAINED_STEM = "trained"
_SCHEDULERS = {"constant": "constant_with_warmup", "cosine": "cosine"}  # Trainer's names
_STATE = "trainer_state.json"  # the last file that Trainer writes into a checkpoint


@dataclass(frozen=True, kw_only=True)
class PairObjective:
    """Clips are better or worse than others; batches of ``pair_dataset.collate_pairs``.

    ``targets`` names the entries of a batch that are no inputs of the model. An update divides the
    sum of ``loss`` over its micro-batches by the sum of ``weight``, the number of labels;
    ``metrics`` are those of the whole held-out set, ``loss`` among them.
    """

    pair_loss: PairLoss
    dimensions: tuple[str, ...]
    seed: int
    targets = ("labels", "pairs")

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor], step: int) -> Tensor:
        """Sum over labels [B, n] of head outputs [B, 2, K]; ``step`` names the draws of noise."""
        noise = None
        if self.pair_loss.kind == "uncertainty":
            noise = generator(self.seed, "uncertainty", step, *batch["pairs"].tolist())
        return self.pair_loss(outputs, batch["labels"], noise).sum()

    def weight(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Number of labelled entries."""
        return is_labelled(batch["labels"]).sum()

    def metrics(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Loss and accuracies."""
        labels, pairs = batch["labels"], batch["pairs"]
        return pair_metrics(outputs, labels, pairs, self.dimensions, self.pair_loss)


@dataclass(frozen=True, kw_only=True)
class RatingObjective:
    """Clips have mean ratings; batches hold standardised ``ratings`` and their ``counts`` [B, D].

        loss = sum_{b,d} k_bd (s_bd - y_bd)^2 / sum_{b,d} k_bd

    over the clips b of an update and the dimensions d, with the score s, the mean rating y and its
    number of ratings k; an unrated dimension has k = 0.
    """

    targets = ("ratings", "counts")

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor], step: int) -> Tensor:
        """Sum of the weighted squared errors of head outputs [B, D]."""
        return rating_loss(outputs, batch["ratings"], batch["counts"]).sum()

    def weight(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Number of ratings."""
        return batch["counts"].sum()

    def metrics(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """The loss, in float64."""
        total = self.loss(outputs.double(), batch, 0)
        return {"loss": float(total / self.weight(batch).clamp(min=1))}


Objective = PairObjective | RatingObjective


class Scorer(nn.Module):
    """A reward model over the clips of a batch; ``tokens`` are those whose scores are trained."""

    accepts_loss_kwargs = True  # asks Trainer for the weight of a whole update

    def __init__(
        self, reward: Qwen2VLRewardModel, tokens: Sequence[int], pixels: PixelConfig
    ) -> None:
        super().__init__()
        self.reward, self.tokens, self.pixels = reward, tuple(tokens), pixels

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        grid_thw: Tensor,
        clips: Tensor | None = None,
    ) -> Tensor:
        """Head outputs [C, K] of the clips of ``collate_clips``.

        With ``clips`` [2, B], numbers of the clips A and B of each pair, they are [B, 2, K]: a clip
        of several pairs is scored once.
        """
        patches = normalize_patches(pixel_values, self.pixels)
        outputs: Tensor = self.reward(input_ids, attention_mask, patches, grid_thw, self.tokens)
        return outputs if clips is None else outputs[clips.to(outputs.device)].transpose(0, 1)


class HeadTrainer(Trainer):  # type: ignore[misc]  # transformers has no types
    """Trainer of a :class:`Scorer`; ``options`` are those of transformers' Trainer."""

    def __init__(
        self,
        scorer: Scorer,
        args: TrainingArguments,
        objective: Objective,
        sampler: Sampler[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(scorer, args, compute_metrics=self._metrics, **options)
        self.objective, self._sampler = objective, sampler

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The micro-batches of an update and their weight, which Trainer counts in tokens."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        weights = [self.objective.weight(batch) for batch in batches]
        # An update without a single label has the loss 0.
        return batches, torch.stack(weights).sum().clamp(min=1).to(device) if weights else None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Sum of the loss over a micro-batch, divided by the weight of its update."""
        outputs = self._outputs(model, inputs)
        total = self.objective.loss(outputs, inputs, self.state.global_step)
        weight = self.objective.weight(inputs) if num_items_in_batch is None else num_items_in_batch
        return (total / weight, outputs) if return_outputs else total / weight

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Tensor, tuple[Tensor, ...]]:
        """Head outputs and targets; a mean of batch losses would not be the loss of the set."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = self._outputs(model, inputs)
        return None, outputs.float(), tuple(inputs[name] for name in self.objective.targets)

    def _outputs(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
        return model(**{k: v for k, v in inputs.items() if k not in self.objective.targets})

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        outputs = torch.from_numpy(prediction.predictions)
        _require_finite(self.state.global_step - 1, outputs=outputs.abs().max().item())
        targets = zip(self.objective.targets, prediction.label_ids, strict=True)
        return self.objective.metrics(outputs, {k: torch.from_numpy(v) for k, v in targets})

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self._sampler or super()._get_train_sampler(train_dataset)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        write_shards(trained_state(self.model), folder, TRAINED_STEM)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        load_trained(model or self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        load_trained(self.model, Path(self.state.best_model_checkpoint))


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def load_trained(model: nn.Module, folder: Path) -> None:
    """Fill the trained parameters from a checkpoint, which holds them all and no others."""
    state = trained_state(model)
    stored = {k: v for path in shard_paths(folder, TRAINED_STEM) for k, v in iter_tensors(path)}
    check_keys(stored, state, folder)
    for name, tensor in stored.items():
        check_shape(name, tensor, state[name].shape, folder)
        state[name].copy_(tensor)


def make_trainable(model: Qwen2VLRewardModel, config: HeadTrainingConfig) -> None:
    """Mark what is trained and give it float32 weights; everything else is frozen.

    Trained are the head, the rows of the reward tokens (the embedding matrix stays frozen), the
    LoRA or the language model, and the vision tower if asked.
    """
    model.requires_grad_(False)
    if config.method == "lora":
        if not model.config.lora_rank:
            model.add_lora(
                config.lora.rank, config.lora.alpha, config.seed, dropout=config.lora.dropout
            )
        trained = [p for name, p in model.named_parameters() if ".lora_" in name]
    elif model.config.lora_rank:
        raise ConfigError(
            "the base has an unmerged LoRA", received="method full", expected="method lora"
        )
    else:
        embedding = model.embedding.weight
        trained = [p for p in model.model.language_model.parameters() if p is not embedding]
    if config.train_vision:
        trained += model.model.visual.parameters()
    trained += [*model.rm_head.parameters(), model.split_reward_rows()]
    # Updates of 2e-6 vanish in bfloat16.
    for parameter in trained:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the hidden matrices, AdamW for embeddings, heads and vectors, at one rate.

    Muon (Jordan et al. 2024; PyTorch's implementation) steps along the orthogonalised momentum of a
    matrix. Scaled to the size of AdamW's steps (Liu et al. 2025, arXiv 2502.16982, section 2.2) it
    takes AdamW's learning rate.
    """

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        other = ("embed", "rm_head", "reward_rows")
        # Orthogonal steps suit maps between hidden states, not tables of rows or single outputs.
        hidden = {k for k, p in named if p.ndim == 2 and not any(part in k for part in other)}
        matrices = [p for name, p in named if name in hidden]
        rest = [p for name, p in named if name not in hidden]
        self._parts = [
            torch.optim.Muon(matrices, learning_rate, weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, learning_rate, weight_decay=weight_decay),
        ]
        super().__init__([p for _, p in named], {"lr": learning_rate})
        # The groups of both: a schedule that sets their rates sets the parts'.
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # Trainer gives none
        """Step both."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """States of both."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]


class PromptSampler(Sampler[int]):
    """Visits every row once per epoch, prompt by prompt, in an order of the seed and the epoch.

    Pairs of one prompt share clips, and a batch scores a clip once: six pairs of four clips cost
    four forward passes in place of twelve.
    """

    def __init__(self, groups: Sequence[Sequence[int]], seed: int) -> None:
        self._groups, self._seed, self._epoch = groups, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; Trainer calls it, also when it resumes."""
        self._epoch = epoch

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups)

    def __iter__(self) -> Iterator[int]:
        draw = generator(self._seed, "order of prompts", self._epoch)
        for number in torch.randperm(len(self._groups), generator=draw).tolist():
            group = self._groups[number]
            for index in torch.randperm(len(group), generator=draw).tolist():
                yield group[index]


@dataclass(frozen=True, kw_only=True)
class TrainedHead:
    """The weights with the lowest held-out loss, and what they give on the held-out set.

    ``outputs`` are of the held-out rows, in their order; ``metrics`` are ``eval_*``.
    """

    model: Qwen2VLRewardModel
    outputs: Tensor
    metrics: dict[str, float]
    updates: int
    best_update: int
    """Updates after which the weights were taken."""


@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """One training: what is trained on what, and how often.

    Rows of both data sets become batches by ``collate``; the targets of ``objective`` are in them.
    ``batch`` is the rows per update, a multiple of ``config.micro_batch``; without a ``sampler``
    the training rows are shuffled.
    """

    source: RewardDirectory
    config: HeadTrainingConfig
    tokens: Sequence[int]
    objective: Objective
    train: Dataset[Any]
    held_out: Dataset[Any]
    collate: Callable[[Sequence[Any]], dict[str, Tensor]]
    updates: int
    batch: int
    sampler: Sampler[int] | None = None

    def run(
        self, run: RunDirectory, trackers: Trackers, device: torch.device, console: Console
    ) -> TrainedHead:
        """Train, or go on with what is in ``run``; metrics go to the trackers."""
        config = self.config
        checkpoint = latest_checkpoint(run.checkpoints)
        done = updates_in(checkpoint)
        run.truncate_metrics(done)
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        model = self.source.load_model(device, dtype)
        make_trainable(model, config)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        with progress_bar("updates", self.updates, completed=done, console=console) as bar:
            trainer = self._trainer(model, run.checkpoints, device, is_new=checkpoint is None)
            trainer.add_callback(RunLog(trackers, bar))
            if checkpoint is not None and self._is_last(checkpoint):
                # Trainer would do one more update.
                trainer.state = TrainerState.load_from_json(str(checkpoint / _STATE))
                best = run.checkpoints / f"checkpoint-{trainer.state.best_global_step}"
                load_trained(trainer.model, best)
            else:
                with run.writing("checkpoints"):
                    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        prediction = trainer.predict(self.held_out, metric_key_prefix="eval")
        return TrainedHead(
            model=model,
            outputs=torch.from_numpy(prediction.predictions),
            metrics=_without_clock(prediction.metrics),
            updates=trainer.state.global_step,
            best_update=trainer.state.best_global_step,
        )

    def _is_last(self, checkpoint: Path) -> bool:
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        stopping = state["stateful_callbacks"].get(EarlyStoppingCallback.__name__)
        without_gain = stopping["attributes"]["early_stopping_patience_counter"] if stopping else 0
        stopped = 0 < self.config.patience <= without_gain
        return stopped or updates_in(checkpoint) >= self.updates

    def _trainer(
        self, model: Qwen2VLRewardModel, checkpoints: Path, device: torch.device, *, is_new: bool
    ) -> HeadTrainer:
        config = self.config
        args = TrainingArguments(
            **trainer_arguments(config, checkpoints, self.updates, self.batch, device),
            eval_on_start=is_new,
            load_best_model_at_end=True,
            label_names=list(self.objective.targets),
            optim="adamw_torch",
            seed=noise_seed(config.seed),
        )
        args._n_gpu = min(args.n_gpu, 1)  # else DataParallel would cut the patches of a batch
        scorer = Scorer(model, self.tokens, self.source.spec.pixels)
        muon = config.optimizer == "muon"
        patience = config.patience
        trainer = HeadTrainer(
            scorer,
            args,
            self.objective,
            self.sampler,
            train_dataset=self.train,
            eval_dataset=self.held_out,
            data_collator=self.collate,
            callbacks=[EarlyStoppingCallback(patience)] if patience else [],
            optimizers=(
                MuonWithAdamW(scorer, config.learning_rate, config.weight_decay) if muon else None,
                None,
            ),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


def trainer_arguments(
    config: HeadTrainingConfig, checkpoints: Path, updates: int, batch: int, device: torch.device
) -> dict[str, Any]:
    """Arguments of transformers' Trainer that the settings of every training give."""
    # On a CPU loaders would only compete with the model.
    workers = config.workers if device.type == "cuda" else 0
    return {
        "output_dir": str(checkpoints),
        "per_device_train_batch_size": config.micro_batch,
        "per_device_eval_batch_size": config.micro_batch,
        "gradient_accumulation_steps": batch // config.micro_batch,
        "max_steps": updates,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": _SCHEDULERS[config.schedule],
        "warmup_steps": math.ceil(config.warmup_share * updates),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "eval_strategy": "steps",
        "eval_steps": config.eval_every,
        "save_strategy": "steps",
        "save_steps": config.eval_every,
        "save_total_limit": 2,  # the best and the latest
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "restore_callback_states_from_checkpoint": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide a training that diverged
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_num_workers": workers,
        "dataloader_persistent_workers": workers > 0,
        # Only a forked process shares the memory of a data set (FrameCache).
        "dataloader_multiprocessing_context": "fork" if workers else None,
        "dataloader_pin_memory": device.type == "cuda",
        "use_cpu": device.type == "cpu",
        "bf16": config.precision == "bfloat16",
    }


def noise_seed(seed: int) -> int:
    """Trainer's seed: names the order, dropout and the noise of the loss."""
    return derive_key(seed, "reward training") % 2**31


class RunLog(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Metrics to the run directory, progress to the screen, a validation after the last update.

    ``update`` of a record counts from 0; -1 is the validation before the first update.
    """

    def __init__(self, trackers: Trackers, bar: ProgressBar) -> None:
        self._trackers, self._bar = trackers, bar
        self._shown: dict[str, float] = {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Validate after the last update, whatever its number."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Record numbers; end a training that diverged."""
        if not logs or "train_runtime" in logs:  # Trainer's summary at the end
            return
        update = state.global_step - 1
        _require_finite(update, **{k: logs[k] for k in ("loss", "grad_norm") if k in logs})
        self._trackers.log({"update": update, **_without_clock(logs)}, step=state.global_step)
        self._shown |= {name: float(logs[name]) for name in ("loss", "eval_loss") if name in logs}
        self._bar.update(state.global_step, **self._shown)


def _require_finite(update: int, **values: float) -> None:
    if not all(map(math.isfinite, values.values())):
        raise UserError(
            "the training diverged",
            received=f"{', '.join(f'{k} {v}' for k, v in values.items())} in update {update}",
            expected="finite numbers",
            remedy="lower learning_rate, or use precision=float32; checkpoints are intact",
        )


def _without_clock(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Without Trainer's clock and TRL's count of tokens, which begin anew when a run is resumed."""
    clock = ("runtime", "per_second", "preparation_time", "num_tokens")
    return {name: value for name, value in logs.items() if not name.endswith(clock)}


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint that Trainer wrote; a torn one of a killed run is skipped."""
    numbered = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
    for path in sorted(numbered, key=updates_in, reverse=True):
        try:
            json.loads((path / _STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return path
    return None


def updates_in(checkpoint: Path | None) -> int:
    """Updates that a checkpoint ``checkpoint-N`` follows on."""
    return int(checkpoint.name[11:]) if checkpoint else 0
