"""Train a reward on preference pairs: a run directory with a reward directory in it.

    RUN/  config.yaml  provenance.json  metrics.jsonl  summary.json  checkpoints/checkpoint-N/
          reward/      the trained reward, ready to score
          public/      the same in the layout of the public loader

Ctrl-C ends at once; ``resume`` continues from the last validation.
"""

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from longtake.rewards.preference_inputs import PreferenceDataset, collate, trained_tokens
from longtake.rewards.preference_trainer import (
    PairScorer,
    PreferenceTrainer,
    load_trained,
    scores_of,
    trained_state,
)
from longtake.rewards.prompt_sampler import PromptSampler
from longtake.rewards.qwen2vl import Qwen2VLRewardModel
from longtake.rewards.reward_directory import RewardDirectory, read_reward_directory
from longtake.rewards.reward_export import export_public, export_reward
from longtake.rewards.reward_spec import Normalization, RewardSpec
from longtake.rewards.train_config import RewardTrainingConfig
from longtake.rewards.train_plan import TrainingPlan, plan_training
from longtake.runtime.config import config_to_yaml, merge_config
from longtake.runtime.device import pick_device, refuse_launcher
from longtake.runtime.errors import ConfigError, UserError
from longtake.runtime.files import to_plain
from longtake.runtime.progress import ProgressBar, progress_bar, result_table
from longtake.runtime.provenance import collect
from longtake.runtime.rng import derive_key
from longtake.runtime.run_directory import RunDirectory
from longtake.runtime.tracking import Trackers, check_trackers

REWARD_FOLDER, PUBLIC_FOLDER = "reward", "public"
_SCHEDULERS = {"constant": "constant_with_warmup", "cosine": "cosine"}  # Trainer's names
_STATE = "trainer_state.json"  # the last file that Trainer writes into a checkpoint


def train_reward(
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    output_dir: Path,
    base: Path | None = None,
    data: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    device: str = "auto",
) -> Path | None:
    """Train a reward.

    Args:
        config_file: YAML with settings of :class:`RewardTrainingConfig`.
        overrides: ``key=value`` settings laid over it.
        output_dir: run directory.
        base: reward directory instead of the configured one.
        data: file of pairs instead of the configured one.
        resume: continue the run in ``output_dir``.
        dry_run: print the plan and write nothing.
        device: "auto", "cpu" or "cuda".

    Returns:
        The trained reward directory, ``output_dir/reward``; None for a dry run.

    Raises:
        UserError: unusable settings, data or run directory, or more than one process.
        CheckpointError: the base cannot be read.
    """
    config = merge_config(RewardTrainingConfig(), config_file, overrides)
    if base is not None:
        config = config.replace(base=str(base))
    if data is not None:
        config = config.replace(data=config.data.replace(train=str(data)))
    where = pick_device(device)
    _check_launch(config, where)
    source = read_reward_directory(config.base)
    plan = plan_training(config, source)
    console = Console(stderr=True)
    console.print(plan.table())
    if dry_run:
        return None
    with ExitStack() as stack:
        yaml = config_to_yaml(config)
        run = stack.enter_context(RunDirectory.create(output_dir, yaml, resume=resume))
        trackers = stack.enter_context(Trackers(run, config.trackers, {"seed": config.seed}))
        return _Run(config, source, plan, run, trackers, where, console).execute()


def _check_launch(config: RewardTrainingConfig, where: torch.device) -> None:
    check_trackers(config.trackers)
    for name, value in (("base", config.base), ("data.train", config.data.train)):
        if not value:
            raise ConfigError(
                f"{name} is not set",
                expected="a reward directory" if name == "base" else "a .csv or .json of pairs",
                remedy=f"pass it on the command line or with --set {name}=PATH",
            )
    refuse_launcher(
        "rewards are trained",
        "raise batch_pairs with a small micro_batch, and turn on gradient_checkpointing where "
        "memory is short",
    )
    if where.index:
        raise UserError(
            "Trainer uses the first visible GPU",
            received=f"--device {where}",
            expected="auto, cpu or cuda",
            remedy=f"start with CUDA_VISIBLE_DEVICES={where.index}",
        )


def make_trainable(model: Qwen2VLRewardModel, config: RewardTrainingConfig) -> None:
    """Mark what is trained and give it float32 weights; everything else is frozen.

    Trained are the head, the rows of the reward tokens (apart from the embedding matrix, which
    stays frozen), the LoRA or the language model, and the vision tower if asked.

    Raises:
        ConfigError: full training of a base with an unmerged LoRA.
    """
    model.requires_grad_(False)
    if config.method == "lora":
        if not model.config.lora_rank:
            model.add_lora(
                config.lora.rank, config.lora.alpha, config.seed, dropout=config.lora.dropout
            )
        trained = [p for name, p in model.named_parameters() if ".lora_" in name]
    else:
        if model.config.lora_rank:
            raise ConfigError(
                "the base has an unmerged LoRA",
                received="method full",
                expected="method lora, which trains it on",
                remedy="use method lora, or merge the base first",
            )
        embedding = model.embedding.weight
        trained = [p for p in model.model.language_model.parameters() if p is not embedding]
    if config.train_vision:
        trained += model.model.visual.parameters()
    trained += [*model.rm_head.parameters(), model.split_reward_rows()]
    for parameter in trained:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)


class _Run:
    """One training from the plan to the summary."""

    def __init__(
        self,
        config: RewardTrainingConfig,
        source: RewardDirectory,
        plan: TrainingPlan,
        run: RunDirectory,
        trackers: Trackers,
        where: torch.device,
        console: Console,
    ) -> None:
        self.config, self.source, self.plan, self.run = config, source, plan, run
        self.trackers, self.where, self.console = trackers, where, console

    def execute(self) -> Path:
        start = time.monotonic()
        config, plan, run = self.config, self.plan, self.run
        checkpoint = latest_checkpoint(run.checkpoints)
        run.truncate_metrics(_updates_in(checkpoint))
        self._write_provenance()
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        model = self.source.load_model(self.where, dtype)
        make_trainable(model, config)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        with progress_bar(
            "reward", plan.updates, completed=_updates_in(checkpoint), console=self.console
        ) as bar:
            trainer = self._trainer(model, bar, is_new=checkpoint is None)
            self._train(trainer, checkpoint)
        validation = trainer.predict(plan.validation, metric_key_prefix="eval")
        scores = score_statistics(plan.validation, torch.from_numpy(validation.predictions))
        spec = plan.spec
        if spec.kind == "videoreward":
            # A head that gives every clip one score has no scale.
            scales = {k: Normalization(**v) for k, v in scores.items() if v["std"] > 0}
            spec = dataclasses.replace(spec, normalization=scales)
        summary = {
            "updates": trainer.state.global_step,
            "best_update": trainer.state.best_global_step,
            "wall_s": time.monotonic() - start,
            "seed": config.seed,
            "dimensions": list(config.dimensions),
            "loss": plan.loss.kind,
            "color_mode": spec.color_mode,
            "pairs": {"train": len(plan.train.pairs), "validation": len(plan.validation.pairs)},
            "trained_parameters": sum(p.numel() for p in trained_state(model).values()),
            "validation": _metrics_only(validation.metrics),
            "scores": scores,
        }
        reward = self._export(model, spec, dtype, summary)
        run.write_json("summary.json", summary)
        rows = [[name, value] for name, value in summary["validation"].items()]
        self.console.print(result_table(f"validation of {reward}", ["metric", "value"], rows))
        return reward

    def _train(self, trainer: PreferenceTrainer, checkpoint: Path | None) -> None:
        """Train, unless the checkpoint is the last one; end with the best weights."""
        if checkpoint is not None and self._is_last(checkpoint):
            # Trainer would do one more update.
            trainer.state = TrainerState.load_from_json(str(checkpoint / _STATE))
            best = self.run.checkpoints / f"checkpoint-{trainer.state.best_global_step}"
            load_trained(trainer.model, best)
            return
        with self.run.writing("checkpoints"):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def _is_last(self, checkpoint: Path) -> bool:
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        stopping = state["stateful_callbacks"].get(EarlyStoppingCallback.__name__)
        without_gain = stopping["attributes"]["early_stopping_patience_counter"] if stopping else 0
        stopped = 0 < self.config.patience <= without_gain
        return stopped or _updates_in(checkpoint) >= self.plan.updates

    def _trainer(
        self, model: Qwen2VLRewardModel, bar: ProgressBar, *, is_new: bool
    ) -> PreferenceTrainer:
        config, plan = self.config, self.plan
        args = TrainingArguments(
            output_dir=str(self.run.checkpoints),
            per_device_train_batch_size=config.micro_batch,
            per_device_eval_batch_size=config.micro_batch,
            gradient_accumulation_steps=config.batch_pairs // config.micro_batch,
            max_steps=plan.updates,
            learning_rate=config.learning_rate,
            lr_scheduler_type=_SCHEDULERS[config.schedule],
            warmup_steps=math.ceil(config.warmup_share * plan.updates),
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            optim="adamw_torch",
            eval_strategy="steps",
            eval_steps=config.eval_every,
            eval_on_start=is_new,
            save_strategy="steps",
            save_steps=config.eval_every,
            save_total_limit=2,  # the best and the latest
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            restore_callback_states_from_checkpoint=True,
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels", "pairs"],
            dataloader_num_workers=config.workers,
            dataloader_persistent_workers=config.workers > 0,
            dataloader_pin_memory=self.where.type == "cuda",
            use_cpu=self.where.type == "cpu",
            bf16=config.precision == "bfloat16",
            seed=derive_key(config.seed, "reward training") % 2**31,
        )
        args._n_gpu = min(args.n_gpu, 1)  # else DataParallel would cut the patches of a batch
        callbacks: list[TrainerCallback] = [_RunLog(self.trackers, bar)]
        if config.patience:
            callbacks.append(EarlyStoppingCallback(early_stopping_patience=config.patience))
        trainer = PreferenceTrainer(
            PairScorer(model, trained_tokens(plan.spec, config.dimensions), plan.spec.pixels),
            args,
            loss=plan.loss,
            dimensions=config.dimensions,
            train_dataset=plan.train,
            eval_dataset=plan.validation,
            data_collator=collate,
            sampler=PromptSampler(plan.train.rows_of_prompts(), config.seed)
            if config.group_by_prompt
            else None,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _export(
        self,
        model: Qwen2VLRewardModel,
        spec: RewardSpec,
        dtype: torch.dtype,
        summary: dict[str, Any],
    ) -> Path:
        path = self.run.path / REWARD_FOLDER
        provenance = {
            "trained_from": self.source.fingerprint(),
            "training": {name: summary[name] for name in ("updates", "best_update", "validation")},
        }
        provenance = to_plain(provenance)  # a threshold that does not exist is NaN
        with self.run.writing(REWARD_FOLDER):
            shutil.rmtree(path, ignore_errors=True)  # of the same run, finished before
            export_reward(model, path, self.source, spec, dtype, provenance)
            if self.config.export_public:
                export_public(model, self.run.path / PUBLIC_FOLDER, spec, dtype)
        return path

    def _write_provenance(self) -> None:
        files = {"data": Path(self.config.data.train)}
        if self.config.data.validation:
            files["validation"] = Path(self.config.data.validation)
        record = {**collect(files), "base": self.source.fingerprint()}
        self.run.write_json("provenance.json", record)


class _RunLog(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Metrics to the run directory, progress to the screen, a validation after the last update.

    ``update`` of a record is the number of the last finished update, counted from 0; -1 is the
    validation before the first one.
    """

    def __init__(self, trackers: Trackers, bar: ProgressBar) -> None:
        self._trackers, self._bar = trackers, bar
        self._shown: dict[str, float] = {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
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
        if not logs or "train_runtime" in logs:
            return
        record = {"update": state.global_step - 1, **_metrics_only(logs)}
        self._trackers.log(record, step=state.global_step)
        for name in ("loss", "eval_loss"):
            if name in logs:
                self._shown[name] = float(logs[name])
        self._bar.update(state.global_step, **self._shown)


def _metrics_only(logs: dict[str, Any]) -> dict[str, Any]:
    """Without Trainer's clock, which would make equal runs differ."""
    clock = ("runtime", "per_second", "preparation_time")
    return {name: value for name, value in logs.items() if not name.endswith(clock)}


def score_statistics(data: PreferenceDataset, outputs: Tensor) -> dict[str, dict[str, float]]:
    """``mean`` and ``std`` (of the population) of the raw scores, by dimension.

    Args:
        data: the pairs; a clip of several pairs counts once.
        outputs: [rows, 2, K] head outputs.
    """
    scores = scores_of(outputs, len(data.dimensions)).double()
    by_clip = {
        key: scores[row, side]
        for row, keys in enumerate(data.clip_keys())
        for side, key in enumerate(keys)
    }
    table = torch.stack(list(by_clip.values()))
    return {
        name: {"mean": float(column.mean()), "std": float(column.std(correction=0))}
        for name, column in zip(data.dimensions, table.unbind(-1), strict=True)
    }


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint that Trainer wrote; a torn one of a killed run is skipped."""
    found = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name[11:]), reverse=True):
        try:
            json.loads((path / _STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return path
    return None


def _updates_in(checkpoint: Path | None) -> int:
    return int(checkpoint.name[11:]) if checkpoint else 0
