"""The Gluon kernels compile for a Hopper GPU that is not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import longtake

pytest.importorskip("triton", reason="Gluon is part of Triton")

SCRIPT = Path(__file__).with_name("compile_gluon.py")
SHARED_MEMORY, RESERVED = 228 * 1024, 1024
"""Bytes of a multiprocessor, and those that every program takes on top."""
PROGRAMS = {"forward_kernel": 4, "query_gradient_kernel": 2, "key_gradient_kernel": 2}
"""Programs that share a multiprocessor."""


@pytest.mark.slow
def test_kernels_compile_and_fit_side_by_side(tmp_path: Path) -> None:
    above = str(Path(longtake.__file__).absolute().parents[1])
    paths = os.pathsep.join((above, os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT)],
        env=os.environ | {"PYTHONPATH": paths, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    records = json.loads(done.stdout)
    assert [record["name"] for record in records] == list(PROGRAMS) * 4
    for record in records:
        assert record["products"] >= 8, "not on the tensor cores of a warpgroup"
        assert PROGRAMS[record["name"]] * (record["shared"] + RESERVED) <= SHARED_MEMORY
