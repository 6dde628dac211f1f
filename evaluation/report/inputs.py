"""What the files of an evaluation are: told by their content, because names are the user's."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from longtake.evaluation.csv_rows import read_csv_rows
from longtake.evaluation.findings import Finding, Findings
from longtake.evaluation.gsb_plan import KEY_FILE
from longtake.evaluation.jsonl import read_jsonl
from longtake.evaluation.vbench.result_files import named_dimensions
from longtake.evaluation.vbench.suites import SUITES
from longtake.runtime.errors import UserError

Kind = Literal["ratings", "automatic", "samples", "vbench", "scores", "result"]
_MEDIA = frozenset(
    (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif", ".png", ".jpg", ".jpeg", ".webp")
)
_PAGES = frozenset((".html", ".htm"))
_UNUSED = "not used"


@dataclass(kw_only=True)
class Study:
    """Ratings that were made of one set of samples: the files of one folder, or files given."""

    samples: Path | None = None
    """The list of samples."""
    ratings: list[Path] = field(default_factory=list)
    """Logs and sheets of people."""
    automatic: list[Path] = field(default_factory=list)
    """Logs of judges."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VBenchInput:
    """Results of one model in one suite."""

    name: str
    """Of the folder or zip."""
    suite: str
    path: Path
    """Folder or zip that is read."""
    files: tuple[Path, ...]
    """The result files themselves, for their digests."""
    plan: Path | None = None
    """The videos that were planned, where the folder says so."""


@dataclass(kw_only=True)
class Inputs:
    """Everything found."""

    studies: list[Study] = field(default_factory=list)
    plans: list[Path] = field(default_factory=list)
    """Folders of blind pairs (GSB)."""
    vbench: list[VBenchInput] = field(default_factory=list)
    scores: list[Path] = field(default_factory=list)
    """Score tables that `eval vbench aggregate --json` wrote."""
    results: list[Path] = field(default_factory=list)
    """Results that another command wrote, with tables and a figure beside them."""
    findings: tuple[Finding, ...] = ()
    """Files that could not be used."""

    def __bool__(self) -> bool:
        return any((self.studies, self.plans, self.vbench, self.scores, self.results))


def find_inputs(paths: Sequence[Path]) -> Inputs:
    """Sort files and the contents of folders into what a report can use.

    Files given by name belong to one study; each folder is a study of its own. A folder with a
    ``key.jsonl`` is a plan of pairs. Videos and pictures are found through lists of samples. What
    cannot be used becomes a finding.

    Raises:
        UserError: a path that does not exist.
    """
    finder = _Finder()
    given: list[Path] = []
    for path in dict.fromkeys(paths):
        if not path.exists():
            raise UserError(
                "no such input", received=str(path), expected="a file or folder of an evaluation"
            )
        if path.is_dir():
            finder.folder(path)
        else:
            given.append(path)
    finder.files(given, sheets=True)
    return finder.done()


class _Finder:
    def __init__(self) -> None:
        self.found = Inputs()
        self.broken: list[str] = []
        self.unknown: list[str] = []
        self.sheets: list[str] = []
        self.lists: list[str] = []
        self.results: dict[tuple[Path, str], list[Path]] = {}

    def folder(self, folder: Path) -> None:
        """A folder and everything below it."""
        if (folder / KEY_FILE).is_file():
            self.found.plans.append(folder)
            return
        plan = folder / "plan.json"
        if plan.is_file() and (folder / "results").is_dir() and self._vbench_run(folder, plan):
            return
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            self.broken.append(f"{folder}: {error.strerror or error}")
            return
        visible = [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
        self.files([entry for entry in visible if entry.is_file()], sheets=False)
        for entry in visible:
            if entry.is_dir():
                self.folder(entry)

    def files(self, paths: Sequence[Path], *, sheets: bool) -> None:
        """Files that lie together; ``sheets``: whether sheets of raters count by themselves."""
        study = Study()
        written = {path.stem for path in paths if path.suffix == ".json" and _is_written(path)}
        for path in paths:
            ending = path.suffix.lower()
            if ending in _MEDIA | _PAGES or (
                ending == ".csv" and any(path.stem.startswith(f"{name}_") for name in written)
            ):
                continue  # shown through something else, or belongs to the result of its name
            try:
                kind = _kind(path)
            except (UserError, OSError, ValueError) as error:
                self.broken.append(f"{path}: {str(error).splitlines()[0]}")
                continue
            if kind is None:
                self.unknown.append(str(path))
            elif kind == "ratings" and ending == ".csv" and not sheets:
                self.sheets.append(str(path))
            else:
                self._add(kind, path, study)
        if study.ratings or study.automatic:
            self.found.studies.append(study)
        elif study.samples is not None:
            self.lists.append(f"{study.samples}: no ratings beside it")

    def _add(self, kind: Kind, path: Path, study: Study) -> None:
        if kind == "ratings":
            study.ratings.append(path)
        elif kind == "automatic":
            study.automatic.append(path)
        elif kind == "samples" and study.samples is not None:
            self.lists.append(f"{path}: the samples of {study.samples} are used")
        elif kind == "samples":
            study.samples = path
        elif kind == "scores":
            self.found.scores.append(path)
        elif kind == "result":
            self.found.results.append(path)
        else:
            for suite in _suites_of(path):
                root = path if zipfile.is_zipfile(path) else _model_folder(path)
                self.results.setdefault((root, suite), []).append(path)

    def _vbench_run(self, folder: Path, plan: Path) -> bool:
        try:
            content = json.loads(plan.read_text(encoding="utf-8"))
            suite = content["suite"] if isinstance(content, dict) else None
        except (OSError, ValueError, KeyError):
            suite = None
        if suite not in SUITES:
            return False
        files = tuple(sorted((folder / "results").rglob("*.json")))
        self.found.vbench.append(
            VBenchInput(name=folder.name, suite=suite, path=folder, files=files, plan=plan)
        )
        return True

    def done(self) -> Inputs:
        """Everything found, with what could not be used."""
        for (root, suite), files in self.results.items():
            single = len(files) == 1 and root.is_dir() and len(list(root.rglob("*.json"))) > 1
            path = files[0] if single else root
            name = root.stem if root.is_file() else root.name
            self.found.vbench.append(
                VBenchInput(name=name, suite=suite, path=path, files=tuple(files))
            )
        findings = Findings()
        findings.add("file that cannot be read", _UNUSED, self.broken)
        findings.add("file of unknown kind", _UNUSED, self.unknown)
        findings.add(
            "sheet of a rater in a folder",
            "not used; bring it in with `eval mos score`, or name the file itself",
            self.sheets,
        )
        findings.add("list of samples", _UNUSED, self.lists)
        self.found.findings = findings.all()
        return self.found


def _kind(path: Path) -> Kind | None:
    """What a file is; None when nothing known.

    Raises:
        UserError, OSError, ValueError: it cannot be read.
    """
    ending = path.suffix.lower()
    if ending == ".jsonl":
        return _kind_of_log(path)
    if ending == ".csv":
        columns, _, _ = read_csv_rows(path, ())
        if {"sample", "rater"} <= set(columns):
            return "ratings"
        return "samples" if {"sample", "model", "prompt"} <= set(columns) else None
    if ending == ".zip":
        return "vbench" if _suites_of(path) else None
    if ending == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("suite") in SUITES and "dimensions" in content:
            return "scores"
        if _is_result(content):
            return "result"
        return "vbench" if _suites_of(path) else None
    return None


def _kind_of_log(path: Path) -> Kind | None:
    records, _ = read_jsonl(path)
    rated = [record for _, record in records if {"sample", "dimension", "score"} <= record.keys()]
    if rated:
        is_judge = all(record.get("kind") == "automatic" for record in rated)
        return "automatic" if is_judge else "ratings"
    listed = any({"sample", "model", "prompt"} <= record.keys() for _, record in records)
    return "samples" if listed else None


def _is_result(content: object) -> bool:
    return isinstance(content, dict) and {"longtake", "created", "inputs"} <= content.keys()


def _is_written(path: Path) -> bool:
    try:
        return _is_result(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


def _suites_of(path: Path) -> list[str]:
    """Suites whose dimensions a result file or zip names."""
    names = named_dimensions(path)
    return [suite.name for suite in SUITES.values() if names & suite.dimensions.keys()]


def _model_folder(path: Path) -> Path:
    """The folder of a model: the one above, if the file lies in a folder of its dimension."""
    parent = path.resolve().parent
    is_dimension = any(
        parent.name.replace(" ", "_") in suite.dimensions for suite in SUITES.values()
    )
    return parent.parent if is_dimension else parent
