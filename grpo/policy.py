"""The policy's velocity under guidance: one function for rollout, update and reference.

Rollout and update must see the same numbers for the same input (the first update's ratio is
exactly 1), so both go through :meth:`Policy.velocity` with the same batch shape.
"""

import torch
from torch import Tensor, nn

from longtake.core.guidance import GuidanceMode, Text, guided_velocity
from longtake.core.lora import adapters_off
from longtake.core.text import TextEncoder
from longtake.grpo.config import GRPOConfig


class Policy:
    """A DiT with its adapter, the text encoder, and the guidance settings.

    Args:
        dit: the transformer with an injected LoRA.
        text: text encoder; embeddings are cached per prompt.
        config: the run's settings.
    """

    def __init__(self, dit: nn.Module, text: TextEncoder, config: GRPOConfig) -> None:
        self.dit, self.text, self.config = dit, text, config
        self._uncond: Text | None = None

    @property
    def mode(self) -> GuidanceMode:
        """Guidance rule of the rollout."""
        mode: GuidanceMode = self.config.rollout.cfg  # type: ignore[assignment]
        return mode

    @property
    def branches(self) -> int:
        """Samples per evaluation: 2 with guidance, else 1."""
        return 1 if self.mode == "none" or self.config.rollout.guidance_scale == 1 else 2

    def velocity(self, x: Tensor, t: float, prompt: str) -> Tensor:
        """Guided velocity [B, C, T, H, W] of samples that share a prompt; keeps gradients."""
        return self._guided(x, t, prompt, self.mode)

    def trained_velocity(self, x: Tensor, t: float, prompt: str) -> Tensor:
        """The velocity whose log-ratio is trained: guided, or the conditional branch alone."""
        mode = self.mode if self.config.loss.train_cfg else "none"
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
