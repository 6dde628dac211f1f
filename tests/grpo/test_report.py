import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from longtake.core.video import read_video, write_mp4, write_png
from longtake.grpo.report import duration, number, per_prompt, span, write_report
from longtake.runtime.errors import RunDirectoryError

EVIL = '<script>alert("x")</script> & a cat'
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Checks that tags balance and collects what a reader and a browser would see."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if "td" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def sources(self) -> list[str]:
        return [str(attrs[k]) for _, attrs in self.tags for k in ("src", "href") if k in attrs]

    def row(self, name: str) -> list[str]:
        found = [row for row in self.rows if row and row[0] == name]
        assert len(found) == 1, (name, self.rows)
        return found[0]


def cell(diff: float, half: float = 0.02, dropped: int = 0) -> dict[str, Any]:
    return {
        "before": 0.7,
        "after": 0.7 + diff,
        "diff": diff,
        "ci95": [diff - half, diff + half],
        "n": 96 - dropped,
        "n_clusters": 48,
        "dropped": dropped,
    }


def summary(**changes: Any) -> dict[str, Any]:
    held_out = {"alignment": cell(0.061), "motion": cell(0.012), "oracle_mean": cell(0.043)}
    return {
        "updates": 40,
        "wall_s": 523.4,
        "seed": 7,
        "stopped": None,
        "held_out": held_out,
        "rewards": {"general": cell(0.05)},
        "nfe": {
            "rollout": 17120,
            "rollout_naive": 20480,
            "train_forwards": 640,
            "train_forwards_naive": 2560,
        },
        "unscored": {"general": 0},
        **changes,
    }


def sample(prompt_id: int, number: int, score: float | None, prompt: str = "") -> dict[str, Any]:
    return {
        "prompt_id": prompt_id,
        "prompt": prompt or f"prompt {prompt_id}",
        "sample": number,
        "metrics": {"alignment": 0.0, "oracle_mean": score},
        "rewards": {"general": 0.5},
    }


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps(summary()))
    (run / "config.yaml").write_text("seed: 7\nprompts: a<b>.txt\n")
    provenance = {
        "git": {"commit": "0123456789abcdef", "dirty": True},
        "hardware": {"cpu": "C<P>U"},
    }
    (run / "provenance.json").write_text(json.dumps(provenance))
    write_lines(run / "metrics.jsonl", [{"update": u, "reward": 1.0} for u in range(40)])
    seconds = {"rollout_s": 6.0, "decode_s": 2.0, "reward_s": 1.0, "update_s": 1.0}
    # The last line is from a resume that did update 1 again.
    write_lines(run / "timing.jsonl", [{"update": u, **seconds} for u in (0, 1, 1)])
    write_lines(
        run / "held_out_before.jsonl",
        [sample(i, s, 0.5, EVIL if i == 0 else "") for i in range(8) for s in range(2)],
    )
    scores = [0.9, 0.4, 0.6, 0.5, 0.55, 0.52, 0.45, None]
    write_lines(
        run / "held_out_after.jsonl", [sample(i, s, scores[i]) for i in range(8) for s in range(2)]
    )
    for name in ("curves.png", "held_out.png", "samples/before_after.png"):
        write_png(torch.zeros(4, 4, 3, dtype=torch.uint8), run / name)
    noise = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for update in (0, 10, 100):
        write_mp4(noise, run / "samples" / f"update-{update:04d}.mp4", fps=8)
    write_mp4(noise, run / "samples" / "before_after.mp4", fps=8)
    return run


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def verdict(run: Path, **changes: Any) -> tuple[str, str]:
    """(class of the verdict box, its text)."""
    (run / "summary.json").write_text(json.dumps(summary(**changes)))
    source = write_report(run).read_text()
    found = re.search(r'<div class="(verdict[^"]*)">(.*?)</div>', source, re.S)
    assert found is not None
    return found[1], Page(found[2]).text


def test_report_is_one_self_contained_page(run: Path, tmp_path: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    page = read(path)
    assert page.sources() and all(s.startswith("data:") for s in page.sources())
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe"})
    assert "url(" not in path.read_text() and "prefers-color-scheme: dark" in path.read_text()
    videos = [s for s in page.sources() if s.startswith("data:video/mp4;base64,")]
    assert len(videos) == 4  # three grids and the pairs
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(base64.b64decode(videos[-1].partition(",")[2]))
    assert read_video(copy)[0].shape == (3, 3, 64, 64)
    assert "Missing" not in page.text
    captions = re.findall(r"update \d+(?= )?", " ".join(w for w in page.words if "update " in w))
    assert captions[-3:] == ["update 100", "update 10", "update 0"]  # newest first


def test_texts_are_escaped(run: Path) -> None:
    source = write_report(run).read_text()
    assert "<script>" not in source and "&lt;script&gt;" in source
    page = Page(source)
    assert EVIL in page.text and "a<b>.txt" in page.text and "C<P>U" in page.text


def test_tables_hold_the_numbers(run: Path) -> None:
    page = read(write_report(run))
    expected = ["0.700", "0.743", "+0.043", "[+0.023, +0.063]", "96", "48", "0"]
    assert page.row("oracle mean")[1:] == expected
    assert page.row("rollout evaluations")[1:] == ["17,120", "20,480", "16.4 %"]
    assert page.row("training forwards")[1:] == ["640", "2,560", "75.0 %"]
    assert page.row("rollout")[1:] == ["12 s", "6.00 s", "60 %"]  # two updates, not three
    assert page.row("all")[1:] == ["20 s", "10.00 s", "100 %"]
    for word in ("GRPO run, seed 7", "40 updates, 8 min 43 s", "commit 0123456789 with local"):
        assert word in page.text


def test_largest_gains_and_losses_are_listed(run: Path) -> None:
    page = read(write_report(run))
    start = next(i for i, row in enumerate(page.rows) if row == ["largest gains"])
    rows = page.rows[start : start + 8]
    assert [row[0] for row in rows] == [
        "largest gains",
        EVIL,
        "prompt 2",
        "prompt 4",
        "prompt 5",
        "largest losses",
        "prompt 1",
        "prompt 6",
    ]
    assert rows[1][1:] == ["0.500", "0.900", "+0.400", "2"]
    assert rows[6][3] == "\N{MINUS SIGN}0.100"
    assert "4 prompts rose, 2 fell, 1 stayed" in page.text  # prompt 7 was not scored after


def test_verdict_of_a_rise(run: Path) -> None:
    kind, text = verdict(run)
    assert kind == "verdict rise"
    assert "The mean of the held-out oracles rose by 0.043, from 0.700 to 0.743" in text
    assert "95 % interval of the change [+0.023, +0.063], 96 clips of 48 prompts" in text
    assert "No single held-out metric fell" in text and "Every clip was scored." in text


def test_verdict_names_what_fell_and_what_is_unscored(run: Path) -> None:
    held_out = {"visual": cell(-0.03, 0.01, dropped=3), "oracle_mean": cell(0.04)}
    kind, text = verdict(run, held_out=held_out, unscored={"general": 0, "text_alignment": 5})
    assert kind == "verdict flat"
    minus = "\N{MINUS SIGN}"
    assert f"Fell significantly: visual {minus}0.030 [{minus}0.040, {minus}0.020]." in text
    assert "in training: text alignment 5; held-out pairs left out: visual 3" in text


@pytest.mark.parametrize(
    ("diff", "kind", "words"),
    [(0.01, "flat", "did not change measurably (+0.010)"), (-0.05, "fall", "fell by 0.050")],
)
def test_verdict_without_a_rise_points_at_hacking(
    run: Path, diff: float, kind: str, words: str
) -> None:
    found, text = verdict(run, held_out={"oracle_mean": cell(diff)})
    assert found == f"verdict {kind}" and words in text
    assert "training rewards general rose" in text and "reward hacking" in text


@pytest.mark.parametrize("diff", [0.3, -0.3])
def test_few_prompts_are_too_few_to_tell(run: Path, diff: float) -> None:
    few = {**cell(diff), "n": 4, "n_clusters": 2}
    kind, text = verdict(run, held_out={"alignment": few, "oracle_mean": few}, rewards={"a": few})
    assert kind == "verdict flat" and "Too few prompts to tell" in text and "2 prompts" in text
    assert "significantly" not in text and "hacking" not in text


def test_verdict_without_oracles_or_pairs(run: Path) -> None:
    assert "No held-out metric was measured" in verdict(run, held_out={})[1]
    nothing = {"before": None, "after": None, "diff": None, "n": 0, "dropped": 96}
    text = verdict(run, held_out={"oracle_mean": nothing})[1]
    assert "Nothing can be said" in text and "oracle mean 96" in text
    assert "Training stopped early: loss <nan>." in verdict(run, stopped="loss <nan>")[1]


def test_oldest_grids_are_dropped_to_keep_the_size(run: Path) -> None:
    everything = len(write_report(run).read_bytes())
    grid = (run / "samples" / "update-0000.mp4").stat().st_size
    path = write_report(run, max_bytes=everything - 3 * grid)
    page = read(path)
    assert len(path.read_bytes()) < everything - grid
    assert "oldest grids are too large" in page.text
    labels = [str(a.get("aria-label")) for tag, a in page.tags if tag == "video"]
    assert any("update 100 " in label for label in labels)
    assert not any("update 0 " in label for label in labels)
    tiny = read(write_report(run, max_bytes=10))
    assert tiny.sources() == [] and "3 oldest grids" in tiny.text
    assert "curves.png: it is too large" in tiny.text


def test_an_interrupted_run_says_what_is_missing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    page = read(write_report(run))
    assert "Unfinished" in page.text and "0 updates" in page.text
    for name in ("summary.json", "metrics.jsonl", "held_out_after.jsonl", "curves.png"):
        assert f"{name}: " in page.text
    (run / "metrics.jsonl").write_text('{"update": 0}\n{"update": 1}\n{"upda')
    (run / "summary.json").write_text("{")
    text = read(write_report(run)).text
    assert "2 updates" in text and "metrics.jsonl: 1 unreadable line left out" in text
    assert "summary.json: it cannot be read" in text


def test_a_wrong_or_unwritable_directory_is_refused(run: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no run to report on"):
        write_report(run / "nowhere")
    (run / "report.html").mkdir()
    with pytest.raises(RunDirectoryError, match=r"cannot write report\.html"):
        write_report(run)
    assert not list(run.glob(".tmp-*"))


def test_per_prompt_uses_the_samples_scored_both_times() -> None:
    before = [sample(0, 0, 0.2), sample(0, 1, 0.4), sample(1, 0, None), sample(2, 0, 0.3)]
    after = [sample(0, 1, 0.5), sample(0, 0, 0.9), sample(1, 0, 0.9)]
    rows = per_prompt(before, after)
    assert rows == [("prompt 0", pytest.approx(0.3), 0.7, pytest.approx(0.4), 2)]
    for record in (*before, *after):
        record["metrics"] = {}
        record["rewards"] = {"a": 1.0, "b": 2.0}
    assert [row[1:] for row in per_prompt(before, after)] == [
        (1.5, 1.5, 0.0, 2),
        (1.5, 1.5, 0.0, 1),
    ]


def test_numbers_and_durations() -> None:
    minus, none = "\N{MINUS SIGN}", "\N{EN DASH}"
    assert number(None) == number(float("nan")) == span({}) == none
    assert number(-0.0312, signed=True) == f"{minus}0.031" and number(1234.5, 0) == "1,234"
    assert span({"ci95": [-0.1, 0.2]}) == f"[{minus}0.100, +0.200]"
    assert [duration(s) for s in (0.5, 42, 59.7, 523.4, 11100)] == [
        "0.5 s",
        "42 s",
        "1 min 00 s",
        "8 min 43 s",
        "3 h 05 min",
    ]
