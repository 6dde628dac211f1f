"""Sharing the videos of a plan among processes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from longtake.evaluation.vbench.plan import Plan
from longtake.evaluation.vbench.shards import find_shard
from longtake.runtime.errors import UserError


@pytest.mark.parametrize("world", [1, 2, 3, 7, 60])
def test_shards_are_a_partition(plan: Plan, tmp_path: Path, world: int) -> None:
    shards = [find_shard(plan, tmp_path, rank, world) for rank in range(world)]
    names = [video.name for shard in shards for video in shard.videos]
    assert sorted(names) == sorted(video.name for video in plan.videos)
    sizes = [len(shard.videos) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    assert all(shard.pending == shard.videos for shard in shards)


def test_whole_files_are_done_and_torn_ones_are_not(plan: Plan, clip: Path, tmp_path: Path) -> None:
    done, torn, empty = plan.videos[:3]
    shutil.copy(clip, tmp_path / done.name)
    (tmp_path / torn.name).write_bytes(clip.read_bytes()[:200])
    (tmp_path / empty.name).touch()
    assert find_shard(plan, tmp_path).pending == plan.videos[1:]


def test_a_process_that_is_not_one_of_them(plan: Plan, tmp_path: Path) -> None:
    for rank, world in ((1, 1), (-1, 3), (0, 0)):
        with pytest.raises(UserError, match="no such process"):
            find_shard(plan, tmp_path, rank, world)


def test_dry_runs_need_no_torch() -> None:
    code = (
        "import sys\n"
        "import longtake.evaluation.vbench.shards, longtake.evaluation.vbench.run\n"
        "import longtake.evaluation.vbench.tables, longtake.evaluation.vbench.doctor\n"
        "import longtake.evaluation.vbench.aggregate, longtake.evaluation.vbench.submission\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
