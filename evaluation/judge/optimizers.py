"""Optimisers of a judge's regression: AdamW, or Muon for the hidden matrices.

Muon (Jordan et al. 2024; PyTorch's implementation) steps along the orthogonalised momentum of a
matrix. Scaled to the size of AdamW's steps (Liu et al. 2025, arXiv 2502.16982, section 2.2) it
takes AdamW's learning rate.
"""

from collections.abc import Iterable

import torch
from torch import nn

_NOT_HIDDEN = ("embed", "rm_head", "reward_rows")


def make_optimizers(
    name: str,
    parameters: Iterable[tuple[str, nn.Parameter]],
    learning_rate: float,
    weight_decay: float,
) -> list[torch.optim.Optimizer]:
    """Optimisers that together train all parameters.

    Args:
        name: "adamw", or "muon", which trains all matrices but those of embeddings and heads, and
            leaves the rest to AdamW.
        parameters: named parameters of a reward model.
        learning_rate: of all.
        weight_decay: of all, decoupled.
    """
    named = list(parameters)
    hidden = [
        parameter
        for key, parameter in named
        if name == "muon" and parameter.ndim == 2 and not any(part in key for part in _NOT_HIDDEN)
    ]
    ids = set(map(id, hidden))
    rest = [parameter for _, parameter in named if id(parameter) not in ids]
    made: list[torch.optim.Optimizer] = []
    if hidden:
        made.append(
            torch.optim.Muon(
                hidden,
                lr=learning_rate,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    if rest:
        made.append(torch.optim.AdamW(rest, lr=learning_rate, weight_decay=weight_decay))
    return made
