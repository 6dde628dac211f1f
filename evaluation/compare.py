"""Two models on one page: which scores higher, how sure, on what.

A *score log* has one row for each video and dimension: model, dimension, prompt, sample, score. All
of these are one, and two of the same kind can be compared:

- a run of `grpo run`: its held-out samples after training, by metric and reward;
- a table of `rewards score`, or the `scores.jsonl` of `eval judge score`;
- ratings of people, with the list of samples that says which model made which video.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from longtake.evaluation.checks import CheckSettings, check_ratings
from longtake.evaluation.comparison import ComparisonSettings, compare_models
from longtake.evaluation.dimensions import title_of
from longtake.evaluation.mos import video_scores
from longtake.evaluation.ratings import Finding, Findings, SampleList, read_ratings, read_samples
from longtake.runtime.errors import UserError
from longtake.runtime.files import read_csv, read_jsonl, write_text
from longtake.runtime.html import MEDIA, Embedder, render_page

FEWEST_PROMPTS = 10
"""With fewer shared prompts nothing is called higher: an interval over 8 prompts holds the true
difference in 90 % of studies, one over 5 in 84 %, where it promises 95 %."""
HELD_OUT = "held_out_after"
_LOG = ("dimension", "model", "prompt", "cluster", "sample", "score")
_REWARD_TABLE = ("path", "prompt", "fps", "frames", "unscored", "notes", "settings", "digest")


@dataclass(frozen=True, kw_only=True)
class ScoreLog:
    """Scores of videos."""

    table: pd.DataFrame
    """Columns dimension, model, prompt, cluster, sample, score (finite)."""
    captions: Mapping[str, str]
    """Text of a prompt, where the log knows it."""
    clips: Mapping[tuple[str, str], Path]
    """A video of (model, prompt)."""
    findings: tuple[Finding, ...] = ()


def read_score_log(paths: Sequence[Path]) -> ScoreLog:
    """The scores that files and folders hold together.

    A folder is a run of `grpo run`, the videos of a study, or holds ratings or judge scores with
    their `samples.csv`.
    """
    tables: list[pd.DataFrame] = []
    captions: dict[str, str] = {}
    clips: dict[tuple[str, str], Path] = {}
    ratings: list[Path] = []
    listed: SampleList | None = None
    findings = Findings()
    for path in [part for given in paths for part in _parts(given)]:
        if path.is_dir():
            listed = read_samples(path)
            continue
        rows = _rows(path)
        columns = set(rows[0]) if rows else set()
        # Two runs number their prompts apart, so prompts meet by their text.
        if path.stem == HELD_OUT:
            tables.append(_long(rows, path.parent.name, ("metrics", "rewards")))
            shown = [row["prompt"] for row in rows if row["sample"] == 0]  # in the order of clips
            for number, prompt in enumerate(shown):
                clips[path.parent.name, prompt] = path.with_suffix(".safetensors") / str(number)
        elif {"path", "settings"} <= columns:
            tables.append(_long(rows, path.stem, ("scores",)))
            for row in rows:
                clips[path.stem, row["prompt"] or row["path"]] = path.parent / row["path"]
        elif {"sample", "model", "prompt"} <= columns and "dimension" not in columns:
            listed = read_samples(path)
        elif "sample" in columns:
            ratings.append(path)
        else:
            raise UserError(
                "this is no score log",
                received=f"{path}: {', '.join(sorted(columns)) or 'empty'}",
                expected="a run of grpo, a table of `rewards score`, scores.jsonl of `eval judge "
                "score`, or ratings with their list of samples",
            )
    if ratings:
        table, remarks = _rated(ratings, listed)
        tables.append(table)
        findings = Findings(remarks)
    if listed is not None:
        captions = {item.prompt: item.caption for item in listed.samples}
        videos = {(s.model, s.prompt): listed.video_path(s) for s in reversed(listed.samples)}
        clips |= {key: video for key, video in videos.items() if video is not None}
    if not tables:
        raise UserError("no scores here", received=", ".join(map(str, paths)))
    table = pd.concat(tables, ignore_index=True)
    unscored = table["score"].isna()
    cases = (table["model"] + ", " + table["dimension"])[unscored].value_counts(sort=False)
    findings.add("unscored", "left out", [f"{count} of {name}" for name, count in cases.items()])
    return ScoreLog(
        table=table[~unscored], captions=captions, clips=clips, findings=tuple(findings)
    )


def two_logs(
    first: str, second: str, inputs: Sequence[Path] = ()
) -> tuple[tuple[ScoreLog, ScoreLog], tuple[str, str]]:
    """The logs of two models, and their names.

    A model is a path with its scores, or the name of a model of ``inputs``, which hold both.
    """
    common = read_score_log(inputs) if inputs else None
    logs, names = [], []
    for name in (first, second):
        if common is not None and name in set(common.table["model"]):
            log, models = common, [name]
        else:
            log = read_score_log([Path(name)])
            models = list(log.table["model"].unique())
        if len(models) != 1:
            raise UserError(
                "this holds the scores of several models",
                received=f"{name}: {', '.join(models)}",
                remedy=f"name two of them: eval compare {models[0]} {models[1]} --inputs {name}",
            )
        clips = {key: path for key, path in log.clips.items() if key[0] == models[0]}
        logs.append(replace(log, table=log.table[log.table["model"] == models[0]], clips=clips))
        names.append(models[0])
    if names[0] == names[1]:
        names = [first, second]
    return (logs[0], logs[1]), (names[0], names[1])


def _parts(path: Path) -> list[Path]:
    """The files of a folder that hold scores; videos of a study stay a folder."""
    if not path.exists():
        raise UserError(
            "no such score log, and no model of --inputs",
            received=str(path),
            expected="a file or folder of scores, or the name of a model",
        )
    if path.is_file():
        return [path]
    if (path / f"{HELD_OUT}.jsonl").is_file():
        return [path / f"{HELD_OUT}.jsonl"]
    names = ("samples.csv", "samples.jsonl", "ratings.jsonl", "scores.jsonl", "scores.csv")
    return [path / name for name in names if (path / name).is_file()] or [path]


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a table; the score columns of a reward table are gathered under ``scores``."""
    if path.suffix.lower() == ".jsonl":
        return read_jsonl(path)
    table = read_csv(path, ())
    rows = [{str(key): cell for key, cell in row.items()} for row in table.to_dict("records")]
    if {"path", "settings"} <= set(table):
        names = [name for name in map(str, table) if name not in _REWARD_TABLE]
        for row in rows:
            row["scores"] = {name: float(row[name]) if row[name] else None for name in names}
    return rows


def _long(rows: Sequence[dict[str, Any]], model: str, groups: Sequence[str]) -> pd.DataFrame:
    """One row for each score; the prompt is its text, so that two runs meet on it."""
    cells = []
    for number, row in enumerate(rows):
        prompt = row["prompt"] or row["path"]
        for group in groups:
            for name, score in row[group].items():
                value = math.nan if score is None else float(score)
                cells.append((name, model, prompt, prompt, f"{model}-{number}", value))
    return pd.DataFrame(cells, columns=list(_LOG))


def _rated(paths: Sequence[Path], listed: SampleList | None) -> tuple[pd.DataFrame, list[Finding]]:
    """Mean ratings of videos by people or by one judge, checked as for a MOS."""
    ratings, irregular = read_ratings(paths)
    dimensions = tuple(dict.fromkeys(rating.dimension for rating in ratings))
    people = CheckSettings(dimensions=dimensions)
    # A judge may have a scale of its own.
    judge = CheckSettings(dimensions=dimensions, scale=(-math.inf, math.inf), whole=False)
    tables, findings = [], list(irregular)
    for kind, checks in (("human", people), ("automatic", judge)):
        own = [rating for rating in ratings if rating.kind == kind]
        if own:
            checked = check_ratings(own, checks, listed)
            tables.append(video_scores(checked.table))
            findings += [f for f in checked.findings if f.kind != "sample without a rating"]
    table = pd.concat(tables, ignore_index=True)
    return table[list(_LOG)], findings


@dataclass(frozen=True, kw_only=True)
class Row:
    """One dimension; differences are the first model minus the second."""

    dimension: str
    means: tuple[float, float]
    n_samples: tuple[int, int]
    diff: float
    low: float
    """95 % interval over prompts; NaN with fewer than two."""
    high: float
    sd: float
    """Of the scores of single videos, both models together: the unit of the chart."""
    n_prompts: int
    p: float
    different: bool
    """Whether p, corrected by Holm for all dimensions of the page, is below 5 %."""

    @property
    def way(self) -> str:
        """``first`` or ``second`` where that model is higher, else ``none`` or ``few``."""
        if self.n_prompts < FEWEST_PROMPTS:
            return "few"
        return ("first" if self.diff > 0 else "second") if self.different else "none"


def compare_logs(
    first: ScoreLog, second: ScoreLog, settings: ComparisonSettings
) -> tuple[list[Row], tuple[Finding, ...]]:
    """Paired by prompt, in every dimension that both logs have."""
    logs = (first.table.assign(model="first"), second.table.assign(model="second"))
    names, prompts = ([set(log[key]) for log in logs] for key in ("dimension", "prompt"))
    findings = Findings((*first.findings, *second.findings))
    for what, (one, other) in (("dimension", names), ("prompt", prompts)):
        findings.add(f"{what} of one model only", "not compared", sorted(one ^ other))
        if not one & other:
            raise UserError(
                f"the two logs share no {what}",
                received="; ".join(", ".join(sorted(part)[:6]) for part in (one, other)),
                expected="scores of the same dimensions on the same prompts",
            )
    shared = [name for name in dict.fromkeys(logs[0]["dimension"]) if name in names[1]]
    common = prompts[0] & prompts[1]
    # Means over other prompts would compare prompts, not models.
    table = pd.concat(logs, ignore_index=True)
    table = table[table["prompt"].isin(common)]
    # A prompt has one cluster (image-to-video: its image), whoever scored it.
    table = table.assign(cluster=table.groupby("prompt")["cluster"].transform("first"))
    means, differences = compare_models(table, shared, settings)
    cells = {(cell["dimension"], cell["model"]): cell for cell in means.to_dict("records")}
    rows = []
    for cell in differences.to_dict("records"):
        own = [cells[cell["dimension"], model] for model in ("first", "second")]
        # The table puts the better model first, the page the first one.
        sign = 1.0 if cell["better"] == "first" else -1.0
        low, high = sorted((sign * cell["ci_low"], sign * cell["ci_high"]))
        scores = table.loc[table["dimension"] == cell["dimension"], "score"]
        rows.append(
            Row(
                dimension=str(cell["dimension"]),
                means=(own[0]["mean"], own[1]["mean"]),
                n_samples=(own[0]["n_samples"], own[1]["n_samples"]),
                diff=sign * cell["diff"],
                low=low,
                high=high,
                sd=float(scores.std()),
                n_prompts=cell["n_prompts"],
                p=cell["p"],
                different=cell["different"],
            )
        )
    return rows, tuple(findings)


def write_comparison(
    first: ScoreLog,
    second: ScoreLog,
    names: tuple[str, str],
    page: Path,
    *,
    settings: ComparisonSettings,
    clip_prompts: int = 4,
    clip_bytes: int = 20_000_000,
) -> list[Row]:
    """Compare two logs and write the page: one HTML file with the clips of a few prompts."""
    rows, findings = compare_logs(first, second, settings)
    clips = _clip_rows((first, second), clip_prompts, Embedder(clip_bytes))
    edge = max(
        (abs(end) / row.sd for row in rows for end in (row.low, row.high) if row.sd), default=1
    )
    html = render_page(
        "evaluation/compare.html.j2",
        title=f"{names[0]} or {names[1]}?",
        names=names,
        rows=rows,
        title_of=title_of,
        sentence=sentence(rows, names),
        num_dimensions=len(rows),
        edge=edge if math.isfinite(edge) else 1.0,
        clips=clips,
        findings=tuple(findings),
        fewest=FEWEST_PROMPTS,
    )
    write_text(page, html)
    return rows


def sentence(rows: Sequence[Row], names: tuple[str, str]) -> str:
    """The answer in words; it names every dimension in which one model is higher."""
    if all(row.way == "few" for row in rows):
        most = max(row.n_prompts for row in rows)
        return f"Too few to tell: {most} shared prompts, {FEWEST_PROMPTS} are the least."
    parts = [
        f"{name} is higher in {', '.join(title_of(row.dimension) for row in own)}"
        for way, name in zip(("first", "second"), names, strict=True)
        if (own := [row for row in rows if row.way == way])
    ]
    return ("; ".join(parts) or f"No difference shown between {names[0]} and {names[1]}") + "."


def _clip_rows(
    logs: tuple[ScoreLog, ScoreLog], limit: int, embedder: Embedder
) -> list[dict[str, Any]]:
    """Clips of both models beside each other, for the prompts on which the scores differ most."""
    tables = [log.table.groupby(["prompt", "dimension"])["score"].mean().unstack() for log in logs]
    gap = tables[0] - tables[1]
    # In units of each dimension, or the one with the largest numbers would choose alone.
    size = (gap / gap.std()).abs().mean(axis=1).sort_values(ascending=False, kind="stable")
    videos = [{prompt: path for (_, prompt), path in log.clips.items()} for log in logs]
    rows: list[dict[str, Any]] = []
    for prompt in size.index:
        if len(rows) == limit:
            break
        if prompt not in videos[0] or prompt not in videos[1]:
            continue
        uris = [_clip_uri(video[prompt], embedder) for video in videos]
        if None not in uris:
            scores = [[(d, t.loc[prompt, d]) for d in gap.columns] for t in tables]
            caption = logs[0].captions.get(prompt) or prompt
            rows.append({"caption": caption, "uris": uris, "scores": scores})
    return rows


def _clip_uri(path: Path, embedder: Embedder) -> str | None:
    """A clip as an address that holds it; None where there is none, or no room."""
    if path.parent.suffix == ".safetensors" and path.parent.is_file():
        from safetensors import safe_open  # needs torch

        from longtake.core.video import write_mp4

        with safe_open(path.parent, framework="pt") as file:
            clips = file.get_slice("clips")
            if int(path.name) >= clips.get_shape()[0]:
                return None
            clip = clips[int(path.name)]
        config = path.parent.with_name("config.yaml")
        settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
        fps = float(settings.get("rollout", {}).get("fps", 8.0))
        # Clips of 64 pixels are enlarged in the file: browsers blur what they enlarge themselves.
        scale = max(1, 256 // clip.shape[-1])
        with tempfile.TemporaryDirectory() as folder:
            return embedder.uri(write_mp4(clip, Path(folder) / "clip.mp4", fps, scale))
    if path.suffix.lower() not in MEDIA or not path.is_file():
        return None
    return embedder.uri(path)
