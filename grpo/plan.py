"""Which prompts an update sees, and the critical timestep and size of each (Algorithm 1, l.3-7).

A plan is a pure function of (config, prompts, update): every rank computes the whole of it and
works on its share, so nothing depends on how the batch is split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from longtake.grpo.config import GRPOConfig
from longtake.runtime.errors import UserError
from longtake.runtime.rng import derive_key, generator


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTask:
    """One group to sample."""

    update: int
    """Index of the optimizer update."""
    slot: int
    """Position in the update's batch over all ranks; names the group's random draws."""
    prompt_id: int
    """Line of the prompt file, from 0."""
    prompt: str
    """The text."""
    t_index: int
    """Critical step t', an index into the schedule, in [0, T')."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""


def read_prompts(path: Path) -> list[str]:
    """Prompts of a UTF-8 text file, one a line; blank lines are left out.

    Raises:
        UserError: no such file, not UTF-8, or no prompt in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            "the prompt file is not UTF-8 text",
            received=f"{path}, byte {error.start}: {error.reason}",
            expected="one prompt per line, UTF-8",
            remedy="convert it, for example: iconv -f LATIN1 -t UTF-8",
        ) from error
    except OSError as error:
        raise UserError(
            "the prompt file cannot be read",
            received=f"{path}: {error.strerror}",
            expected="a text file with one prompt per line",
            remedy="check the path given by --prompts",
        ) from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError(
            "the prompt file has no prompts",
            received=str(path),
            expected="at least one non-blank line",
            remedy="write one prompt per line",
        )
    return prompts


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> tuple[int, ...]:
    return tuple(torch.randperm(size, generator=generator(seed, "epoch", epoch)).tolist())


def critical_steps(config: GRPOConfig, update: int) -> list[int]:
    """T' of every slot of an update, drawn from the first T' steps.

    ``uniform`` draws each slot alone (Algorithm 1 l.7). ``stratified`` spreads the slots evenly
    over the T' steps and permutes them, which has the same marginal and less variance.
    """
    count, num_steps = config.prompts_per_update, config.sde.num_sde_steps
    draws = [derive_key(config.seed, "t", update, slot) / 2**63 for slot in range(count)]
    if config.sde.timestep_strategy == "uniform":
        return [int(u * num_steps) for u in draws]
    order = torch.randperm(count, generator=generator(config.seed, "strata", update)).tolist()
    return [int((order[i] + u) / count * num_steps) for i, u in enumerate(draws)]


def plan_update(config: GRPOConfig, prompts: Sequence[str], update: int) -> list[PromptTask]:
    """The groups of one update: prompts walk through one permutation of the file per epoch."""
    count = config.prompts_per_update
    sizes = config.rollout.bucket_sizes() or [(config.rollout.height, config.rollout.width)]
    steps = critical_steps(config, update)
    tasks = []
    for slot in range(count):
        epoch, position = divmod(update * count + slot, len(prompts))
        prompt_id = _permutation(config.seed, epoch, len(prompts))[position]
        bucket = derive_key(config.seed, "bucket", update, slot) % len(sizes)
        tasks.append(
            PromptTask(
                update=update,
                slot=slot,
                prompt_id=prompt_id,
                prompt=prompts[prompt_id],
                t_index=steps[slot],
                height=sizes[bucket][0],
                width=sizes[bucket][1],
            )
        )
    return tasks
