"""GRPO on a model whose checkpoint asks for block-sparse attention."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from longtake.core.checkpoint import Checkpoint
from longtake.core.dit import disable_bsa
from longtake.grpo.config import GRPOConfig
from longtake.grpo.trainer import GRPOTrainer

Load = Callable[[GRPOConfig], Checkpoint]
Make = Callable[..., GRPOTrainer]


@pytest.fixture
def sparse_config(micro_config: GRPOConfig, tmp_path: Path) -> GRPOConfig:
    """The micro model with four blocks of two tokens, half of them attended to."""
    root = shutil.copytree(micro_config.checkpoint, tmp_path / "sparse")
    file = root / "dit" / "config.json"
    shape = [1, 2, 1]
    params = {"sparsity": 0.5, "chunk_3d_shape_q": shape, "chunk_3d_shape_k": shape}
    keys = {"enable_bsa": True, "bsa_params": params}
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    return micro_config.replace(checkpoint=str(root))


def test_updates_stay_on_policy(
    sparse_config: GRPOConfig, load_micro: Load, make_trainer: Make
) -> None:
    trainer = make_trainer(sparse_config, load_micro(sparse_config))
    first, second = trainer.update().record, trainer.update().record
    assert first["ratio/min"] == first["ratio/mean"] == first["ratio/max"] == 1.0
    assert first["kl"] == 0.0 and second["ratio/mean"] == 1.0
    assert second["kl"] is not None and second["kl"] > 0


def test_sparsity_reaches_the_rollout(
    sparse_config: GRPOConfig, load_micro: Load, make_trainer: Make
) -> None:
    losses = []
    for is_dense in (False, True):
        model = load_micro(sparse_config)
        assert model.dit.block_orders is not None
        if is_dense:
            disable_bsa(model.dit)
        losses.append(make_trainer(sparse_config, model).update().record)
    key = next(k for k in losses[0] if "brightness" in k and "mean" in k)
    assert losses[0][key] != losses[1][key]
