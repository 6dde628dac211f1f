"""Two ranks and one rank make the same run: prompts, critical steps, samples, advantages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from longtake.grpo.config import GRPOConfig
from longtake.grpo.plan import Ranks
from longtake.runtime.config import config_to_yaml

SCRIPT = """
import sys
from pathlib import Path
from longtake.grpo.config import GRPOConfig
from longtake.grpo.run import run_grpo
from longtake.runtime.config import merge_config
run_grpo(merge_config(GRPOConfig(), Path(sys.argv[1])), output_dir=Path(sys.argv[2]))
"""


def launch(config: Path, out: Path, script: Path, num_ranks: int) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={num_ranks}", str(script), str(config), str(out)]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_two_ranks_equal_one(micro_config: GRPOConfig, tmp_path: Path) -> None:
    config = micro_config.replace(num_updates=2)
    path, script = tmp_path / "config.yaml", tmp_path / "script.py"
    path.write_text(config_to_yaml(config), encoding="utf-8")
    script.write_text(SCRIPT, encoding="utf-8")
    one = launch(path, tmp_path / "one", script, 1)
    two = launch(path, tmp_path / "two", script, 2)
    # Before any update the policies are equal, so everything sampled and scored is bitwise equal.
    exact = [key for key in one[0] if key.startswith(("rewards/", "advantages/", "sde/", "un"))]
    assert len(exact) >= 17
    for key in exact:
        assert one[0][key] == two[0][key], key
    # Gradients are summed in another order from then on.
    for key, value in one[1].items():
        assert value == pytest.approx(two[1][key], rel=1e-3, abs=1e-6), key
    assert (tmp_path / "two" / "summary.json").exists()
    summaries = [json.loads((tmp_path / n / "summary.json").read_text()) for n in ("one", "two")]
    assert summaries[0]["nfe"] == summaries[1]["nfe"]


def test_shares_cover_the_list_in_order() -> None:
    for size in (1, 2, 3, 5, 9):
        shares = [Ranks(rank=r, size=size).mine(list(range(7))) for r in range(size)]
        assert [i for share in shares for i in share] == list(range(7))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
