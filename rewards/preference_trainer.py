"""Training of a reward on preference pairs, on transformers' Trainer.

Trainer does the loop, the optimiser, the schedule, accumulation and the state of a checkpoint. What
is added: the pair losses, normalised by the labelled entries of the whole update and not of a
micro-batch; a validation loss over the whole validation set, free of noise; pair accuracies; and
checkpoints that hold only what is trained.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import EvalPrediction, Trainer, TrainingArguments

from longtake.core.weights import iter_tensors, shard_paths, write_shards
from longtake.rewards.pixels import PixelConfig, normalize_patches
from longtake.rewards.preference_labels import UNLABELLED, is_labelled
from longtake.rewards.preference_loss import (
    NUM_DRAWS,
    TIE_FACTOR,
    Reduction,
    bradley_terry_loss,
    bradley_terry_ties_loss,
    uncertainty_ranking_loss,
)
from longtake.rewards.preference_metrics import accuracy_with_ties, accuracy_without_ties
from longtake.rewards.qwen2vl import Qwen2VLRewardModel
from longtake.runtime.errors import CheckpointError
from longtake.runtime.rng import generator

TRAINED_STEM = "trained"
"""Weights of a checkpoint: only the parameters that are trained."""

SCORER_INPUTS = ("input_ids", "attention_mask", "pixel_values", "grid_thw", "clips")


class PairScorer(nn.Module):
    """A reward model over pairs of clips; each clip of a batch is scored once.

    Args:
        reward: the model.
        tokens: indices of the reward tokens whose scores are trained.
        pixels: how patches are normalised.
    """

    accepts_loss_kwargs = True  # asks Trainer to count the labelled entries of an update

    def __init__(
        self, reward: Qwen2VLRewardModel, tokens: Sequence[int], pixels: PixelConfig
    ) -> None:
        super().__init__()
        self.reward = reward
        self.pixels = pixels
        self.tokens = tuple(tokens)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        grid_thw: Tensor,
        clips: Tensor,
    ) -> Tensor:
        """Head outputs [B, 2, K] of A and B; K as the reward model's last axis.

        Arguments as ``preference_inputs.collate`` makes them.
        """
        patches = normalize_patches(pixel_values, self.pixels)
        outputs = self.reward(input_ids, attention_mask, patches, grid_thw, self.tokens)
        sides: Tensor = outputs[clips.to(outputs.device)]
        return sides.transpose(0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairLoss:
    """The loss of a run (``preference_loss``).

    Args:
        kind: ``bradley_terry_ties``, ``bradley_terry`` or ``uncertainty``.
        tie_factor: k of Bradley-Terry with ties.
        num_draws: draws per pair of the uncertainty loss in training.
    """

    kind: str
    tie_factor: float = TIE_FACTOR
    num_draws: int = NUM_DRAWS

    def __call__(
        self,
        outputs: Tensor,
        labels: Tensor,
        *,
        noise: torch.Generator | None,
        reduction: Reduction,
    ) -> Tensor:
        """Loss of outputs [B, 2, K] under labels [B, n].

        Without ``noise`` the uncertainty loss is integrated instead of drawn.
        """
        if self.kind == "uncertainty":
            a, b = outputs.unbind(1)
            return uncertainty_ranking_loss(
                a,
                b,
                labels.squeeze(-1),
                expectation="quadrature" if noise is None else "monte_carlo",
                num_draws=self.num_draws,
                generator=noise,
                reduction=reduction,
            )
        a, b = scores_of(outputs, labels.shape[-1]).unbind(1)
        if self.kind == "bradley_terry":
            return bradley_terry_loss(a, b, labels, reduction=reduction)
        return bradley_terry_ties_loss(
            a, b, labels, tie_factor=self.tie_factor, reduction=reduction
        )


def scores_of(outputs: Tensor, num_dimensions: int) -> Tensor:
    """Scores [..., n] in head outputs [..., K]: a ranknet's second output is its uncertainty."""
    return outputs[..., :num_dimensions]


def pair_metrics(
    outputs: Tensor, labels: Tensor, pairs: Tensor, dimensions: Sequence[str], loss: PairLoss
) -> dict[str, float]:
    """Validation loss and accuracies.

    Args:
        outputs: [N, 2, K] head outputs; a pair of clips appears once per frame of an image reward.
        labels: [N, n].
        pairs: [N] number of the pair of each row; rows of one pair are averaged for the accuracy.
        dimensions: n names.
        loss: of the run.

    Returns:
        ``loss`` and, for each dimension, ``<name>_accuracy`` (without ties),
        ``<name>_accuracy_ties`` and ``<name>_tie_threshold`` (NaN when no tie was predicted).
    """
    metrics = {"loss": float(loss(outputs, labels, noise=None, reduction="mean"))}
    scores = scores_of(outputs, labels.shape[-1]).double()
    _, group, rows = pairs.unique(return_inverse=True, return_counts=True)
    count = len(rows)
    margins = torch.zeros(count, labels.shape[-1], dtype=torch.float64)
    margins = margins.index_add_(0, group, scores[:, 0] - scores[:, 1]) / rows[:, None]
    pair_labels = torch.full((count, labels.shape[-1]), UNLABELLED)
    pair_labels[group] = labels
    for column, name in enumerate(dimensions):
        plain = accuracy_without_ties(margins[:, column], pair_labels[:, column])
        ties = accuracy_with_ties(margins[:, column], pair_labels[:, column])
        metrics[f"{name}_accuracy"] = plain.value
        metrics[f"{name}_accuracy_ties"] = ties.value
        metrics[f"{name}_tie_threshold"] = math.nan if ties.threshold is None else ties.threshold
    return metrics


class PreferenceTrainer(Trainer):  # type: ignore[misc]  # transformers has no types
    """Trainer of a :class:`PairScorer`.

    Batches hold ``labels`` [B, n] and ``pairs`` [B] beside the inputs of the scorer
    (``preference_inputs.collate``).

    Args:
        scorer: the model; its trainable parameters are float32.
        args: of Trainer.
        loss: of the run.
        dimensions: names of the label columns.
        sampler: order of the training rows; None shuffles them.
        **options: further arguments of Trainer (data sets, collator, callbacks).
    """

    def __init__(
        self,
        scorer: PairScorer,
        args: TrainingArguments,
        *,
        loss: PairLoss,
        dimensions: Sequence[str],
        sampler: Sampler[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(scorer, args, compute_metrics=self._metrics, **options)
        self.pair_loss, self.dimensions = loss, tuple(dimensions)
        self._sampler = sampler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Sum of the loss over the labelled entries, divided by ``num_items_in_batch``.

        That number counts the labelled entries of all micro-batches of the update, so that the
        micro-batch size does not change the update when some entries are not labelled. None counts
        those of this batch.
        """
        outputs = model(**{name: inputs[name] for name in SCORER_INPUTS})
        labels = inputs["labels"]
        step = self.state.global_step
        noise = generator(self.args.seed, "uncertainty", step, *inputs["pairs"].tolist())
        total = self.pair_loss(outputs, labels, noise=noise, reduction="sum")
        if num_items_in_batch is None:
            num_items_in_batch = is_labelled(labels).sum()
        loss = total / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Tensor, tuple[Tensor, Tensor]]:
        """Head outputs and labels of a batch; the loss is computed over the whole set instead."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**{name: inputs[name] for name in SCORER_INPUTS})
        return None, outputs.float(), (inputs["labels"], inputs["pairs"])

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self._sampler or super()._get_train_sampler(train_dataset)

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        labels, pairs = prediction.label_ids
        outputs, labels, pairs = (
            torch.from_numpy(array) for array in (prediction.predictions, labels, pairs)
        )
        return pair_metrics(outputs, labels, pairs, self.dimensions, self.pair_loss)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # A frozen 7B backbone would be copied into every checkpoint.
        write_shards(
            trained_state(self.model), Path(output_dir or self.args.output_dir), TRAINED_STEM
        )

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
    """Fill the trained parameters from a checkpoint.

    Raises:
        CheckpointError: unreadable, or other parameters than those that are trained.
    """
    wanted = trained_state(model)
    left = set(wanted)
    for path in shard_paths(folder, TRAINED_STEM):
        for name, tensor in iter_tensors(path):
            if name not in left or tensor.shape != wanted[name].shape:
                raise CheckpointError(
                    "the checkpoint does not fit what is trained",
                    received=f"{name} {tuple(tensor.shape)} in {folder}",
                    expected="the parameters of the same configuration",
                    remedy="resume with the configuration of the run",
                )
            wanted[name].copy_(tensor)
            left.remove(name)
    if left:
        raise CheckpointError(
            "the checkpoint does not hold all that is trained",
            received=f"{len(left)} missing in {folder}, for example {min(left)}",
            expected=f"{len(wanted)} parameters",
            remedy="resume from an earlier checkpoint",
        )
