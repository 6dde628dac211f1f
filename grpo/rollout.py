"""Sampling of one group: shared x_T, one stochastic step at t', ODE elsewhere (Algorithm 1 l.5-16).

Before t' the members of a group are one deterministic trajectory, and at t' they share x_{t'},
its velocity and the mean of the step; only the injected noise differs. So the prefix and the
velocity at t' are computed once per prompt, exactly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.core.checkpoint import Checkpoint
from longtake.core.flow import step_pairs
from longtake.core.guidance import GuidanceMode, Text, Velocity, guided_velocity
from longtake.core.lora import adapters_off
from longtake.core.sampler import integrate
from longtake.grpo.config import GRPOConfig
from longtake.grpo.plan import PromptTask
from longtake.grpo.sde import StepCoefficients, sde_step, step_coefficients
from longtake.runtime.rng import normal


class Policy:
    """The velocity under guidance of a model with an injected LoRA.

    Rollout and update must see the same numbers for the same input (the first update's ratio is
    exactly 1), so both call it with the same batch shape.
    """

    def __init__(self, model: Checkpoint, config: GRPOConfig) -> None:
        self.dit, self.text, self.config = model.dit, model.text, config
        self._uncond: Text | None = None

    def velocity(self, x: Tensor, t: float, prompt: str) -> Tensor:
        """Guided velocity [B, C, T, H, W] of samples that share a prompt; keeps gradients."""
        return self._guided(x, t, prompt, self.config.rollout.cfg)

    def trained_velocity(self, x: Tensor, t: float, prompt: str) -> Tensor:
        """The velocity whose log-ratio is trained: guided, or the conditional branch alone."""
        mode = self.config.rollout.cfg if self.config.loss.train_cfg else "none"
        return self._guided(x, t, prompt, mode)

    @torch.no_grad()
    def reference_velocity(self, x: Tensor, t: float, prompt: str) -> Tensor:
        """:meth:`trained_velocity` of the reference policy: the same model, adapters off."""
        with adapters_off(self.dit):
            return self.trained_velocity(x, t, prompt)

    def _guided(self, x: Tensor, t: float, prompt: str, mode: GuidanceMode) -> Tensor:
        if self._uncond is None:
            self._uncond = self.text.encode([""])
        return guided_velocity(
            self.dit,
            x,
            t,
            self.text.encode([prompt]),
            self._uncond,
            self.config.rollout.guidance_scale,
            mode,
            detach_scale=self.config.loss.detach_cfg_zero_scale,
            detach_uncond=self.config.loss.detach_uncond,
        )


@dataclass(frozen=True, kw_only=True)
class GroupRollout:
    """What the update needs of one group: two latents and names of noises, not trajectories."""

    task: PromptTask
    coefficients: StepCoefficients
    """Scalars of the critical step."""
    x: Tensor
    """x_{t'} shared by the group, [1, C, T, H, W] float32."""
    v_old: Tensor
    """Trained velocity at (x_{t'}, t') when the group was sampled, [1, C, T, H, W]."""
    z: Tensor
    """Final latents of the members, [G, C, T, H, W]."""


class Rollout:
    """Samples groups with the current policy along ``sigmas``, a schedule [T + 1] from 1 to 0."""

    def __init__(
        self, policy: Policy, sigmas: Tensor, config: GRPOConfig, device: torch.device
    ) -> None:
        self.policy, self.config, self.device = policy, config, device
        self.steps = step_pairs(sigmas)
        sde = config.sde
        # Only the first T' steps can be critical.
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
        """Sample the G members of one group, each of latent shape (C, T, h, w)."""
        if self.config.sde.share_prefix:
            # No member differs before t', so one prefix serves all of them exactly.
            x, v = self._prefix(task, shape)
            members = [self._branch(x, v, task, g) for g in range(self.config.num_generations)]
        else:  # the naive way, kept to show that sharing changes nothing but the cost
            members = []
            for g in range(self.config.num_generations):
                x, v = self._prefix(task, shape)
                members.append(self._branch(x, v, task, g))
        z = self._suffix(torch.cat(members), task)
        k = self.coefficients[task.t_index]
        # The rollout's own velocity: its ratio to the update's is exactly 1 at first.
        v_old = v
        if not self.config.loss.train_cfg:
            v_old = self.policy.trained_velocity(x, k.t, task.prompt)
        return GroupRollout(task=task, coefficients=k, x=x, v_old=v_old, z=z)

    def _prefix(self, task: PromptTask, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
        """ODE from x_T to x_{t'}, and the velocity there (l.6, l.14)."""
        velocity = self._velocity(task)
        x = integrate(self.initial_noise(task, shape), velocity, self.steps[: task.t_index])
        return x, velocity(x, self.steps[task.t_index][0])

    def _branch(self, x: Tensor, v: Tensor, task: PromptTask, member: int) -> Tensor:
        """The stochastic step of one member (l.12), [1, C, T, h, w]."""
        k = self.coefficients[task.t_index]
        return sde_step(x, v, k.t, k.dt, k.sigma, self.member_noise(task, member, x.shape))

    def _suffix(self, y: Tensor, task: PromptTask) -> Tensor:
        """ODE from t'+1 to 0 for all members (l.14), ``micro_batch`` at a time."""
        velocity, steps = self._velocity(task), self.steps[task.t_index + 1 :]
        chunks = y.split(self.config.rollout.micro_batch)
        return torch.cat([integrate(chunk, velocity, steps) for chunk in chunks])

    def _velocity(self, task: PromptTask) -> Velocity:
        return lambda x, t: self.policy.velocity(x, t, task.prompt)
