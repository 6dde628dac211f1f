"""Pages of a study: everything asked is on them, and nothing tells the model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from longtake.evaluation.annotation.study_pages import (
    names_in,
    video_facts,
    write_gsb_pages,
    write_mos_pages,
)
from longtake.evaluation.gsb_plan import plan_pairs, plan_study, write_plan
from longtake.evaluation.protocol import AssignReport, ProtocolConfig, write_assignments
from longtake.evaluation.ratings import SampleList, opaque_name, read_samples

RATERS = ["ann", "bob", "cy"]
DIMENSIONS = ("text_alignment", "overall")


def study_of(page: Path) -> Any:
    data = page.read_text(encoding="utf-8").partition('id="study">')[2].partition("</script>")[0]
    return json.loads(data)


def assigned(listed: SampleList, folder: Path, scope: str = "video") -> AssignReport:
    rule = ProtocolConfig(scope=scope)  # type: ignore[arg-type]
    return write_assignments(listed, [], DIMENSIONS, rule, RATERS, folder)


@pytest.mark.parametrize("embed_bytes", [0, 20_000_000])
def test_no_page_names_a_model(
    make_list: Callable[..., SampleList], tmp_path: Path, embed_bytes: int
) -> None:
    listed = make_list(image=True)
    made = assigned(listed, tmp_path / "round")
    scores = write_mos_pages(tmp_path / "round", listed, made.assignments, made.files, embed_bytes)
    pairs, _ = plan_pairs(listed, reference="wan")
    write_plan(tmp_path / "plan", pairs, listed, DIMENSIONS)
    sides = write_gsb_pages(tmp_path / "plan", listed, pairs, DIMENSIONS, RATERS, embed_bytes)
    for report in (scores, sides):
        assert report.findings == () and len(report.pages) == 3
        assert report.linking == (() if embed_bytes else report.pages)
    for page in (*scores.pages, *sides.pages):
        study = study_of(page)
        for entry in study["items"]:
            if embed_bytes:
                entry["videos"], entry["image"] = [], ""  # base64 may hold any letters
            else:
                for address in (*entry["videos"], entry["image"]):
                    assert (page.parent / address).stat().st_size > 0
        shown = json.dumps(study) + page.read_text().partition('id="study">')[0]
        for secret in ("wan", "veo", str(tmp_path), 'p0"', "cluster", "model"):
            assert secret not in shown, secret
    names = [p.name for folder in ("round", "plan") for p in (tmp_path / folder).rglob("*")]
    assert not any(model in name for name in names for model in ("wan", "veo"))


@pytest.mark.parametrize("scope", ["video", "dimension"])
def test_pages_ask_what_the_sheets_ask(
    make_list: Callable[..., SampleList], tmp_path: Path, scope: str
) -> None:
    listed = make_list(3)
    made = assigned(listed, tmp_path / "round", scope)
    pages = write_mos_pages(tmp_path / "round", listed, made.assignments, made.files, 0).pages
    assert [page.name for page in pages] == [f"page-{rater}.html" for rater in RATERS]
    real = listed.real_names
    for rater, page in zip(RATERS, pages, strict=True):
        study = study_of(page)
        own = [a for a in made.assignments if a.rater == rater]
        assert [(real[e["id"]], tuple(e["dimensions"])) for e in study["items"]] == [
            (a.sample, a.dimensions) for a in own
        ]
        for entry in study["items"]:
            sample = listed.by_id[real[entry["id"]]]
            (video,) = entry["videos"]
            path = listed.video_path(sample)
            assert path is not None and (page.parent / video).read_bytes() == path.read_bytes()
            assert entry["caption"] == sample.caption and entry["id"] == opaque_name(sample.sample)
    assert len({study_of(page)["study"] for page in pages}) == 1
    assert len({study_of(page)["page"] for page in pages}) == 3


def test_each_rater_sees_the_pairs_in_an_order_of_their_own(
    make_list: Callable[..., SampleList], tmp_path: Path
) -> None:
    listed = make_list(6)
    pairs, _ = plan_pairs(listed)
    write_plan(tmp_path / "plan", pairs, listed, DIMENSIONS)
    pages = write_gsb_pages(tmp_path / "plan", listed, pairs, DIMENSIONS, RATERS, 0).pages
    (asks,) = write_gsb_pages(tmp_path / "plan", listed, pairs, DIMENSIONS, embed_bytes=0).pages
    orders = [[entry["id"] for entry in study_of(page)["items"]] for page in (*pages, asks)]
    assert len(set(map(tuple, orders))) == 4
    assert all(sorted(order) == sorted(p.pair for p in pairs) for order in orders)
    assert orders[-1] == [pair.pair for pair in pairs] and study_of(asks)["rater"] == ""
    by_id = {pair.pair: pair for pair in pairs}
    for page in (*pages, asks):
        assert study_of(page)["study"] == plan_study(pairs)
        for entry in study_of(page)["items"]:
            pair = by_id[entry["id"]]
            for address, sample in zip(entry["videos"], (pair.left, pair.right), strict=True):
                source = listed.video_path(listed.by_id[sample])
                assert source is not None
                assert (page.parent / address).read_bytes() == source.read_bytes()


def test_a_file_that_names_its_model_is_reported(
    make_list: Callable[..., SampleList], tmp_path: Path
) -> None:
    listed = make_list(1)
    path = tmp_path / "wan-clips" / "wan-0.mp4"
    tagged = path.with_name("tagged.mp4")
    with av.open(str(path)) as source, av.open(str(tagged), "w") as target:
        target.metadata["comment"] = "made with WAN 2.2"
        (stream,) = source.streams.video
        copied = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copied
                target.mux(packet)
    tagged.replace(path)
    made = assigned(listed, tmp_path / "round")
    report = write_mos_pages(tmp_path / "round", listed, made.assignments, made.files)
    assert [(f.kind, f.items) for f in report.findings] == [
        ("video whose file names a model", ("wan-0: wan",))
    ]


def test_what_cannot_be_shown_is_reported(
    make_list: Callable[..., SampleList], tmp_path: Path
) -> None:
    make_list(image=True)
    listing = tmp_path / "samples.csv"
    listing.write_text(listing.read_text().replace("wan-clips/wan-0.mp4", ""))
    (tmp_path / "veo-0.png").unlink()
    (tmp_path / "veo-clips" / "veo-1.mp4").write_bytes(b"no video")
    listed = read_samples(listing)
    made = assigned(listed, tmp_path / "round")
    report = write_mos_pages(tmp_path / "round", listed, made.assignments, made.files)
    assert {f.kind: f.items for f in report.findings} == {
        "sample without a video": ("wan-0",),
        "video that browsers may not play": ("veo-1: cannot be read: InvalidDataError",),
        "missing reference image": (f"veo-0: {tmp_path / 'veo-0.png'}",),
    }
    assert [len(study_of(page)["items"]) for page in report.pages] == [3, 3, 3]
    pairs, _ = plan_pairs(listed)
    write_plan(tmp_path / "plan", pairs, listed, DIMENSIONS)
    report = write_gsb_pages(tmp_path / "plan", listed, pairs, DIMENSIONS)
    assert "pair without videos" in {f.kind for f in report.findings}
    assert [len(study_of(page)["items"]) for page in report.pages] == [1]


def encode(path: Path, codec: str, kind: str = "mp4") -> Path:
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "problem"),
    [("a.mp4", "libx264", ""), ("a.MP4", "libx264", ""), ("a.mp4", "mpeg4", "codec mpeg4"),
     ("a.mov", "libx264", "ending .mov"), ("a", "libx264", "ending missing")],
)  # fmt: skip
def test_codecs_and_endings_that_browsers_lack(
    tmp_path: Path, name: str, codec: str, problem: str
) -> None:
    assert video_facts(encode(tmp_path / name, codec))[0] == problem


def test_files_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    for path in (tmp_path / "a.mp4", tmp_path / "gone.mp4"):
        assert video_facts(path)[0].startswith("cannot be read")


def test_models_are_found_as_words() -> None:
    tags = "Lavf61\nby Wan2.2-T2V, seed 3"
    assert names_in(tags, ["wan2.2", "wan", "veo", "av", "seed"]) == ["wan2.2", "seed"]
