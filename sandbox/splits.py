"""Prompt lists of the train and the held-out split.

The splits are disjoint in the combination (shape, colour, motion) of every sprite (``split_of``),
and each prompt states all three, so no held-out prompt can describe a training clip. Pretraining
and GRPO see the train split only.
"""

from longtake.runtime.errors import UserError
from longtake.runtime.rng import derive_key
from longtake.sandbox.captions import caption
from longtake.sandbox.facts import Split, check_split
from longtake.sandbox.scene import sample_scene

SPLIT_ATTRIBUTES = ("colour", "shape", "motion")


def prompts(split: Split, n: int, seed: int = 0) -> list[str]:
    """``n`` distinct prompts of a split; the first k do not depend on n.

    Args:
        split: "train" or "held_out".
        n: number of prompts.
        seed: names the list.

    Raises:
        UserError: unknown split or negative n.
    """
    check_split(split)
    if n < 0:
        raise UserError("negative number of prompts", received=n, expected="0 or more")
    found: dict[str, None] = {}
    index = 0
    while len(found) < n:
        scene = sample_scene(derive_key(seed, "prompts"), index, split)
        key = derive_key(seed, "prompt", index)
        found.setdefault(caption(scene, key, states=SPLIT_ATTRIBUTES))
        index += 1
    return list(found)
