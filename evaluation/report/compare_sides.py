"""The two sides of a comparison: which model, and where its scores are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longtake.evaluation.findings import Findings
from longtake.evaluation.report.inputs import Inputs, VBenchInput, find_inputs
from longtake.evaluation.report.score_sets import ScoreSet, read_score_sets
from longtake.evaluation.vbench.published import PublishedModel, published_models
from longtake.evaluation.vbench.suites import SUITES
from longtake.runtime.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that some inputs say about models."""

    inputs: Inputs
    scores: tuple[ScoreSet, ...]
    """Of people and judges, one for each study."""

    @property
    def models(self) -> tuple[str, ...]:
        """Models with scores or VBench results."""
        rated = {model for item in self.scores for model in item.models}
        return tuple(sorted(rated | {item.name for item in self.inputs.vbench}))


@dataclass(frozen=True, kw_only=True)
class Side:
    """One model of a comparison."""

    label: str
    """As it is shown."""
    model: str
    """As its scores name it."""
    evidence: Evidence
    """Where its scores are."""
    is_whole: bool
    """Whether the inputs belong to this model alone: then all VBench results there are its own."""
    published: tuple[tuple[str, PublishedModel], ...] = ()
    """(suite, row) of published scores."""

    def scores_by(self, by: str) -> list[ScoreSet]:
        """Its scores by people or by one judge."""
        sets = self.evidence.scores
        return [item for item in sets if item.by == by and self.model in item.models]

    def vbench(self, suite: str) -> list[VBenchInput]:
        """Its results in a suite."""
        found = [item for item in self.evidence.inputs.vbench if item.suite == suite]
        return found if self.is_whole else [item for item in found if item.name == self.model]


def read_evidence(paths: Sequence[Path], findings: Findings) -> Evidence:
    """Everything in files and folders; what cannot be used is added to ``findings``.

    Raises:
        UserError: a path that does not exist.
    """
    inputs = find_inputs(paths)
    for item in inputs.findings:
        findings.add(item.kind, item.effect, item.items)
    sets: list[ScoreSet] = []
    for study in inputs.studies:
        found, irregular = read_score_sets(study)
        sets += found
        for item in irregular:
            findings.add(item.kind, item.effect, item.items)
    return Evidence(inputs=inputs, scores=tuple(sets))


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Both models, and what compares them directly."""

    first: Side
    second: Side
    plans: tuple[Path, ...]
    """Folders of blind pairs among all inputs."""


def find_sides(first: str, second: str, shared: Sequence[Path], findings: Findings) -> Sides:
    """Find both models.

    Args:
        first: a path that holds one model, a model of the shared inputs, or a published model.
        second: the same.
        shared: inputs that hold both models, or plans of pairs between them.
        findings: gets what cannot be used.

    Raises:
        UserError: neither a path nor a known model, or a path that holds several models.
    """
    common = read_evidence(shared, findings)
    a, b = (_side(name, common, findings) for name in (first, second))
    if a.label == b.label and first != second:  # two checkpoints under one name
        a = replace(a, label=f"{a.label} ({first})")
        b = replace(b, label=f"{b.label} ({second})")
    plans = (p for e in (common, a.evidence, b.evidence) for p in e.inputs.plans)
    return Sides(first=a, second=b, plans=tuple(dict.fromkeys(plans)))


def _side(name: str, common: Evidence, findings: Findings) -> Side:
    if name in common.models:
        return Side(
            label=name, model=name, evidence=common, is_whole=False, published=_published(name)
        )
    path = Path(name)
    if path.exists():
        own = read_evidence([path], findings)
        model = _only_model(path, own)
        evidence = Evidence(inputs=own.inputs, scores=(*own.scores, *common.scores))
        return Side(label=model, model=model, evidence=evidence, is_whole=True)
    published = _published(name)
    if not published:
        known = ", ".join(common.models) or "none; --inputs name no model"
        raise UserError(
            "no such model",
            received=name,
            expected=f"a file or folder, a model of the inputs ({known}), or a published model",
            remedy="give the results of the model, or --inputs with files that hold both models",
        )
    return Side(label=name, model=name, evidence=common, is_whole=False, published=published)


def _only_model(path: Path, own: Evidence) -> str:
    """The model that a path holds; a folder of VBench results alone has its own name."""
    rated = sorted({model for item in own.scores for model in item.models})
    names = rated or sorted({item.name for item in own.inputs.vbench})
    if len(names) == 1:
        return names[0]
    if not names:
        raise UserError(
            "no scores of a model here",
            received=f"{path}" + "".join(f"; {finding}" for finding in own.inputs.findings),
            expected="ratings, scores of a judge, or VBench results of one model",
        )
    raise UserError(
        "this holds several models",
        received=f"{path}: {', '.join(names)}",
        expected="the results of one model",
        remedy=f"name two of them: eval compare {names[0]!r} {names[1]!r} --inputs {path}",
    )


def _published(name: str) -> tuple[tuple[str, PublishedModel], ...]:
    rows = ((suite.name, published_models(suite).get(name)) for suite in SUITES.values())
    return tuple((suite, row) for suite, row in rows if row is not None)
