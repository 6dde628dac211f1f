"""The ranks of the advantage test: ``python rank_worker.py FOLDER`` runs four of them.

A process of its own, so that it can fork after importing torch once and before any torch thread
exists; starting four interpreters takes several times longer.
"""

import multiprocessing
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from longtake.grpo.advantage import advantages

WORLD_SIZE = 4
WEIGHTS = (1.0, 0.5, 2.0)
# Uneven on purpose, and the last rank has no prompt.
SPLIT_OVER_4 = ([0, 1, 2], [3], [4, 5, 6, 7], [])
SPLIT_OVER_2 = ([6, 1, 3, 0, 2], [7, 4, 5])


def compute(
    reward: Tensor, rows: list[int], group: dist.ProcessGroup | None = None
) -> dict[str, object]:
    local = reward[:, rows]
    largest = advantages(local, WEIGHTS, group=group)
    batch = advantages(local, WEIGHTS, scale="batch", group=group)
    return {
        "rows": rows,
        "max_group": largest.advantage_PG,
        "max_std": largest.max_std_K,
        "batch": batch.advantage_PG,
    }


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=WORLD_SIZE
    )
    reward = torch.load(folder / "reward.pt")
    pair = dist.new_group([0, 1])
    results = {
        "ranks-4": compute(reward, SPLIT_OVER_4[rank]),
        "ranks-4-reversed": compute(reward, SPLIT_OVER_4[WORLD_SIZE - 1 - rank]),
    }
    if rank < 2:
        results["ranks-2"] = compute(reward, SPLIT_OVER_2[rank], pair)
    torch.save(results, folder / f"rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def main(folder: Path) -> int:
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=run_rank, args=(rank, folder), daemon=True)
        for rank in range(WORLD_SIZE)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=60)
    return sum(process.exitcode != 0 for process in ranks)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
