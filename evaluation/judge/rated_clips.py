"""What a judge learns from and is checked against: clips with the mean of their ratings.

Ratings come as the log or sheets of a study with its list of samples, or as one CSV with a row for
each rating: path, prompt, dimension, rating; optionally rater, model and cluster.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from longtake.evaluation.checks import CheckSettings, check_ratings
from longtake.evaluation.dimensions import DIMENSIONS
from longtake.evaluation.ratings import (
    Finding,
    Findings,
    Rating,
    Sample,
    SampleList,
    rating_from_record,
    read_ratings,
    read_samples,
)
from longtake.rewards.template import prompt_key
from longtake.runtime.errors import UserError
from longtake.runtime.files import read_csv
from longtake.runtime.statistics import FloatArray

JUDGED = tuple(name for name, item in DIMENSIONS.items() if item.judged)
"""What a judge scores (report section 5.1): text alignment, visual quality, motion quality."""
UNKNOWN_MODEL = "unknown"
"""Model of a clip whose file names none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatedClips:
    """Clips and the mean of the raters."""

    samples: SampleList
    """The clips, each with a caption and a video."""
    dimensions: tuple[str, ...]
    """D names."""
    mean: FloatArray
    """[n, D] mean ratings, n the number of samples; NaN where nobody rated."""
    count: FloatArray
    """[n, D] number of ratings behind each mean."""
    ratings: pd.DataFrame
    """The single ratings: columns sample, model, prompt, cluster, dimension, rater, score."""
    findings: tuple[Finding, ...]
    """Everything irregular."""

    def part(self, names: Sequence[str]) -> "RatedClips":
        """Only the samples with these ids, in the order of the list."""
        wanted = set(names)
        rows = [i for i, item in enumerate(self.samples.samples) if item.sample in wanted]
        listed = tuple(self.samples.samples[i] for i in rows)
        return RatedClips(
            samples=SampleList(samples=listed, folder=self.samples.folder),
            dimensions=self.dimensions,
            mean=self.mean[rows],
            count=self.count[rows],
            ratings=self.ratings[self.ratings["sample"].isin(wanted)],
            findings=self.findings,
        )


def read_rated_clips(
    ratings: Sequence[Path],
    samples: Path | None,
    dimensions: Sequence[str] = JUDGED,
    *,
    exclude_raters: Sequence[str] = (),
) -> RatedClips:
    """Read, check and average ratings.

    Args:
        ratings: logs or sheets of a study; without ``samples`` one CSV as in the module's text.
        samples: the list of samples, with captions and videos.
        dimensions: which ratings are used; others are reported.
        exclude_raters: set aside.

    Raises:
        UserError: a file that cannot be read, or nothing left.
    """
    if samples is None:
        if len(ratings) != 1 or ratings[0].suffix.lower() != ".csv":
            raise UserError(
                "ratings without a list of samples",
                received=", ".join(map(str, ratings)) or "no file",
                expected="one .csv with the columns path, prompt, dimension, rating",
                remedy="give --samples with a log or sheet of ratings",
            )
        listed, given, earlier = _read_clip_csv(ratings[0])
    else:
        listed = read_samples(samples)
        given, read = read_ratings(ratings, dimensions)
        given, others = _of_list(given, listed, dimensions)
        earlier = [*listed.findings, *read, *others]
    table = check_ratings(
        given,
        CheckSettings(
            dimensions=tuple(dimensions), whole=False, exclude_raters=tuple(exclude_raters)
        ),
        listed,
        earlier,
    )
    return _average(listed, table.table, tuple(dimensions), table.findings)


def _of_list(
    ratings: Sequence[Rating], listed: SampleList, dimensions: Sequence[str]
) -> tuple[list[Rating], tuple[Finding, ...]]:
    """The ratings that concern a judge of these samples.

    A list is often a part of a study, so what lies outside is one finding, not one for each rating;
    nor is it irregular that people rate dimensions that no judge scores.
    """
    known = listed.by_id
    wanted = [r for r in ratings if r.dimension in dimensions or r.dimension not in DIMENSIONS]
    kept = [r for r in wanted if r.sample in known]
    outside = [r.sample for r in wanted if r.sample not in known]
    findings = Findings()
    if outside:
        text = f"{len(outside)} ratings of {len(set(outside))} samples, such as {outside[0]}"
        findings.add("rating of a sample outside of the list", "not used", [text])
    return kept, findings.all()


def _average(
    listed: SampleList,
    table: pd.DataFrame,
    dimensions: tuple[str, ...],
    earlier: Sequence[Finding],
) -> RatedClips:
    findings = Findings(earlier)
    groups = table.groupby(["sample", "dimension"])["score"].agg(["mean", "count"])
    rated = set(table["sample"])
    known = [item for item in listed.samples if item.sample in rated]
    usable = [item for item in known if item.video and item.caption]
    findings.add(
        "rated sample without a caption or a video in the list",
        "not used",
        [item.sample for item in known if not (item.video and item.caption)],
    )
    if not usable:
        raise UserError(
            "no rated clip is left",
            received=f"{len(table)} ratings of {', '.join(dimensions)}",
            expected="ratings of samples whose list names caption and video",
        )
    place = {item.sample: row for row, item in enumerate(usable)}
    mean = np.full((len(usable), len(dimensions)), np.nan)
    count = np.zeros(mean.shape)
    for (sample, dimension), average, number in groups.itertuples():
        if sample in place:
            cell = place[sample], dimensions.index(dimension)
            mean[cell], count[cell] = average, number
    return RatedClips(
        samples=SampleList(samples=tuple(usable), folder=listed.folder),
        dimensions=dimensions,
        mean=mean,
        count=count,
        ratings=table[table["sample"].isin(place.keys())].reset_index(drop=True),
        findings=findings.all(),
    )


def _read_clip_csv(path: Path) -> tuple[SampleList, list[Rating], list[Finding]]:
    """The clips and ratings of a CSV of clips."""
    rows = read_csv(path, ("path", "prompt", "dimension", "rating")).to_dict("index")
    findings, unusable, mixed = Findings(), [], []
    samples: dict[str, Sample] = {}
    ratings: list[Rating] = []
    nameless: dict[tuple[str, str], int] = {}
    for line, row in rows.items():
        try:
            rater = row.get("rater", "")
            if not rater:  # each nameless rating of a clip is another person's
                key = (row["path"], row["dimension"])
                nameless[key] = nameless.get(key, 0) + 1
                rater = f"rater {nameless[key]}"
            record = {"sample": row["path"], "dimension": row["dimension"], "rater": rater}
            rating = rating_from_record({**record, "score": row["rating"]})
        except ValueError as error:
            unusable.append(f"{path.name}:{line}: {error}")
            continue
        item = Sample(
            sample=row["path"],
            model=row.get("model") or UNKNOWN_MODEL,
            prompt=prompt_key(row["prompt"]) or "no prompt",
            cluster=row.get("cluster", ""),
            caption=row["prompt"],
            video=row["path"],
        )
        if samples.setdefault(item.sample, item) != item:
            mixed.append(f"{path.name}:{line}: {item.sample}")
            continue
        ratings.append(rating)
    findings.add("row that is not a rating", "not used", unusable)
    findings.add("clip with another prompt or model than before", "not used", mixed)
    listed = SampleList(samples=tuple(samples.values()), folder=path.parent)
    return listed, ratings, list(findings.all())


def with_paths_from(samples: SampleList, folder: Path) -> list[Sample]:
    """The samples with video and image paths relative to another folder, for a list put there."""

    def moved(name: str) -> str:
        return os.path.relpath(samples.folder / name, folder) if name else ""

    return [
        dataclasses.replace(item, video=moved(item.video), image=moved(item.image))
        for item in samples.samples
    ]
