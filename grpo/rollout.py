"""Sampling of one group: shared x_T, one stochastic step at t', ODE elsewhere (Algorithm 1 l.5-16).

Before t' the members of a group are one deterministic trajectory, and at t' they share x_{t'},
its velocity and the mean of the step; only the injected noise differs. So the prefix and the
velocity at t' are computed once per prompt, exactly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.core.flow import step_pairs
from longtake.core.guidance import Velocity
from longtake.core.sampler import integrate
from longtake.grpo.config import GRPOConfig
from longtake.grpo.plan import PromptTask
from longtake.grpo.policy import Policy
from longtake.grpo.sde import StepCoefficients, sde_step, step_coefficients
from longtake.runtime.rng import normal


@dataclass(frozen=True, kw_only=True)
class GroupRollout:
    """What the update needs of one group: two latents and names of noises, not trajectories."""

    task: PromptTask
    """Prompt, slot and critical step."""
    coefficients: StepCoefficients
    """Scalars of the critical step."""
    x: Tensor
    """x_{t'} shared by the group, [1, C, T, H, W] float32."""
    v_old: Tensor
    """Trained velocity at (x_{t'}, t') when the group was sampled, [1, C, T, H, W]."""
    z: Tensor
    """Final latents of the members, [G, C, T, H, W]."""


class Rollout:
    """Samples groups with the current policy.

    Args:
        policy: the velocity.
        sigmas: schedule [T + 1] from 1 to 0.
        config: the run's settings.
        device: where to sample.
    """

    def __init__(
        self, policy: Policy, sigmas: Tensor, config: GRPOConfig, device: torch.device
    ) -> None:
        self.policy, self.config, self.device = policy, config, device
        self.steps = step_pairs(sigmas)
        sde = config.sde
        self.coefficients = [
            step_coefficients(sigmas, i, a=sde.a, tau=sde.tau, kind=sde.kind, mode=sde.reweight)
            for i in range(sde.num_sde_steps)
        ]

    def initial_noise(self, task: PromptTask, shape: tuple[int, int, int, int]) -> Tensor:
        """x_T of the group [1, C, T, h, w]; its name is (seed, update, slot)."""
        key = (self.config.seed, "x_T", task.update, task.slot)
        return normal((1, *shape), *key, device=self.device)

    def member_noise(self, task: PromptTask, member: int, shape: torch.Size) -> Tensor:
        """Noise that member injects at t', [1, C, T, h, w]; regenerated, never stored."""
        key = (self.config.seed, "eps", task.update, task.slot, member)
        return normal((1, *shape[1:]), *key, device=self.device)

    @torch.no_grad()
    def sample(self, task: PromptTask, shape: tuple[int, int, int, int]) -> GroupRollout:
        """Sample the G members of one group.

        Args:
            task: prompt and critical step.
            shape: latent shape (C, T, h, w) of one video.
        """
        if self.config.sde.share_prefix:
            x, v = self._prefix(task, shape)
            members = [self._branch(x, v, task, g) for g in range(self.config.num_generations)]
        else:  # the naive way, kept to show that sharing changes nothing but the cost
            members = []
            for g in range(self.config.num_generations):
                x, v = self._prefix(task, shape)
                members.append(self._branch(x, v, task, g))
        y = self._suffix(torch.cat(members), task)
        v_old = v if self.config.loss.train_cfg else self._trained(x, task)
        return GroupRollout(
            task=task, coefficients=self.coefficients[task.t_index], x=x, v_old=v_old, z=y
        )

    def _trained(self, x: Tensor, task: PromptTask) -> Tensor:
        return self.policy.trained_velocity(x, self.steps[task.t_index][0], task.prompt)

    def _prefix(self, task: PromptTask, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
        """ODE from x_T to x_{t'}, and the velocity there."""
        velocity = self._velocity(task)
        x = integrate(self.initial_noise(task, shape), velocity, self.steps[: task.t_index])
        return x, velocity(x, self.steps[task.t_index][0])

    def _branch(self, x: Tensor, v: Tensor, task: PromptTask, member: int) -> Tensor:
        """The stochastic step of one member (Algorithm 1 l.12), [1, C, T, h, w]."""
        k = self.coefficients[task.t_index]
        return sde_step(x, v, k.t, k.dt, k.sigma, self.member_noise(task, member, x.shape))

    def _suffix(self, y: Tensor, task: PromptTask) -> Tensor:
        """ODE from t'+1 to 0 for all members, ``micro_batch`` at a time."""
        velocity, steps = self._velocity(task), self.steps[task.t_index + 1 :]
        chunks = y.split(self.config.rollout.micro_batch)
        return torch.cat([integrate(chunk, velocity, steps) for chunk in chunks])

    def _velocity(self, task: PromptTask) -> Velocity:
        return lambda x, t: self.policy.velocity(x, t, task.prompt)
