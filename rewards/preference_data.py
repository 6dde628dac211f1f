"""Preference pairs of a data set: the record, the split by prompt and the order of A and B."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from longtake.rewards.preference_labels import A_WINS, B_WINS, SWAPPED, UNLABELLED
from longtake.rewards.reward_spec import DIMENSIONS
from longtake.rewards.template import prompt_key
from longtake.runtime.errors import UserError
from longtake.runtime.rng import derive_key

OVERALL = "Overall"
"""One judgement of the whole: of image pairs (HPSv3), and a column of VideoGen-RewardBench."""
LABELS = (*DIMENSIONS, OVERALL)
"""Everything that a pair can be labelled in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferencePair:
    """Two clips (or images) of one prompt and who won in each dimension.

    Args:
        prompt: the caption of both.
        path_a: file of A, as the data set names it.
        path_b: file of B.
        labels: dimension -> label; a dimension that is not there was not judged.
        fps_a: playback rate of A in frames per second; None for an image.
        fps_b: playback rate of B.
        num_frames_a: number of frames of A; None when the data set does not tell.
        num_frames_b: number of frames of B.
        mos_a: dimension -> mean opinion score of A, where the data set has them.
        mos_b: the same of B.
        confidence: share of annotators behind the label in [0, 1]; None when not told.
    """

    prompt: str
    path_a: str
    path_b: str
    labels: Mapping[str, int]
    fps_a: float | None = None
    fps_b: float | None = None
    num_frames_a: int | None = None
    num_frames_b: int | None = None
    mos_a: Mapping[str, float] = field(default_factory=dict)
    mos_b: Mapping[str, float] = field(default_factory=dict)
    confidence: float | None = None

    def label(self, dimension: str) -> int:
        """Label of a dimension, UNLABELLED when it was not judged."""
        return self.labels.get(dimension, UNLABELLED)

    def swapped(self) -> "PreferencePair":
        """The same judgement with A and B exchanged."""
        return replace(
            self,
            path_a=self.path_b,
            path_b=self.path_a,
            labels={dimension: SWAPPED[label] for dimension, label in self.labels.items()},
            fps_a=self.fps_b,
            fps_b=self.fps_a,
            num_frames_a=self.num_frames_b,
            num_frames_b=self.num_frames_a,
            mos_a=self.mos_b,
            mos_b=self.mos_a,
        )


def split_by_prompt(
    pairs: Sequence[PreferencePair], validation_share: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Training and validation pairs; all pairs of a prompt go to the same side.

    Pairs of one prompt share clips, so a split by pair would validate on seen clips. A prompt's
    side depends on its text and the seed alone (case and spaces aside): more data do not move it.

    Args:
        pairs: all pairs.
        validation_share: expected share of the prompts in (0, 1).
        seed: names the split.

    Raises:
        UserError: a share outside (0, 1), or one side would be empty.
    """
    if not 0 < validation_share < 1:
        raise UserError(
            "validation share cannot be used",
            received=validation_share,
            expected="a number between 0 and 1",
        )
    threshold = int(validation_share * 2**63)
    sides: tuple[list[PreferencePair], list[PreferencePair]] = ([], [])
    for pair in pairs:
        key = derive_key(seed, "preference split", prompt_key(pair.prompt))
        sides[key < threshold].append(pair)
    if not sides[0] or not sides[1]:
        raise UserError(
            "the split by prompt leaves one side empty",
            received=f"{len(sides[0])} training and {len(sides[1])} validation pairs from "
            f"{len({pair.prompt for pair in pairs})} prompts",
            expected="prompts on both sides",
            remedy="add prompts, or change the validation share or the seed of the split",
        )
    return sides


def balance_order(
    pairs: Sequence[PreferencePair], dimension: str, seed: int
) -> list[PreferencePair]:
    """Exchange A and B so that both win equally often in ``dimension`` (within one pair).

    HPSv3's files name the winner first, and a scorer that is no function of one clip alone could
    read the position. Which pairs are exchanged depends on their content and the seed, not on
    their order; ties and unlabelled pairs are exchanged by chance.

    Returns:
        The pairs in the order received.
    """
    keys = [
        derive_key(seed, "pair order", pair.prompt, *sorted((pair.path_a, pair.path_b)))
        for pair in pairs
    ]
    ranked = sorted(range(len(pairs)), key=lambda i: (keys[i], pairs[i].path_a))
    balanced = list(pairs)
    winner = A_WINS
    for i in ranked:
        label = pairs[i].label(dimension)
        if label in (A_WINS, B_WINS):
            exchange, winner = label != winner, B_WINS if winner == A_WINS else A_WINS
        else:
            exchange = keys[i] % 2 == 1
        if exchange:
            balanced[i] = pairs[i].swapped()
    return balanced
