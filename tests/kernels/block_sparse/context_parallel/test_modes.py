"""Two, three and four ranks against one: forward and all gradients, every mode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.kernels.block_sparse import BlockLayout

Case = dict[str, Any]
MODES = ("ulysses", "ring")
RAGGED = BlockLayout((5, 6, 9), (2, 4, 4))  # 18 blocks of 1 to 32 tokens
SHORT = BlockLayout((3, 6, 9), (2, 4, 4))  # 12
SEGMENTS = BlockLayout((5, 7, 5), (2, 4, 4), segments=(1, 4))  # 12; a condition frame first
UNEVEN = {  # of 12 blocks; some ranks own no queries, others no keys
    2: ([12, 0], [5, 7]),
    3: ([3, 0, 9], [0, 11, 1]),
    4: ([1, 6, 0, 5], [4, 0, 0, 8]),
}
KEPT = torch.rand((12, 18, 18), generator=torch.Generator().manual_seed(5)) < 0.1
ORDINARY = [f"{kind}-{ranks}" for kind in ("ragged", "cross") for ranks in (2, 3, 4)]


def all_cases(make: Callable[..., Case]) -> list[Case]:
    cases = []
    for mode in MODES:
        for ranks in (2, 3, 4):
            common = {"mode": mode, "ranks": ranks}
            name = f"ragged-{ranks}-{mode}"
            cases.append(make(name, **common, layout_q=RAGGED, topk=2, seed=ranks))
            blocks_q, blocks_k = UNEVEN[ranks]
            cases.append(
                make(
                    f"cross-{ranks}-{mode}",
                    **common,
                    layout_q=SHORT,
                    layout_k=SEGMENTS,
                    heads=(4 * ranks, 2 * ranks),
                    blocks_q=blocks_q,
                    blocks_k=blocks_k,
                    topk=2,
                    cdf_p=0.3,
                    scale=0.7,
                    heads_first=False,
                    seed=10 + ranks,
                )
            )
        kept = {"layout_q": RAGGED, "topk": 1, "must_keep": KEPT}
        cases.append(make(f"kept-{mode}", mode=mode, ranks=3, batch=1, **kept))
        bf16 = {"layout_q": RAGGED, "sparsity": 0.6, "dtype": torch.bfloat16}
        cases.append(make(f"bf16-{mode}", mode=mode, ranks=4, **bf16))
        odd = {"layout_q": SHORT, "heads": (10, 5), "topk": 3, "batch": 1}
        cases.append(make(f"odd-{mode}", mode=mode, ranks=4, **odd))
    no_rule = {"layout_q": SHORT, "blocks_q": [12, 0], "blocks_k": [6, 6]}
    cases.append(make("no-rule-ring", mode="ring", ranks=2, **no_rule))
    return cases


@pytest.fixture(scope="module")
def results(
    make_case: Callable[..., Case],
    together: Callable[..., dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Case, Any]]:
    cases = all_cases(make_case)
    found = together(tmp_path_factory.mktemp("ranks"), cases, "gloo", 4)
    return {case["name"]: (case, found[case["name"]]) for case in cases}


Results = dict[str, tuple[Case, Any]]
Alone = Callable[..., dict[str, Tensor]]


@pytest.mark.parametrize("name", [*ORDINARY, "kept"])
def test_ulysses_is_bitwise_one_rank(name: str, results: Results, alone: Alone) -> None:
    case, found = results[f"{name}-ulysses"]
    expected = alone(case)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("name", [*ORDINARY, "kept", "odd"])
def test_the_merged_ring_equals_one_rank(name: str, results: Results, alone: Alone) -> None:
    case, found = results[f"{name}-ring"]
    for key, value in alone(case).items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-12, msg=key)


@pytest.mark.parametrize("mode", MODES)
def test_error_in_bfloat16_stays_that_of_one_rank(
    mode: str, results: Results, alone: Alone
) -> None:
    case, found = results[f"bf16-{mode}"]
    exact, rounded = alone(case, torch.float64), alone(case)
    for key, value in exact.items():
        ours, theirs = ((x[key].double() - value).norm() for x in (found, rounded))
        assert found[key].dtype == rounded[key].dtype
        assert ours <= 1.6 * theirs + 1e-6, (key, float(ours / theirs))


def test_ulysses_refuses_heads_that_the_ranks_do_not_divide(results: Results) -> None:
    _, errors = results["odd-ulysses"]
    assert len(errors) == 4
    for error in errors:
        assert "10 query heads, 5 key heads, 4 ranks" in error
        assert 'mode="ring"' in error


def test_a_wrong_rule_is_refused_on_every_rank(results: Results) -> None:
    _, errors = results["no-rule-ring"]  # rank 1 owns no queries
    assert len(errors) == 2
    assert all("no rule for the block" in error for error in errors)
