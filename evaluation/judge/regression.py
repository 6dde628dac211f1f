"""The regression of mean ratings: model, optimiser and best weights of one training.

    loss = sum_{b,d} k_bd (s_bd - y_bd)^2 / sum_{b,d} k_bd

over the clips b of an update and the dimensions d, with the score s, the standardised mean rating y
and its number of ratings k; an unrated dimension has k = 0.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from longtake.evaluation.judge.batch_loader import Loaded, loaded_batches, parts
from longtake.evaluation.judge.clip_inputs import ModelBatch, model_arguments
from longtake.evaluation.judge.optimizers import make_optimizers
from longtake.evaluation.judge.qwen2vl_judge import judge_tokens
from longtake.evaluation.judge.rated_batches import ClipSource, update_rows, weighted_error
from longtake.evaluation.judge.train_config import JudgeTrainingConfig
from longtake.rewards.reward_directory import RewardDirectory
from longtake.rewards.train import make_trainable, trained_state
from longtake.rewards.train_config import RewardTrainingConfig
from longtake.runtime.errors import UserError
from longtake.runtime.rng import derive_key
from longtake.runtime.statistics import FloatArray


class JudgeRegression:
    """One training in memory.

    Args:
        source: the base.
        config: of the training.
        device: of the model.

    Attributes:
        reward: the model.
        best_update: number of the update with the lowest error so far, -1: before the first.
    """

    def __init__(
        self, source: RewardDirectory, config: JudgeTrainingConfig, device: torch.device
    ) -> None:
        self._config, self._device = config, device
        self._tokens = judge_tokens(config.dimensions)
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        self.reward = source.load_model(device, dtype)
        make_trainable(
            self.reward,
            RewardTrainingConfig(
                method=config.method,
                lora=config.lora,
                train_vision=config.train_vision,
                seed=config.seed,
            ),
        )
        if config.gradient_checkpointing:
            self.reward.gradient_checkpointing_enable({"use_reentrant": False})
        named = [(name, p) for name, p in self.reward.named_parameters() if p.requires_grad]
        self._trained = [parameter for _, parameter in named]
        self._optimizers = make_optimizers(
            config.optimizer, named, config.learning_rate, config.weight_decay
        )
        self.best_update, self._best_error = -1, math.inf
        self._best: dict[str, Tensor] = {}

    def updates(self, source: ClipSource, start: int) -> Iterator[tuple[int, float, float]]:
        """Train from update ``start`` to the last one; yields (update, loss, gradient norm).

        Raises:
            UserError: the loss is not finite; the weights are those before that update.
        """
        config = self._config
        numbers = range(start, config.updates)
        batches = (update_rows(len(source), config.batch_clips, u, config.seed) for u in numbers)
        for update, (rows, inputs) in zip(numbers, self._loaded(source, batches), strict=True):
            for optimizer in self._optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * _rate(update, config)
            yield update, *self._update(source, rows, inputs, update)

    def _update(
        self, source: ClipSource, rows: list[int], inputs: list[ModelBatch], update: int
    ) -> tuple[float, float]:
        self.reward.train()
        targets, weights = (part.to(self._device) for part in source.targets(rows))
        total = weights.sum().clamp(min=1)
        errors: list[Tensor] = []
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # dropout follows from the number of the update
            torch.manual_seed(derive_key(self._config.seed, "judge dropout", update))
            for part, batch in zip(parts(len(rows), self._config.micro_batch), inputs, strict=True):
                scores = self._scores(source, batch)
                error = weighted_error(scores, targets[part], weights[part]) / total
                error.backward()
                errors.append(error.detach())
        clipped = torch.nn.utils.clip_grad_norm_(self._trained, self._config.max_grad_norm)
        # Read at once: each read makes this thread wait for the device.
        *terms, norm = torch.stack([*errors, clipped]).tolist()
        loss = sum(terms)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(
                "the training of the judge diverged",
                received=f"loss {loss}, gradient norm {norm} in update {update}",
                expected="finite numbers",
                remedy="lower learning_rate, or use precision=float32; checkpoints are intact",
            )
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss, norm

    def predict(self, source: ClipSource) -> FloatArray:
        """Standardised scores [n, D] of all clips, in evaluation mode and without gradients."""
        self.reward.eval()
        every = list(range(len(source)))
        batches = [every[part] for part in parts(len(source), self._config.batch_clips)]
        with torch.no_grad():
            found = [
                self._scores(source, batch)
                for _, inputs in self._loaded(source, batches)
                for batch in inputs
            ]
        return torch.cat(found).double().cpu().numpy()

    def evaluate(self, source: ClipSource, update: int) -> float:
        """Weighted error of the calibration part; the best weights so far are kept."""
        scores = torch.from_numpy(self.predict(source))
        targets, weights = source.targets(range(len(source)))
        error = float(weighted_error(scores, targets, weights) / weights.sum().clamp(min=1))
        if error < self._best_error:
            self.best_update, self._best_error = update, error
            self._best = _copied(trained_state(self.reward))
        return error

    def use_best(self) -> None:
        """Put the best weights into the model."""
        self._fill(self._best)

    def state(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {
            "trained": trained_state(self.reward),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "best": self._best,
            "best_update": self.best_update,
            "best_error": self._best_error,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`.

        Raises:
            KeyError, ValueError or RuntimeError: a state of another model.
        """
        self._fill(state["trained"])
        for optimizer, kept in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self._best = dict(state["best"])
        self.best_update, self._best_error = int(state["best_update"]), float(state["best_error"])

    def _fill(self, weights: Mapping[str, Tensor]) -> None:
        wanted = trained_state(self.reward)
        if weights.keys() != wanted.keys():
            raise ValueError("the parameters are not those that are trained")
        with torch.no_grad():
            for name, tensor in wanted.items():
                tensor.copy_(weights[name])

    def _loaded(self, source: ClipSource, batches: Iterable[list[int]]) -> Iterator[Loaded]:
        config, on_gpu = self._config, self._device.type == "cuda"
        # On a CPU loaders would only compete with the model.
        return loaded_batches(
            source,
            batches,
            micro_batch=config.micro_batch,
            loaders=config.workers if on_gpu else 0,
            pin=on_gpu,
        )

    def _scores(self, source: ClipSource, batch: ModelBatch) -> Tensor:
        """Scores [B, D] float32."""
        arguments = model_arguments(batch, source.pixels, self._device)
        half = self._config.precision == "bfloat16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            scores: Tensor = self.reward(*arguments, self._tokens)
        return scores


def _rate(update: int, config: JudgeTrainingConfig) -> float:
    """Share of the learning rate: a linear rise, then constant or half a cosine down to 0."""
    warmup = math.ceil(config.warmup_share * config.updates)
    if update < warmup:
        return (update + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (update - warmup) / max(1, config.updates - warmup)))


def _copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
