import io
import math

import pytest
from rich.console import Console

from longtake.runtime.progress import format_value, progress_bar, result_table


def test_without_a_terminal_there_are_plain_lines() -> None:
    out = io.StringIO()
    with progress_bar("GRPO", 3, console=Console(file=out), every_s=0) as bar:
        bar.update(1, loss=0.25, motion=math.nan)
        bar.update(3, loss=None)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("GRPO 1/3") and lines[0].endswith("loss 0.25  motion -")
    assert lines[1].startswith("GRPO 3/3") and lines[1].endswith("loss -")
    assert "\x1b" not in out.getvalue()


def test_plain_lines_are_rare_but_the_first_and_the_last_are_shown() -> None:
    out = io.StringIO()
    with progress_bar("DiT", 100, console=Console(file=out), every_s=3600) as bar:
        for step in range(1, 101):
            bar.update(step)
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/100", "100/100"]


def test_a_terminal_gets_a_bar_with_the_values() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with progress_bar("GRPO", 4, completed=2, console=console) as bar:
        bar.update(4, **{"rewards/motion": 1.23456789, "[odd]": 2.0})
    assert "4/4" in out.getvalue()
    assert "rewards/motion 1.235" in out.getvalue()
    assert "[odd] 2" in out.getvalue()  # reward names are no markup


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (math.nan, "-"), (0.0, "0"), (1e-5, "1e-05"), (12345.6, "1.235e+04")],
)
def test_format_value(value: float | None, text: str) -> None:
    assert format_value(value) == text


def test_result_table() -> None:
    out = io.StringIO()
    table = result_table("held out", ["metric", "before", "n"], [["[m]", 0.5, 64], ["x", None, 0]])
    Console(file=out, width=80).print(table)
    assert "held out" in out.getvalue()
    assert [part.strip() for part in out.getvalue().splitlines()[4].split("│")[1:-1]] == [
        "[m]",
        "0.5",
        "64",
    ]
    with pytest.raises(ValueError, match="row of 1"):
        result_table("t", ["a", "b"], [["only"]])


def test_a_narrow_terminal_cuts_no_value() -> None:
    rows = [["videoalign_mq", 0.8512, "0.811 to 0.887", 1234], ["general", 0.5, "0.4 to 0.6", 7]]
    table = result_table("pairs", ["reward", "accuracy", "interval", "n"], rows)
    output = io.StringIO()
    Console(file=output, width=40).print(table)
    shown = output.getvalue().split()
    for piece in ("0.8512", "0.811", "0.887", "1234"):
        assert piece in shown
    assert all(len(line) <= 40 for line in output.getvalue().splitlines())


def test_a_narrow_terminal_keeps_names_beside_wide_headings() -> None:
    headings = [
        "clip",
        "frames",
        "hpsv3_general",
        "hpsv3_percentile",
        "videoalign_mq",
        "videoalign_ta",
    ]
    table = result_table(
        "scores", headings, [["deep/clip_000017.mp4", 17, -2.01, -1.184, 0.4372, 12]]
    )
    output = io.StringIO()
    Console(file=output, width=80).print(table)
    lines = output.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    columns = [[part.strip() for part in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert "".join(parts[0] for parts in columns) == "deep/clip_000017.mp4"
    assert columns[0][1:] == ["17", "-2.01", "-1.184", "0.4372", "12"]
