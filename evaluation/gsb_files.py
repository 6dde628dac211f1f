"""From the files of a GSB study to its result: read, check, aggregate."""

from collections.abc import Sequence
from pathlib import Path

from longtake.evaluation.findings import Findings
from longtake.evaluation.gsb import GsbResult, aggregate_gsb, pairs_as_samples, read_answer
from longtake.evaluation.gsb_plan import plan_study, read_key
from longtake.evaluation.model_comparison import ComparisonSettings
from longtake.evaluation.rating_checks import CheckSettings, check_ratings
from longtake.evaluation.study_files import Acceptance, of_study, read_all


def gsb_from_files(
    plan: Path,
    answers: Sequence[Path],
    dimensions: tuple[str, ...],
    settings: ComparisonSettings,
    acceptance: Acceptance | None = None,
) -> GsbResult:
    """Aggregate the answers to a plan.

    Args:
        plan: folder of :func:`longtake.evaluation.gsb_plan.write_plan`.
        answers: logs or sheets, in the order in which they were made.
        dimensions: in the order of the result.
        settings: confidence and resampling.
        acceptance: what of the files counts; its models are not looked at, the key has them.

    Raises:
        UserError: a file that cannot be used, or nothing left to aggregate.
    """
    pairs = read_key(plan)
    found, irregular = read_all(answers, dimensions, read_answer)
    findings = Findings(irregular)
    found = of_study(found, plan_study(pairs), findings)
    rule = acceptance or Acceptance()
    check = CheckSettings(
        dimensions=dimensions,
        scale=(-1.0, 1.0),
        contradictions=rule.contradictions,
        exclude_raters=rule.exclude_raters,
    )
    table = check_ratings(found, check, pairs_as_samples(pairs, plan), findings.all())
    return aggregate_gsb(table, pairs, dimensions, settings)
