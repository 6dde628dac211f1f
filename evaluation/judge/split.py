"""Which rated clips train a judge, which choose its updates and calibrate it, which test it.

A judge is asked about prompts and models that it has never seen, so both are held out. Prompts fall
into three parts by their text; clips of a held-out model are never trained on:

                    training prompts   calibration prompts   test prompts
    other models    train              calibration           test
    held-out models unused             unused                test_new_models
"""

from collections.abc import Sequence
from typing import Literal, get_args

from longtake.evaluation.ratings import Sample
from longtake.rewards.template import prompt_key
from longtake.runtime.errors import UserError
from longtake.runtime.rng import derive_key

Part = Literal["train", "calibration", "test", "test_new_models", "unused"]
PARTS: tuple[Part, ...] = get_args(Part)


def split_clips(
    samples: Sequence[Sample],
    *,
    calibration_share: float,
    test_share: float,
    held_out_models: Sequence[str] = (),
    test_prompts: Sequence[str] = (),
    seed: int = 0,
) -> dict[Part, list[str]]:
    """Ids of the samples of each part.

    The part of a prompt depends on its text and the seed alone (case and spaces aside): more data
    do not move it.

    Args:
        samples: with captions.
        calibration_share: expected share of the prompts in (0, 1).
        test_share: expected share of the prompts in [0, 1); 0 with ``test_prompts`` given.
        held_out_models: models that only test.
        test_prompts: texts that are test prompts whatever the draw.
        seed: names the split.

    Raises:
        UserError: shares out of range, a model that does not exist, or a part that is empty.
    """
    if not (0 < calibration_share < 1 and 0 <= test_share < 1 - calibration_share):
        raise UserError(
            "the shares of the split cannot be used",
            received=f"calibration {calibration_share:g}, test {test_share:g}",
            expected="0 < calibration, 0 <= test, together below 1",
        )
    models = {item.model for item in samples}
    unknown = sorted(set(held_out_models) - models)
    if unknown:
        raise UserError(
            "a held-out model has no rated clip",
            received=", ".join(unknown),
            expected=f"some of: {', '.join(sorted(models))}",
        )
    always = {prompt_key(text) for text in test_prompts}
    parts: dict[Part, list[str]] = {part: [] for part in PARTS}
    for item in samples:
        key = prompt_key(item.caption)
        draw = derive_key(seed, "judge split", key) / 2**63
        new_model = item.model in held_out_models
        part: Part
        if key in always or draw < test_share:
            part = "test_new_models" if new_model else "test"
        elif new_model:
            part = "unused"
        else:
            part = "calibration" if draw < test_share + calibration_share else "train"
        parts[part].append(item.sample)
    empty = [part for part in ("train", "calibration") if not parts[part]]
    if not parts["test"] and not parts["test_new_models"]:
        empty.append("test")
    if empty:
        raise UserError(
            "the split by prompt and model leaves a part empty",
            received=f"{', '.join(empty)} of {len(samples)} clips, "
            f"{len({prompt_key(item.caption) for item in samples})} prompts",
            expected="clips in every part",
            remedy="add prompts, hold out fewer models, or change the shares or the seed",
        )
    return parts
