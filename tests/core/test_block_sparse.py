"""Settings of the block-sparse attention: rules, the published keys, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from longtake.core.block_order import BlockOrders, BSAConfig
from longtake.core.checkpoint import load_dit, save_dit
from longtake.core.dit import DiTConfig, LongCatDiT, enable_bsa
from longtake.runtime.errors import CheckpointError, UserError

CONFIG = DiTConfig(
    hidden_size=32,
    depth=1,
    num_heads=2,
    caption_channels=8,
    adaln_tembed_dim=8,
    frequency_embedding_size=8,
)
PUBLISHED = {"sparsity": 0.9375, "chunk_3d_shape_q": [4, 4, 4], "chunk_3d_shape_k": [4, 4, 4]}


def test_without_a_rule_the_published_one_holds() -> None:
    assert BSAConfig().rule["sparsity"] == 0.9375
    assert BSAConfig.from_published(PUBLISHED).rule == BSAConfig().rule
    for config in (BSAConfig(topk=3), BSAConfig(cdf_p=0.9)):
        assert config.rule["sparsity"] is None
    cdf = BSAConfig.from_published({"cdf_threshold": 0.9})
    assert cdf == BSAConfig(cdf_p=0.9)


@pytest.mark.parametrize(
    "values",
    [
        {"block": (4, 4)},
        {"sparsity": 1.0},
        {"sparsity": 0.5, "topk": 3},
        {"cdf_p": 0.0},
        {"cdf_p": float("nan")},
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(UserError):
        BSAConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "params",
    [
        {**PUBLISHED, "chunk_3d_shape_k": [4, 4, 8]},
        {**PUBLISHED, "window": 3},
        {**PUBLISHED, "sparsity": 1.5},
        {"chunk_3d_shape_q": [4, 4], "chunk_3d_shape_k": [4, 4]},
    ],
)
def test_published_params_that_cannot_be_used_name_themselves(params: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="bsa_params"):
        BSAConfig.from_published(params)


def test_the_checkpoint_decides_and_keeps_its_keys(tmp_path: Path) -> None:
    dit = LongCatDiT(CONFIG).initialize(torch.Generator().manual_seed(0))
    assert dit.block_orders is None
    save_dit(dit, tmp_path)
    file = tmp_path / "config.json"
    written = json.loads(file.read_text())
    assert written["enable_bsa"] is False and written["bsa_params"] is None
    written |= {"enable_bsa": True, "bsa_params": {**PUBLISHED, "sparsity": 0.5}}
    file.write_text(json.dumps(written))
    loaded = load_dit(tmp_path)
    assert loaded.block_orders is not None
    assert loaded.block_orders.config == BSAConfig(sparsity=0.5)
    save_dit(loaded, tmp_path / "again")
    assert load_dit(tmp_path / "again").config == loaded.config

    enable_bsa(loaded, BSAConfig(topk=2))
    assert loaded.block_orders.config == BSAConfig(topk=2)
    enable_bsa(loaded)
    assert loaded.block_orders.config == BSAConfig(sparsity=0.5)


@pytest.mark.parametrize(
    "keys",
    [{"enable_bsa": "yes"}, {"bsa_params": [4]}, {"enable_bsa": True, "bsa_params": {"x": 1}}],
)
def test_a_checkpoint_with_broken_keys_is_refused(keys: dict[str, object], tmp_path: Path) -> None:
    save_dit(LongCatDiT(CONFIG), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    with pytest.raises(CheckpointError, match="bsa"):
        load_dit(tmp_path)


def test_orders_are_kept_for_a_few_grids() -> None:
    orders = BlockOrders(BSAConfig())
    first = orders.find((5, 4, 4), 1, False)
    assert first is not None and orders.find((5, 4, 4), 1, False) is first
    assert first.tokens.segments == (1, 4) and first.keys is first.tokens
    from_cache = orders.find((4, 4, 4), 1, True)
    assert from_cache is not None and from_cache.tokens.grid == (4, 4, 4)
    assert from_cache.keys == first.keys
    assert orders.find((1, 4, 4), 0, False) is None
    for frames in range(2, 2 + orders.MAX_ORDERS):
        orders.find((frames, 2, 2), 0, False)
    assert orders.find((5, 4, 4), 1, False) is not first
