"""Multi-reward GRPO for a flow-matching video model: Algorithm 1 of the report, top to bottom.

Different from the printed algorithm: the loss is minimised with the sign that raises rewards, and
because the members of a group share x_{t'}, the update needs one policy and one reference forward
per group (grpo/loss.py).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from longtake.core.checkpoint import Checkpoint
from longtake.core.flow import sigmas
from longtake.core.lora import lora_parameters
from longtake.core.video import to_uint8
from longtake.grpo.advantage import AdvantageOutput, advantages
from longtake.grpo.config import GRPOConfig
from longtake.grpo.loss import LossStats, policy_cotangent
from longtake.grpo.metrics import update_record
from longtake.grpo.nfe import rollout_evaluations
from longtake.grpo.plan import PromptTask, plan_update
from longtake.grpo.policy import Policy
from longtake.grpo.ranks import Ranks
from longtake.grpo.rollout import GroupRollout, Rollout
from longtake.grpo.state import AdapterAverage, Counters
from longtake.rewards.contract import VideoBatch
from longtake.rewards.suite import RewardSuite, SuiteScores


class NonFinite(ArithmeticError):
    """A loss or gradient is NaN or infinite; the weights before the update are intact."""


@dataclass(kw_only=True)
class Update:
    """Everything one update saw, for the log and the pictures."""

    record: dict[str, float | int | None]
    """Metrics of the update, equal for equal seeds."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock of the phases."""
    tasks: list[PromptTask] = field(default_factory=list)
    """This rank's groups."""
    videos: list[Tensor] = field(default_factory=list)
    """uint8 [G, T, 3, H, W] of each group."""
    rewards: Tensor | None = None
    """[K, P, G], NaN where unscored."""


class GRPOTrainer:
    """Aligns the adapter of a checkpoint to a suite of rewards.

    Args:
        checkpoint: model with an injected, trainable LoRA.
        suite: training rewards.
        prompts: training prompts.
        config: settings.
        ranks: this process among the run's processes.
        check_stop: called between groups; may raise to end the update unfinished.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        suite: RewardSuite,
        prompts: Sequence[str],
        config: GRPOConfig,
        ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self.suite, self.prompts, self.ranks = config, suite, prompts, ranks
        self.vae, self.check_stop = checkpoint.vae, check_stop
        self.device = checkpoint.device
        self.policy = Policy(checkpoint.dit, checkpoint.text, config)
        self.sigmas = sigmas(config.rollout.num_steps, config.rollout.shift or checkpoint.shift)
        self.rollout = Rollout(self.policy, self.sigmas, config, self.device)
        self.parameters = lora_parameters(checkpoint.dit)
        o = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=o.learning_rate,
            betas=(o.adam_beta1, o.adam_beta2),
            eps=o.adam_epsilon,
            weight_decay=o.weight_decay,
        )
        self.average = None if o.ema_decay is None else AdapterAverage(self.parameters, o.ema_decay)
        self.counters = Counters(unscored=dict.fromkeys(suite.names, 0))

    def update(self) -> Update:
        """One pass of Algorithm 1's loop (l.3-40).

        Raises:
            NonFinite: the update would have made the weights NaN; they are unchanged.
        """
        clock = _Clock()
        tasks = self.ranks.mine(plan_update(self.config, self.prompts, self.counters.updates))

        groups = [self._sample(task) for task in tasks]  # l.4-16
        clock.lap("rollout_s")
        videos = [self._decode(group) for group in groups]
        clock.lap("decode_s")
        scores = [self._score(g.task, v) for g, v in zip(groups, videos, strict=True)]  # l.17
        reward_KPG = self._stack(scores)
        clock.lap("reward_s")

        advantage = advantages(  # l.19-30
            reward_KPG,
            torch.tensor([self.suite.weights[name] for name in self.suite.names]),
            scale=self.config.advantage.scale,
            aggregation=self.config.advantage.aggregation,
        )
        for _ in range(self.config.num_iterations):
            stats = [self._backward(g, a) for g, a in self._pairs(groups, advantage)]  # l.31-39
            grad_norm = self._step()  # l.40
        clock.lap("update_s")

        self._count(tasks, scores)
        record = update_record(
            self.counters.updates,
            tasks,
            reward_KPG,
            self.suite,
            advantage,
            stats,
            videos,
            grad_norm,
            self._learning_rate(),
            self.ranks,
        )
        self.counters.updates += 1
        return Update(
            record=record, seconds=clock.laps, tasks=tasks, videos=videos, rewards=reward_KPG
        )

    def _sample(self, task: PromptTask) -> GroupRollout:
        self.check_stop()
        size = (self.config.rollout.num_frames, task.height, task.width)
        return self.rollout.sample(task, self.vae.latent_shape(*size))

    @torch.no_grad()
    def _decode(self, group: GroupRollout) -> Tensor:
        self.check_stop()
        video = self.vae.decode(group.z, chunk=self.config.rollout.decode_chunk)
        if not bool(video.isfinite().all()):
            return video  # the suite leaves such samples unscored, with the reason
        return to_uint8(video)

    def _score(self, task: PromptTask, video: Tensor) -> SuiteScores:
        prompts = [task.prompt] * len(video)
        return self.suite.score(
            VideoBatch(video=video, prompts=prompts, fps=self.config.rollout.fps)
        )

    def _stack(self, scores: Sequence[SuiteScores]) -> Tensor:
        """Rewards [K, P, G] of this rank's groups."""
        if not scores:
            return torch.empty(len(self.suite.names), 0, self.config.num_generations)
        return torch.stack([s.scores for s in scores], dim=1)

    @staticmethod
    def _pairs(
        groups: Sequence[GroupRollout], advantage: AdvantageOutput
    ) -> list[tuple[GroupRollout, Tensor]]:
        return list(zip(groups, advantage.advantage_PG.unbind(0), strict=True))

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
        v.backward(cotangent / self.config.prompts_per_update)
        return stats

    def _step(self) -> float:
        """Sum gradients over the ranks, clip, and step; returns the norm before clipping."""
        gradients = []
        for p in self.parameters.values():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            gradients.append(p.grad)
        self.ranks.sum_(gradients)
        norm = nn.utils.clip_grad_norm_(
            self.parameters.values(), self.config.optimizer.max_grad_norm
        )
        if not bool(norm.isfinite()):
            self.optimizer.zero_grad()
            raise NonFinite(f"gradient norm is {float(norm)} in update {self.counters.updates}")
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.parameters)
        return float(norm)

    def _learning_rate(self) -> float:
        o = self.config.optimizer
        return o.learning_rate * min(1.0, (self.counters.updates + 1) / max(1, o.warmup_updates))

    def _count(self, tasks: Sequence[PromptTask], scores: Sequence[SuiteScores]) -> None:
        """Add this update's evaluations and failures, over all ranks."""
        steps, size = self.config.rollout.num_steps, self.config.num_generations
        shared = self.config.sde.share_prefix
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
