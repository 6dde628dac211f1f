"""The GRPO loss of one group and its single vector-Jacobian product (Eq. 10, 43-44, 50).

Members of a group share x_{t'}, so they share v_theta(x_{t'}); only their noise differs. The
gradient of the group's loss is therefore one vector-Jacobian product with a cotangent that is a
weighted sum of the members' noises: one forward, one backward, memory independent of G.

The quantity MINIMISED is, averaged over the members i of a group::

    loss = -policy_weight * lambda_policy * r_i * A_i + beta * lambda_kl * KL

Eq. 43 states the objective to maximise; Algorithm 1 l.34-40 prints it with the sign of a loss to
descend, which would lower the rewards.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.grpo.sde import StepCoefficients, kl, log_ratio


@dataclass(frozen=True, slots=True)
class LossStats:
    """Scalars of one group for the log; ``loss`` is policy_loss + beta * lambda_kl * kl."""

    loss: float
    policy_loss: float
    """Weighted policy term, -policy_weight * lambda_policy * mean(r A)."""
    kl: float | None
    """Unweighted, reduced over latent dims like the log-ratio; None without a reference."""
    ratio_mean: float
    ratio_min: float
    ratio_max: float
    clip_fraction: float
    """Share of the members whose policy gradient the clip removed."""


@torch.no_grad()
def policy_cotangent(
    eps: Tensor | Iterable[Tensor],
    advantage_G: Tensor,
    v_old: Tensor,
    v: Tensor,
    v_ref: Tensor | None,
    coefficients: StepCoefficients,
    *,
    epsilon: float | None = None,
    policy_weight: float = 1.0,
    beta: float = 0.0,
    ratio: str = "mean",
) -> tuple[Tensor, LossStats]:
    """Gradient of one group's loss with respect to v, to be passed to ``v.backward(cotangent)``.

    The caller divides by the global number of prompts (Algorithm 1 l.39). All velocities are the
    ones the sampler stepped with, guidance included.

    Args:
        eps: noise of the G members at the critical timestep; [G, ...] or an iterable that
            regenerates one member at a time, so that only one is in memory. Each member has as
            many elements as v.
        advantage_G: weighted total advantages.
        v_old: velocity of the rollout, [1, ...] or [...].
        v: velocity of the policy now, same shape.
        v_ref: velocity of the reference, same shape; None leaves the KL out.
        coefficients: scalars of the critical step.
        epsilon: PPO clip range of the ratio; None (the report names none) does not clip.
        policy_weight: "Policy loss weight" of Table 9.
        beta: "KL loss weight" of Table 9.
        ratio: ``mean``/``sum`` reduce log-ratio and KL over latent dims; ``score`` replaces r by
            log r (exact on-policy), reduced by the mean.

    Returns:
        The cotangent, with shape and dtype of v, and the scalars of the loss.
    """
    wide = torch.promote_types(v.dtype, torch.float32)
    c, reduction = coefficients.c, "sum" if ratio == "sum" else "mean"
    dv = v.detach().to(wide) - v_old.detach().to(wide)
    noise_sum = torch.zeros_like(dv)
    weight_sum = dv.new_zeros(1)
    rows: list[Tensor] = []
    for eps_i, advantage in zip(eps, advantage_G.to(dv).unbind(), strict=True):  # l.28
        noise = eps_i.to(dv).reshape(dv.shape)
        log_r = log_ratio(noise.unsqueeze(0), dv.unsqueeze(0), c, reduction)
        objective, weight, is_clipped = surrogate(log_r, advantage, ratio, epsilon)  # l.34
        noise_sum += weight * noise
        weight_sum += weight
        rows.append(torch.cat([objective, log_r.exp(), is_clipped.to(dv)]))
    # d log r_i / dv = c eps_i - c^2 dv: linear in the noise, so the members' gradients add up to
    # one tensor, whatever G is.
    dims = v.numel() if reduction == "mean" else 1
    scale = policy_weight * coefficients.lambda_policy / (len(rows) * dims)  # l.32
    cotangent = -scale * (c * noise_sum - (c * c) * weight_sum * dv)

    kl_value: float | None = None
    if v_ref is not None:
        dv_ref = v.detach().to(wide) - v_ref.detach().to(wide)
        kl_value = float(kl(dv_ref.unsqueeze(0), c, reduction))  # l.35
        cotangent += (beta * coefficients.lambda_kl * c * c / dims) * dv_ref  # l.33, l.36
    objective_G, ratio_G, clipped_G = torch.stack(rows, dim=1)
    policy_loss = float(-policy_weight * coefficients.lambda_policy * objective_G.mean())
    stats = LossStats(
        loss=policy_loss + beta * coefficients.lambda_kl * (kl_value or 0.0),
        policy_loss=policy_loss,
        kl=kl_value,
        ratio_mean=float(ratio_G.mean()),
        ratio_min=float(ratio_G.min()),
        ratio_max=float(ratio_G.max()),
        clip_fraction=float(clipped_G.mean()),
    )
    return cotangent.to(v.dtype), stats


def surrogate(
    log_r: Tensor, advantage: Tensor, ratio: str, epsilon: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Objective (to maximise) of each member, its derivative in log r, and the clip mask."""
    if ratio == "score":
        # Same value of the gradient as r * A at r = 1, without the factor r away from it.
        return advantage * log_r, advantage, torch.zeros_like(log_r, dtype=torch.bool)
    r = log_r.exp()
    objective = r * advantage
    if epsilon is None:
        return objective, objective, torch.zeros_like(log_r, dtype=torch.bool)
    bounded = r.clamp(1 - epsilon, 1 + epsilon) * advantage
    is_clipped = bounded < objective
    return torch.minimum(objective, bounded), torch.where(is_clipped, 0.0, objective), is_clipped
