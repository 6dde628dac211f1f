"""Base training of the video DiT: multi-task flow matching (sections 3.2 and 4.1, Eqs. 19-21).

One model learns text-to-image, text-to-video, image-to-video and continuation; a task is only a
number of latent frames and of leading condition frames, which come first in time. Every random draw
is named by (seed, step), so a resumed run continues the same sequence.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from longtake.core import flow
from longtake.core.dit import LongCatDiT
from longtake.runtime.config import Config
from longtake.runtime.errors import DivergenceError
from longtake.runtime.rng import derive_key

# Steps between losses of the record.
RECORD_EVERY = 50


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One row of the task mix."""

    name: str
    """t2i, t2v, i2v or vc."""
    num_frames: int
    """Latent frames used, condition frames included; 0 means all."""
    num_cond: int
    """Leading condition latents."""
    probability: float
    """Share of training steps."""


#: Text-to-image, text-to-video, image-to-video, continuation. Shares are ours: unpublished.
TASKS = (
    Task(name="t2v", num_frames=0, num_cond=0, probability=0.7),
    Task(name="t2i", num_frames=1, num_cond=0, probability=0.1),
    Task(name="i2v", num_frames=0, num_cond=1, probability=0.1),
    Task(name="vc", num_frames=0, num_cond=2, probability=0.1),
)


class BaseTrainingConfig(Config):
    """Flow-matching training; values the report does not publish say so."""

    seed: int = 0
    """Names every random draw of the run."""
    num_steps: PositiveInt = 6000
    """Optimizer steps."""
    batch_size: PositiveInt = 48
    """Clips per step (unpublished in the report)."""
    learning_rate: float = 1.5e-3
    """AdamW peak; the report uses 1e-4 to 2e-5 for 13.6B (Table 3), small models take more."""
    final_learning_rate_ratio: float = 0.05
    """Cosine decay ends at this share of the peak; 1 keeps it constant as in section 4.1."""
    warmup_steps: int = 100
    """Linear warm-up, steps."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW moments."""
    weight_decay: float = 0.01
    """AdamW decay of matrices."""
    max_grad_norm: float = 1.0
    """Gradient clipping, L2 norm."""
    ema_decay: float = 0.997
    """Decay of the averaged weights that are shipped."""
    loss_weight: Literal["logit_normal", "none"] = "logit_normal"
    """"logit_normal" (section 4.1: uniform t, logit-normal-like weight) or "none"."""
    reference_shift: float = 3.0
    """Timestep shift at ``reference_tokens`` noisy tokens (the release: 12 at 37,440)."""
    reference_tokens: int = 80
    """Noisy tokens at which ``reference_shift`` holds."""
    max_shift: float = 12.0
    """Upper bound of the resolution-dependent shift."""
    condition_noise: float = 0.1
    """Largest noise level of a continuation condition frame (unpublished; "slight")."""
    caption_dropout: float = 0.1
    """Share of captions replaced by the empty prompt, for classifier-free guidance."""


#: One training batch: latents z [B, C, T, H, W], token ids [B, L] and mask [B, L].
Batch = Mapping[str, Tensor]


def noisy_input(
    z: Tensor, eps: Tensor, t: Tensor, cond_level: Tensor | None, num_cond: int
) -> tuple[Tensor, Tensor]:
    """Network input and per-frame timesteps of one task (Eq. 19).

    Of clean latents and noise [B, C, T, H, W] at times t [B] the input [B, C, T, H, W] and the
    timestep 1000 t [B, T]. ``cond_level`` [B, num_cond] in [0, 1] is the noise of each condition
    frame (section 4.1, "slight"), None for clean ones. They carry t = 0 whatever their noise: at
    inference it is not known either.
    """
    times = t[:, None].expand(-1, z.shape[2])
    if num_cond:
        times = torch.cat((torch.zeros_like(times[:, :num_cond]), times[:, num_cond:]), dim=1)
    x_t = flow.interpolate(z, eps, flow.expand_time(times, z))
    if num_cond and cond_level is not None:
        z_cond, eps_cond = z[:, :, :num_cond], eps[:, :, :num_cond]
        head = flow.interpolate(z_cond, eps_cond, flow.expand_time(cond_level, z_cond))
        x_t = torch.cat((head, x_t[:, :, num_cond:]), dim=2)
    return x_t, flow.TIMESTEP_SCALE * times


def flow_matching_loss(v: Tensor, z: Tensor, eps: Tensor, weight: Tensor, num_cond: int) -> Tensor:
    """Mean of weight [B] times the squared velocity error, over noisy frames only (Eqs. 20, 21)."""
    error = (v - flow.velocity(z, eps))[:, :, num_cond:].float().square()
    return (weight * error.flatten(1).mean(1)).mean()


def learning_rate(peak: float, step: int, steps: int, warmup: int, final: float = 0.0) -> float:
    """Linear warm-up over ``warmup`` steps times a cosine from 1 to ``final`` of the peak."""
    warm = min(1.0, (step + 1) / max(1, warmup))
    progress = step / max(1, steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * warm * (final + (1 - final) * cosine)


def finite(value: Tensor, what: str, step: int) -> float:
    """The number, or DivergenceError naming ``what`` ("gradient of the DiT") and the step."""
    number = float(value)
    if not math.isfinite(number):
        raise DivergenceError(
            f"the training diverged: the {what} is {number} at step {step}",
            expected="a finite number",
            remedy="start again with a lower learning rate; the weights saved before are whole",
        )
    return number


def pick_task(tasks: Iterable[Task], seed: int, step: int) -> Task:
    """The task of one step, drawn with the mix's probabilities from the key (seed, step)."""
    mix = list(tasks)
    draw = derive_key(seed, "task", step) / 2**63 * sum(t.probability for t in mix)
    for task in mix:
        # Subtracted in turn: the shares need not add up to 1.
        draw -= task.probability
        if draw < 0:
            return task
    return mix[-1]


class GraphedStep:
    """Callable ``inputs -> loss`` that leaves gradients in ``parameters``, as one CUDA graph.

    Small models are bound by kernel launches, not by arithmetic (measured in docs/LOG.md); a graph
    removes the launches. On the CPU, or if the step cannot be captured, it runs eagerly with the
    same result.
    ``loss_fn`` maps named tensors of fixed shapes to a scalar loss, without control flow that
    depends on data.
    """

    WARMUP = 3

    def __init__(
        self,
        loss_fn: Callable[[Mapping[str, Tensor]], Tensor],
        parameters: list[nn.Parameter],
    ) -> None:
        self.loss_fn, self.parameters = loss_fn, parameters
        self._can_capture = True
        for p in parameters:
            p.grad = torch.zeros_like(p)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: dict[str, Tensor] = {}
        self._loss: Tensor | None = None

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Compute the loss [] and set ``.grad`` of the parameters."""
        if self._can_capture and self._graph is None and next(iter(inputs.values())).is_cuda:
            self._capture(inputs)
        if self._graph is None:
            return self._eager(inputs)
        for name, value in inputs.items():
            self._inputs[name].copy_(value)
        self._graph.replay()
        assert self._loss is not None
        return self._loss.detach()

    def _eager(self, inputs: Mapping[str, Tensor]) -> Tensor:
        for p in self.parameters:
            assert p.grad is not None
            p.grad.zero_()
        loss = self.loss_fn(inputs)
        loss.backward()
        return loss.detach()

    def _capture(self, inputs: Mapping[str, Tensor]) -> None:
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARMUP):
                self._eager(self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._loss = self._eager(self._inputs)
        except RuntimeError:
            # An operation that synchronises cannot be captured; the eager step is the same step.
            self._can_capture = False
            torch.cuda.synchronize()
            return
        self._graph = graph


class BaseTrainer:
    """Trains a DiT and its text model on batches of latents and captions, on the DiT's device.

    ``text`` maps token ids and mask [B, L] to states; frozen parameters of it stay as they are.
    ``empty_ids`` and ``empty_mask`` [L] are the empty prompt of caption dropout.
    """

    def __init__(
        self,
        dit: LongCatDiT,
        text: nn.Module,
        empty_ids: Tensor,
        empty_mask: Tensor,
        config: BaseTrainingConfig,
        tasks: tuple[Task, ...] = TASKS,
    ) -> None:
        self.dit, self.text, self.config, self.tasks = dit, text, config, tasks
        self.device = next(dit.parameters()).device
        self.empty_ids, self.empty_mask = empty_ids.to(self.device), empty_mask.to(self.device)
        # One module, so that one state holds the model and the text encoder it was trained with.
        self.modules = nn.ModuleDict({"dit": dit, "text": text})
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._parameter_groups(),
            lr=config.learning_rate,
            betas=config.betas,
            fused=self.device.type == "cuda",
        )
        self.ema = [p.detach().clone() for p in self.parameters]
        self.step = 0
        self._graphs: dict[str, GraphedStep] = {}

    @property
    def done(self) -> int:
        """Steps taken."""
        return self.step

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return self.config.num_steps

    def _parameter_groups(self) -> list[dict[str, Any]]:
        # Norms and biases are not decayed: pulling a norm towards 0 switches its layer off.
        matrices = [p for p in self.parameters if p.ndim >= 2]
        vectors = [p for p in self.parameters if p.ndim < 2]
        return [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]

    def train(self, batches: Callable[[int], Batch]) -> Iterator[dict[str, float | str]]:
        """Run from the current step to the end, yielding one record per step.

        ``batches(step)`` returns that step's batch; every 50th record has ``loss`` and
        ``grad_norm``.
        """
        config = self.config
        while self.step < config.num_steps:
            task = pick_task(self.tasks, config.seed, self.step)
            loss = self._graph(task)(self._inputs(batches(self.step), task))
            lr = learning_rate(
                config.learning_rate,
                self.step,
                config.num_steps,
                config.warmup_steps,
                config.final_learning_rate_ratio,
            )
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            norm = nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm)
            # Before the update, so that no saved weight is ever lost. Waiting for the device here
            # delays a few launches of a step of milliseconds.
            grad_norm = finite(norm, "gradient of the DiT", self.step + 1)
            self.optimizer.step()
            self._update_ema()
            self.step += 1
            record: dict[str, float | str] = {"step": self.step, "task": task.name, "lr": lr}
            if self.step % RECORD_EVERY == 0 or self.step == config.num_steps:
                record |= {"loss": float(loss), "grad_norm": grad_norm}
            yield record

    def _graph(self, task: Task) -> GraphedStep:
        if task.name not in self._graphs:
            self._graphs[task.name] = GraphedStep(
                lambda inputs: self._loss(inputs, task), self.parameters
            )
        return self._graphs[task.name]

    def _inputs(self, batch: Batch, task: Task) -> dict[str, Tensor]:
        """Draw every random number of the step from its key, outside the captured graph."""
        config, device = self.config, self.device
        rng = torch.Generator(device).manual_seed(derive_key(config.seed, "step", self.step))
        z = batch["z"].to(device, torch.float32)
        if task.num_frames:
            z = z[:, :, : task.num_frames].contiguous()
        b = z.shape[0]
        drop = torch.rand(b, 1, generator=rng, device=device) < config.caption_dropout
        ids, mask = batch["ids"].to(device), batch["mask"].to(device)
        level = torch.rand(b, max(1, task.num_cond), generator=rng, device=device)
        return {
            "z": z,
            "eps": torch.randn(z.shape, generator=rng, device=device),
            "u": torch.rand(b, generator=rng, device=device),
            "level": level * config.condition_noise,
            "ids": torch.where(drop, self.empty_ids, ids),
            "mask": torch.where(drop, self.empty_mask, mask),
        }

    def _loss(self, inputs: Mapping[str, Tensor], task: Task) -> Tensor:
        config = self.config
        z, eps, u = inputs["z"], inputs["eps"], inputs["u"]
        patch = self.dit.config.patch_size
        frames = z.shape[2] - task.num_cond
        tokens = (frames // patch[0]) * (z.shape[3] // patch[1]) * (z.shape[4] // patch[2])
        shift = flow.resolution_shift(
            tokens,
            reference_shift=config.reference_shift,
            reference_tokens=config.reference_tokens,
            maximum=config.max_shift,
        )
        t = flow.shift_sigma(u, shift)
        # Image-to-video sees a clean frame; only continuation is perturbed (section 4.1).
        level = inputs["level"] if task.name == "vc" else None
        x_t, timestep = noisy_input(z, eps, t, level, task.num_cond)
        use_weight = config.loss_weight == "logit_normal"
        weight = flow.logit_normal_weight(u) if use_weight else torch.ones_like(u)
        use_autocast = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, use_autocast, cache_enabled=False):
            states = self.text(inputs["ids"], inputs["mask"])
            v = self.dit(x_t, timestep, states, inputs["mask"], num_cond_latents=task.num_cond)
        return flow_matching_loss(v, z, eps, weight, task.num_cond)

    @torch.no_grad()
    def _update_ema(self) -> None:
        # Short at first: else the random start would stay in the mean for 1 / (1 - decay) steps.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        get_ema_multi_avg_fn(decay)(self.ema, [p.detach() for p in self.parameters], self.step)

    @torch.no_grad()
    def load_ema(self) -> None:
        """Copy the averaged weights into the modules (the end of training)."""
        for p, mean in zip(self.parameters, self.ema, strict=True):
            p.copy_(mean)

    def state_dict(self) -> dict[str, Any]:
        """Everything a bitwise continuation needs."""
        return {
            "step": self.step,
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.step = int(state["step"])
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        for mine, saved in zip(self.ema, state["ema"], strict=True):
            mine.copy_(saved)
