"""Pages of a study: everything asked is on them, and nothing tells the model."""

import json

import av
import pytest

from longtake.evaluation.annotation.study_pages import (
    video_facts,
    write_gsb_pages,
    write_mos_pages,
)
from longtake.evaluation.gsb_plan import plan_pairs, plan_study, write_plan
from longtake.evaluation.protocol import ProtocolConfig, write_assignments
from longtake.evaluation.ratings import opaque_name, read_samples

RATERS = ["ann", "bob", "cy"]
DIMENSIONS = ("text_alignment", "overall")


def study_of(page):
    data = page.read_text(encoding="utf-8").partition('id="study">')[2].partition("</script>")[0]
    return json.loads(data)


def assigned(listed, folder):
    return write_assignments(listed, [], DIMENSIONS, ProtocolConfig(), RATERS, folder)


@pytest.mark.parametrize("embed_bytes", [0, 20_000_000])
def test_no_page_names_a_model(make_list, tmp_path, embed_bytes):
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


def test_pages_ask_what_the_sheets_ask(make_list, tmp_path):
    listed = make_list(3)
    made = assigned(listed, tmp_path / "round")
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
    pairs, _ = plan_pairs(listed)  # of which each rater gets an order of their own
    write_plan(tmp_path / "plan", pairs, listed, DIMENSIONS)
    pages = write_gsb_pages(tmp_path / "plan", listed, pairs, DIMENSIONS, RATERS, 0).pages
    orders = [tuple(entry["id"] for entry in study_of(page)["items"]) for page in pages]
    assert len(set(orders)) == 3 and {study_of(page)["study"] for page in pages} == {
        plan_study(pairs)
    }
    by_id = {pair.pair: pair for pair in pairs}
    for page, order in zip(pages, orders, strict=True):
        assert sorted(order) == sorted(by_id)
        for entry in study_of(page)["items"]:
            pair = by_id[entry["id"]]
            for address, sample in zip(entry["videos"], (pair.left, pair.right), strict=True):
                path = listed.video_path(listed.by_id[sample])
                assert (
                    path is not None and (page.parent / address).read_bytes() == path.read_bytes()
                )


def test_a_file_that_names_its_model_is_reported(make_list, tmp_path):
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


def test_what_cannot_be_shown_is_reported(make_list, tmp_path):
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


def encode(path, codec, kind="mp4"):
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "problem"),
    [("a.mp4", "libx264", ""), ("a.mp4", "mpeg4", "codec mpeg4"),
     ("a.mov", "libx264", "ending .mov"), ],
)  # fmt: skip
def test_codecs_and_endings_that_browsers_lack(tmp_path, name, codec, problem):
    assert video_facts(encode(tmp_path / name, codec))[0] == problem
