"""The benchmark of context parallelism runs end to end on two CPU ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bench/bench_context_parallel.py"


def test_modes_that_agree_with_one_rank_are_timed_and_others_refused(tmp_path: Path) -> None:
    output = tmp_path / "results" / "cp.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    # Ulysses is exact; the ring rounds differently.
    options = ["--tiny", "--tolerance", "0", "--output", str(output)]
    done = subprocess.run(
        [*command, str(SCRIPT), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1, done.stderr[-3000:]
    assert done.stdout.count("DISAGREES") == 1
    modes = json.loads(output.read_text())["modes"]
    assert set(modes["ring"]) == {"error"} and 0 < modes["ring"]["error"] <= 1e-6
    one, ulysses = modes["one device"], modes["ulysses"]
    assert ulysses["error"] == 0
    for name in ("forward_s", "forward_backward_s"):
        assert ulysses[f"efficiency_{name}"] == pytest.approx(one[name] / (2 * ulysses[name]))
