"""The pages of a study: one for each rater, beside the blind videos."""

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import av

from longtake.evaluation.annotation.page import EMBED_BYTES, Kind, PageItem, write_page
from longtake.evaluation.gsb_plan import Pair, blind_videos, plan_study
from longtake.evaluation.protocol import Assignment
from longtake.evaluation.ratings import Finding, Findings, SampleList, opaque_name, place_file

IMAGE_FOLDER = "images"
CODECS = frozenset(("av1", "h264", "libdav1d", "vp8", "vp9"))
"""Decoders of what Chromium and Firefox both play; they lack HEVC and MPEG-4 part 2."""
ENDINGS = frozenset((".mp4", ".webm"))


@dataclass(frozen=True, kw_only=True)
class PagesReport:
    """What was written."""

    pages: tuple[Path, ...]
    linking: tuple[Path, ...]
    """Those that need the folders of videos and images beside them; the others hold all."""
    findings: tuple[Finding, ...]


def write_mos_pages(
    folder: Path,
    samples: SampleList,
    assignments: Sequence[Assignment],
    files: Mapping[str, str],
    embed_bytes: int = EMBED_BYTES,
) -> PagesReport:
    """Write ``page-RATER.html`` for each rater of a round.

    Items have opaque ids, which the checks of ratings turn back into samples of the list. ``files``
    has the blind name of the video of each sample, relative to ``folder``.
    """
    by_id = samples.by_id
    asked = list(dict.fromkeys(item.sample for item in assignments))
    shown = [sample for sample in asked if sample in files]
    findings = Findings()
    without = (sample for sample in asked if sample not in files)
    findings.add("sample without a video", "not on a page; the sheet has it", without)
    blind = {sample: folder / files[sample] for sample in shown}
    _look_at(blind, samples.models, findings)
    images = _place_images(folder, samples, {sample: sample for sample in shown}, findings)
    dimensions = dict.fromkeys(name for item in assignments for name in item.dimensions)
    study = opaque_name(json.dumps([sorted(by_id), list(dimensions)]))
    lists = {
        rater: [
            PageItem(
                id=opaque_name(item.sample),
                caption=by_id[item.sample].caption,
                dimensions=item.dimensions,
                videos=(blind[item.sample],),
                image=images.get(item.sample),
            )
            for item in assignments
            if item.rater == rater and item.sample in blind
        ]
        for rater in dict.fromkeys(item.rater for item in assignments)
    }
    return _write_all(folder, "mos", study, lists, embed_bytes, findings)


def write_gsb_pages(
    folder: Path,
    samples: SampleList,
    pairs: Sequence[Pair],
    dimensions: Sequence[str],
    raters: Sequence[str] = (),
    embed_bytes: int = EMBED_BYTES,
) -> PagesReport:
    """Write ``page-RATER.html`` for each rater of a plan, or ``page.html``, which asks who rates.

    Sides are those of the plan; every rater sees the pairs in an order of their own.
    """
    findings = Findings()
    by_id = samples.by_id
    named = {pair.pair: blind_videos(pair, by_id) for pair in pairs}
    without = (pair for pair, names in named.items() if not all(names))
    findings.add("pair without videos", "not on a page; the sheet has it", without)
    shown = [pair for pair in pairs if all(named[pair.pair])]
    blind = {pair.pair: tuple(folder / name for name in named[pair.pair]) for pair in shown}
    sides = {f"{pair} {path.stem}": path for pair, paths in blind.items() for path in paths}
    _look_at(sides, samples.models, findings)
    images = _place_images(folder, samples, {pair.pair: pair.left for pair in shown}, findings)
    items = [
        PageItem(
            id=pair.pair,
            caption=by_id[pair.left].caption,
            dimensions=tuple(dimensions),
            videos=blind[pair.pair],
            image=images.get(pair.pair),
        )
        for pair in shown
    ]
    study = plan_study(pairs)
    lists = {rater: list(items) for rater in raters or ("",)}
    for rater in raters:
        # By name, not by a stream of draws: a page made again has the same order.
        random.Random(f"{study} {rater}").shuffle(lists[rater])
    return _write_all(folder, "gsb", study, lists, embed_bytes, findings)


def _write_all(
    folder: Path,
    kind: Kind,
    study: str,
    lists: Mapping[str, Sequence[PageItem]],
    embed_bytes: int,
    findings: Findings,
) -> PagesReport:
    """Write the page of each rater who has something to do."""
    pages, linking = [], []
    for rater, items in lists.items():
        if items:
            path = folder / (f"page-{rater.replace('/', '_')}.html" if rater else "page.html")
            pages.append(path)
            if not write_page(path, kind, study, rater, items, embed_bytes):
                linking.append(path)
    return PagesReport(pages=tuple(pages), linking=tuple(linking), findings=tuple(findings))


def video_facts(path: Path) -> tuple[str, str]:
    """Why browsers may not play a file, and the texts in its container (title, encoder, ...)."""
    try:
        with av.open(str(path)) as container:
            codecs = [stream.codec_context.name for stream in container.streams.video]
            tables = (container.metadata, *(stream.metadata for stream in container.streams))
            tags = "\n".join(str(value) for table in tables for value in table.values())
    except (av.FFmpegError, OSError, ValueError) as error:
        return f"cannot be read: {type(error).__name__}", ""
    if not codecs:
        return "holds no video", tags
    if path.suffix.lower() not in ENDINGS:
        return f"ending {path.suffix or 'missing'}", tags
    return "" if codecs[0] in CODECS else f"codec {codecs[0]}", tags


def names_in(tags: str, models: Iterable[str]) -> list[str]:
    """Models that a text names as a word of its own."""
    words = {model: rf"(?<!\w){re.escape(model)}(?!\w)" for model in models}
    return [model for model, word in words.items() if re.search(word, tags, re.IGNORECASE)]


def _look_at(videos: Mapping[str, Path], models: Sequence[str], findings: Findings) -> None:
    unplayable, telling = [], []
    for name, path in videos.items():
        problem, tags = video_facts(path)
        if problem:
            unplayable.append(f"{name}: {problem}")
        if named := names_in(tags, models):
            telling.append(f"{name}: {', '.join(named)}")
    effect = "on the page all the same; try it before you send the page"
    findings.add("video that browsers may not play", effect, unplayable)
    effect = "on the page all the same; who looks into the file can read it"
    findings.add("video whose file names a model", effect, telling)


def _place_images(
    folder: Path, samples: SampleList, shown: Mapping[str, str], findings: Findings
) -> dict[str, Path]:
    """Reference images under blind names in ``images/``, by item; ``shown`` maps item to sample."""
    placed: dict[str, Path] = {}
    missing, by_id = [], samples.by_id
    for item, sample in shown.items():
        named = by_id[sample].image
        source = samples.folder / named
        if named and not source.is_file():
            missing.append(f"{sample}: {source}")
        elif named:
            target = folder / IMAGE_FOLDER / f"{opaque_name(named)}{source.suffix}"
            placed[item] = target if target in placed.values() else place_file(source, target)
    findings.add("missing reference image", "the item is shown without it", missing)
    return placed
