"""Which parameters each optimiser trains, and what a step of Muon is."""

import torch
from torch import nn

from longtake.evaluation.judge.optimizers import make_optimizers


def names(name: str) -> list[set[str]]:
    parameters = {
        "model.language_model.layers.0.mlp.up_proj.weight": nn.Parameter(torch.randn(6, 4)),
        "model.language_model.layers.0.norm.weight": nn.Parameter(torch.randn(4)),
        "model.visual.patch_embed.proj.weight": nn.Parameter(torch.randn(4, 3, 2, 2, 2)),
        "model.language_model.embed_tokens.weight": nn.Parameter(torch.randn(9, 4)),
        "rm_head.weight": nn.Parameter(torch.randn(3, 4)),
        "reward_rows": nn.Parameter(torch.randn(3, 4)),
    }
    owner = {id(parameter): key for key, parameter in parameters.items()}
    made = make_optimizers(name, parameters.items(), 1e-3, 0.1)
    return [{owner[id(p)] for group in o.param_groups for p in group["params"]} for o in made]


def test_every_parameter_is_trained_once():
    (every,) = names("adamw")
    hidden, rest = names("muon")
    assert hidden == {"model.language_model.layers.0.mlp.up_proj.weight"}
    assert hidden | rest == every and len(every) == 6 and not hidden & rest


def test_a_step_of_muon_is_the_gradient_with_equal_singular_values():
    torch.manual_seed(0)
    for shape in ((24, 40), (40, 24)):
        matrix = nn.Parameter(torch.randn(shape))
        (muon,) = make_optimizers("muon", [("hidden", matrix)], 1e-2, 0.0)
        matrix.grad = torch.randn(shape)
        before = matrix.detach().clone()
        muon.step()
        u, _, vh = torch.linalg.svd(matrix.grad, full_matrices=False)
        step = (before - matrix.detach()) / (1e-2 * 0.2 * 40**0.5)
        inside = u.T @ step @ vh.T  # diagonal in the singular vectors of the gradient
        values = inside.diagonal()
        assert ((values > 0.6) & (values < 1.3)).all()  # what five Newton-Schulz iterations promise
        assert (inside - values.diag()).abs().max() < 0.05  # bfloat16
        assert (step - u @ inside @ vh).abs().max() < 0.02


def test_weights_decay_beside_the_step():
    for name in ("adamw", "muon"):
        matrix = nn.Parameter(torch.ones(4, 4))
        (optimizer,) = make_optimizers(name, [("hidden", matrix)], 0.1, 0.5)
        matrix.grad = torch.zeros(4, 4)
        optimizer.step()
        torch.testing.assert_close(matrix.detach(), torch.full((4, 4), 0.95))
