"""Multi-reward GRPO for a flow-matching video model: Algorithm 1 of the report, top to bottom.

Read with ``rollout.py`` (l.5-16) and ``loss.py`` (l.28-38); ``docs/grpo.md`` maps every line.
Different from the printed algorithm: the loss is minimised with the sign that raises rewards, and
because the members of a group share x_{t'}, the update needs one policy and one reference forward
per group.
"""

import json
import math
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longtake.core.checkpoint import Checkpoint
from longtake.core.lora import load_lora_state_dict, lora_parameters, lora_state_dict, save_lora
from longtake.core.video import to_uint8
from longtake.grpo.advantage import AdvantageOutput, advantages
from longtake.grpo.config import GRPOConfig
from longtake.grpo.loss import LossStats, policy_cotangent
from longtake.grpo.plan import PromptTask, Ranks, plan_update
from longtake.grpo.rollout import GroupRollout, Policy, Rollout
from longtake.rewards.contract import VideoBatch
from longtake.rewards.suite import RewardSuite, SuiteScores
from longtake.runtime.errors import CheckpointError

Record = dict[str, float | int | None]


class NonFinite(ArithmeticError):
    """A gradient is NaN or infinite; the weights before the update are intact."""


@dataclass(kw_only=True)
class Update:
    """Everything one update saw, for the log and the pictures."""

    record: Record
    """Metrics of the update, equal for equal seeds."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock of the phases."""
    tasks: list[PromptTask] = field(default_factory=list)
    """This rank's groups."""
    videos: list[Tensor] = field(default_factory=list)
    """uint8 [G, T, 3, H, W] of each group."""
    rewards: Tensor | None = None
    """[K, P, G], NaN where unscored."""


@dataclass(kw_only=True, slots=True)
class Counters:
    """Totals over the finished updates of all ranks.

    An evaluation is one forward of one sample with all its guidance branches; *naive* is what G
    whole trajectories per prompt and one forward per sample would have taken.
    """

    updates: int = 0
    rollout: float = 0.0
    rollout_naive: float = 0.0
    train_forwards: int = 0
    train_forwards_naive: int = 0
    unscored: dict[str, int] = field(default_factory=dict)
    """Reward -> samples without a score."""


class GRPOTrainer:
    """Aligns the adapter of a checkpoint to a suite of rewards.

    ``model`` has an injected, trainable LoRA; ``check_stop`` is called between groups and may raise
    to end the update unfinished.
    """

    def __init__(
        self,
        model: Checkpoint,
        suite: RewardSuite,
        prompts: Sequence[str],
        config: GRPOConfig,
        ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self.suite, self.prompts, self.ranks = config, suite, prompts, ranks
        self.model, self.check_stop = model, check_stop
        self.policy = Policy(model, config)
        sigmas = model.sigmas(config.rollout.num_steps, config.rollout.shift)
        self.rollout = Rollout(self.policy, sigmas, config, model.device)
        # The base is frozen: the reference policy is the model without these.
        self.parameters = lora_parameters(model.dit)
        o = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=o.learning_rate,
            betas=(o.adam_beta1, o.adam_beta2),
            eps=o.adam_epsilon,
            weight_decay=o.weight_decay,
        )
        # An exponential average of the adapter's weights; None when the run keeps none.
        self.average: dict[str, Tensor] | None = None
        if o.ema_decay is not None:
            self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.counters = Counters(unscored=dict.fromkeys(suite.names, 0))

    def update(self) -> Update:
        """One pass of Algorithm 1's loop (l.3-40)."""
        clock = _Clock()
        tasks = self.ranks.mine(
            plan_update(self.config, self.prompts, self.counters.updates)
        )  # l.3

        groups = [self._sample(task) for task in tasks]  # l.4-16
        clock.lap("rollout_s")
        videos = [self._decode(group) for group in groups]
        clock.lap("decode_s")
        scores = [self._score(g.task, v) for g, v in zip(groups, videos, strict=True)]  # l.17
        reward_KPG = torch.empty(len(self.suite.names), 0, self.config.num_generations)
        if scores:  # a rank may have no group
            reward_KPG = torch.stack([s.scores for s in scores], dim=1)
        clock.lap("reward_s")

        advantage = advantages(  # l.19-30
            reward_KPG,
            torch.tensor([self.suite.weights[name] for name in self.suite.names]),
            scale=self.config.advantage.scale,
            aggregation=self.config.advantage.aggregation,
        )
        for _ in range(self.config.num_iterations):
            pairs = zip(groups, advantage.advantage_PG.unbind(0), strict=True)
            stats = [self._backward(group, advantage_G) for group, advantage_G in pairs]  # l.31-39
            grad_norm = self._step()  # l.40
        clock.lap("update_s")

        self._count(tasks, scores)
        record = self._record(tasks, reward_KPG, advantage, stats, videos, grad_norm)
        self.counters.updates += 1
        return Update(
            record=record, seconds=clock.laps, tasks=tasks, videos=videos, rewards=reward_KPG
        )

    def _sample(self, task: PromptTask) -> GroupRollout:
        self.check_stop()
        size = (self.config.rollout.num_frames, task.height, task.width)
        return self.rollout.sample(task, self.model.vae.latent_shape(*size))

    @torch.no_grad()
    def _decode(self, group: GroupRollout) -> Tensor:
        self.check_stop()
        video = self.model.vae.decode(group.z, chunk=self.config.rollout.decode_chunk)
        if not bool(video.isfinite().all()):
            return video  # the suite leaves such samples unscored, with the reason
        return to_uint8(video)

    def _score(self, task: PromptTask, video: Tensor) -> SuiteScores:
        prompts = [task.prompt] * len(video)
        return self.suite.score(
            VideoBatch(video=video, prompts=prompts, fps=self.config.rollout.fps)
        )

    def _backward(self, group: GroupRollout, advantage_G: Tensor) -> LossStats:
        """Add one group's gradient: one policy forward and backward, one reference forward."""
        self.check_stop()
        task, k, loss = group.task, group.coefficients, self.config.loss
        v_ref = None
        if loss.beta > 0:
            v_ref = self.policy.reference_velocity(group.x, k.t, task.prompt)
        v = self.policy.trained_velocity(group.x, k.t, task.prompt)
        members = range(self.config.num_generations)
        cotangent, stats = policy_cotangent(
            (self.rollout.member_noise(task, g, group.x.shape) for g in members),
            advantage_G,
            group.v_old,
            v,
            v_ref,
            k,
            epsilon=loss.epsilon,
            policy_weight=loss.policy_weight,
            beta=loss.beta,
            ratio=loss.ratio,
        )
        v.backward(cotangent / self.config.prompts_per_update)  # l.39
        return stats

    def _step(self) -> float:
        """Sum gradients over the ranks, clip, and step (l.40); the norm before clipping."""
        gradients = []
        for p in self.parameters.values():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            gradients.append(p.grad)
        # A rank without groups takes part with zeros, or the others would wait for ever.
        self.ranks.sum_(gradients)
        norm = nn.utils.clip_grad_norm_(
            self.parameters.values(), self.config.optimizer.max_grad_norm
        )
        # After the all-reduce, so that all ranks see the same norm and stop together.
        if not bool(norm.isfinite()):
            self.optimizer.zero_grad()
            raise NonFinite(f"gradient norm is {float(norm)} in update {self.counters.updates}")
        # Set in every step, not by a scheduler whose state would have to be saved.
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            decay = self.config.optimizer.ema_decay or 0.0
            for name, p in self.parameters.items():
                self.average[name].lerp_(p.detach(), 1 - decay)
        return float(norm)

    def _learning_rate(self) -> float:
        o = self.config.optimizer
        return o.learning_rate * min(1.0, (self.counters.updates + 1) / max(1, o.warmup_updates))

    def _count(self, tasks: Sequence[PromptTask], scores: Sequence[SuiteScores]) -> None:
        """Add this update's evaluations and failures, over all ranks."""
        steps, size = self.config.rollout.num_steps, self.config.num_generations
        shared = self.config.sde.share_prefix
        # The reference is evaluated only when the KL has a weight.
        per_group = (1 + (self.config.loss.beta > 0)) * self.config.num_iterations
        local: dict[str, Any] = {
            "rollout": sum(
                rollout_evaluations(steps, t.t_index, size, shared=shared) for t in tasks
            ),
            "groups": len(tasks),
            "unscored": [s.unscored() for s in scores],
        }
        for part in self.ranks.gather(local):
            self.counters.rollout += part["rollout"]
            self.counters.rollout_naive += part["groups"] * size * steps
            self.counters.train_forwards += part["groups"] * per_group
            self.counters.train_forwards_naive += part["groups"] * per_group * size
            for counts in part["unscored"]:
                for name, n in counts.items():
                    self.counters.unscored[name] += n

    def _record(
        self,
        tasks: Sequence[PromptTask],
        reward_KPG: Tensor,
        advantage: AdvantageOutput,
        stats: Sequence[LossStats],
        videos: Sequence[Tensor],
        grad_norm: float,
    ) -> Record:
        """One line of metrics.jsonl over all ranks, with TRL's names where TRL has them.

        No clock enters here: two runs with one seed write the same lines.
        """
        local = {
            "t": [task.t_index for task in tasks],
            "rewards": reward_KPG.tolist(),
            "stats": list(stats),
            "probes": [pixel_probes(video) for video in videos],
        }
        parts = self.ranks.gather(local)
        losses: list[LossStats] = [s for part in parts for s in part["stats"]]
        probes = [p for part in parts for p in part["probes"]]
        record: Record = {"update": self.counters.updates}
        totals: list[float] = []
        zero_std = []
        for k, name in enumerate(self.suite.names):
            groups = [torch.tensor(row) for part in parts for row in part["rewards"][k]]
            record[f"rewards/{name}/mean"] = mean(v for row in groups for v in row.tolist())
            record[f"rewards/{name}/std"] = mean(_std(row) for row in groups)
            record[f"advantages/max_group_std/{name}"] = float(advantage.max_std_K[k])
            record[f"unscored/{name}"] = sum(int((~row.isfinite()).sum()) for row in groups)
            zero_std += [_std(row) == 0 for row in groups]
            value = record[f"rewards/{name}/mean"]
            totals.append(math.nan if value is None else self.suite.weights[name] * value)
        record["reward"] = math.fsum(totals) if all(map(math.isfinite, totals)) else None
        record["frac_reward_zero_std"] = mean(map(float, zero_std))
        record["loss"] = mean(s.loss for s in losses)
        record["policy_loss"] = mean(s.policy_loss for s in losses)
        record["kl"] = mean(s.kl for s in losses if s.kl is not None)
        record["ratio/mean"] = mean(s.ratio_mean for s in losses)
        record["ratio/min"] = min((s.ratio_min for s in losses), default=None)
        record["ratio/max"] = max((s.ratio_max for s in losses), default=None)
        record["clip_ratio/region_mean"] = mean(s.clip_fraction for s in losses)
        record["grad_norm"] = grad_norm
        record["learning_rate"] = self._learning_rate()
        record["sde/t_index"] = mean(float(t) for part in parts for t in part["t"])
        for name in ("saturation", "luminance", "frame_difference"):
            record[f"hacking/{name}"] = mean(p[name] for p in probes)
        return record

    def save(self, folder: Path) -> None:
        """Write all that a bitwise resume needs into an empty folder.

        No generator state: all random draws are named by (seed, update, slot).
        """
        save_lora(self.model.dit, folder / "lora", layout="peft")
        state = {
            "adapter": lora_state_dict(self.model.dit),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.average is not None:
            state["average"] = self.average
        torch.save(state, folder / "state.pt")
        text = json.dumps(asdict(self.counters), indent=2) + "\n"
        (folder / "counters.json").write_text(text, encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Restore what :meth:`save` wrote; a CheckpointError when it is missing or damaged."""
        try:
            state = torch.load(folder / "state.pt", self.model.device, weights_only=True)
            counters = json.loads((folder / "counters.json").read_text(encoding="utf-8"))
            load_lora_state_dict(self.model.dit, state["adapter"])
            self.optimizer.load_state_dict(state["optimizer"])
            for name, mean_ in (self.average or {}).items():
                mean_.copy_(state["average"][name])
            self.counters = Counters(**counters)
        except (OSError, ValueError, LookupError, TypeError, RuntimeError, *_DAMAGE) as error:
            raise CheckpointError(
                f"the saved state cannot be read: {error}",
                received=str(folder),
                expected="state.pt and counters.json as a run writes them",
                remedy="delete this folder to resume from the one before it",
            ) from error

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the adapter has its averaged weights, when the run keeps them."""
        if self.average is None:
            yield
            return
        current = lora_state_dict(self.model.dit)
        load_lora_state_dict(self.model.dit, self.average)
        try:
            yield
        finally:
            load_lora_state_dict(self.model.dit, current)


#: What reading a damaged archive raises besides the usual errors.
_DAMAGE = (EOFError, pickle.UnpicklingError)


def rollout_evaluations(num_steps: int, t_index: int, group_size: int, *, shared: bool) -> int:
    """Evaluations to sample one group whose critical step is ``t_index`` (0-based).

    Shared: the prefix and the velocity at t' once, then G suffixes; naive: G whole trajectories.
    """
    if not shared:
        return group_size * num_steps
    return (t_index + 1) + group_size * (num_steps - t_index - 1)


def mean_rollout_evaluations(config: GRPOConfig) -> float:
    """Mean over t' ~ U{0..T'-1} of :func:`rollout_evaluations`; 53.5 at T=16, T'=6, G=4."""
    steps, size, sde = config.rollout.num_steps, config.num_generations, config.sde
    counts = [
        rollout_evaluations(steps, t, size, shared=sde.share_prefix)
        for t in range(sde.num_sde_steps)
    ]
    return sum(counts) / len(counts)


def pixel_probes(video: Tensor) -> dict[str, float]:
    """Saturation, luminance and frame difference of clips [G, T, 3, H, W], each in [0, 1].

    Cheap statistics whose drift is the first sign of a hacked reward (section 3.3.2, Fig. 9).
    """
    pixels = video.float() / 255 if video.dtype == torch.uint8 else video.float()
    spread = pixels.amax(2) - pixels.amin(2)
    return {
        "saturation": float(spread.mean()),
        "luminance": float(pixels.mean()),
        "frame_difference": float(pixels.diff(dim=1).abs().mean()) if pixels.shape[1] > 1 else 0.0,
    }


def mean(values: Iterable[float]) -> float | None:
    """Mean of the finite values; None if there are none."""
    finite = [v for v in values if math.isfinite(v)]
    return math.fsum(finite) / len(finite) if finite else None


def _std(row: Tensor) -> float:
    finite = row[row.isfinite()].double()
    return float(finite.std(correction=0)) if len(finite) > 1 else math.nan


class _Clock:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now
