"""Two GPUs against one, with NCCL; nothing may wait for the device.

python -m pytest -q -m gpu2 tests/kernels/block_sparse/context_parallel/test_nccl.py
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.kernels.block_sparse import BlockLayout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.gpu2,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
MODES = ("ulysses", "ring")
ALIGNED = BlockLayout((8, 16, 20))  # 40 blocks of 64 tokens
RAGGED = BlockLayout((7, 15, 18), segments=(2, 5))  # 60 blocks of 6 to 64 tokens
Case = dict[str, Any]
Results = dict[str, tuple[Case, Any]]


@pytest.fixture(scope="module")
def results(
    make_case: Callable[..., Case],
    together: Callable[..., dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Results:
    common = {"ranks": 2, "batch": 1, "dim": 128, "dtype": torch.bfloat16, "device": "cuda"}
    cases = []
    for mode in MODES:
        aligned = {"layout_q": ALIGNED, "heads": (8, 8), "sparsity": 0.85}
        cases.append(make_case(f"aligned-{mode}", mode=mode, **common, **aligned))
        cross = {"layout_q": ALIGNED, "layout_k": RAGGED, "heads": (12, 6), "cdf_p": 0.3}
        cross |= {"blocks_q": [25, 15], "blocks_k": [7, 53], "heads_first": False, "seed": 1}
        cases.append(make_case(f"cross-{mode}", mode=mode, **common, **cross))
        lopsided = {"layout_q": RAGGED, "heads": (8, 2), "topk": 4, "blocks_q": [60, 0]}
        cases.append(make_case(f"lopsided-{mode}", mode=mode, **common, **lopsided, seed=2))
    found = together(tmp_path_factory.mktemp("nccl"), cases, "nccl", 2)
    return {case["name"]: (case, found[case["name"]]) for case in cases}


@pytest.mark.parametrize("name", ["aligned", "cross", "lopsided"])
def test_ulysses_is_bitwise_one_gpu(
    name: str, results: Results, alone: Callable[..., dict[str, Tensor]]
) -> None:
    case, found = results[f"{name}-ulysses"]
    for key, value in alone(case).items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("name", ["aligned", "cross", "lopsided"])
def test_error_of_the_ring_stays_that_of_one_gpu(
    name: str, results: Results, alone: Callable[..., dict[str, Tensor]]
) -> None:
    case, found = results[f"{name}-ring"]
    exact, rounded = alone(case, torch.float64), alone(case)
    for key, value in exact.items():
        ours, theirs = ((x[key].double() - value).norm() for x in (found, rounded))
        assert ours <= 1.6 * theirs + 1e-4 * value.norm(), (key, float(ours / theirs))
