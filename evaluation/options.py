"""What the report leaves open about its evaluation and what is chosen here, for every result."""

from dataclasses import dataclass

from longtake.evaluation.mos_protocol import ProtocolConfig
from longtake.evaluation.tables import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenOption:
    """One choice that the report does not make."""

    key: str
    """Letter a to g."""
    name: str
    """Name of the option."""
    value: str
    """What is used."""
    reason: str
    """Why, in a clause."""


def open_options(
    protocol: ProtocolConfig | None = None,
    *,
    human_weight: float = 2.0,
    automatic_weight: float = 1.0,
) -> tuple[OpenOption, ...]:
    """The seven options with the values in use.

    Args:
        protocol: the rule of the raters; None shows the default rule.
        human_weight: weight of the raters in the merged score.
        automatic_weight: weight of the judge in the merged score.
    """
    rule = protocol or ProtocolConfig()
    whole = "the whole video" if rule.scope == "video" else "the dimension concerned"
    rows = (
        (
            "escalation_threshold",
            f"range of the first {rule.first_raters} scores >= {rule.threshold:g}",
            "the report says `significant` without a number; on a 5-point scale a range of 1 "
            "would send most videos back",
        ),
        (
            "escalation_scope",
            f"any dimension sends {whole} to {rule.extra_raters} more raters",
            "the report speaks of reassessing the video",
        ),
        (
            "merge_level",
            f"{human_weight:g}:{automatic_weight:g} human:automatic for each model and dimension, "
            "judge calibrated to the 1-5 scale",
            "the prompts of raters and judge are disjoint, so there is no video to merge on",
        ),
        (
            "dimensions_without_judge",
            "human score alone, no merged score",
            "the judge scores text alignment, visual and motion quality only",
        ),
        (
            "judge_correlation",
            "Pearson, Spearman and Kendall at sample, prompt and model level, with intervals",
            "the report gives one number without kind and level",
        ),
        (
            "gsb_formula",
            "net (G-B)/(G+S+B) and ratio (G+S)/(B+S), both with the counts; per pair the majority "
            "of raters, no majority = same",
            "both formulas are in use, and the report gives counts without S",
        ),
        (
            "prompt_length",
            "words split at white space",
            "the report gives word counts without a rule",
        ),
    )
    return tuple(
        OpenOption(key=key, name=name, value=value, reason=reason)
        for key, (name, value, reason) in zip("abcdefg", rows, strict=True)
    )


def options_table(options: tuple[OpenOption, ...]) -> Table:
    """The options as a table."""
    return Table(
        name="options",
        title="What the report leaves open, and what is used here",
        columns=("option", "value", "why"),
        rows=tuple((f"{item.key}. {item.name}", item.value, item.reason) for item in options),
    )
