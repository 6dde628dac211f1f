"""A clip of the published size through all four model rewards: one decode, no file written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from longtake.core.video import write_mp4
from longtake.tests.tiny_reward import tiny_spec, write_tiny_reward

FRAMES, HEIGHT, WIDTH = 93, 480, 832
SCRIPT = """
import json, os, sys
import torch
import longtake.core.video as video
import longtake.rewards.score_files as score_files
from longtake.rewards import hpsv3, videoalign  # imports compile and cache: before the watch

torch.set_num_threads(1)
written, decoded = [], []
read = video.read_video

def counting(path, *rest):
    decoded.append(str(path))
    return read(path, *rest)

def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(path) != os.devnull:
            written.append(str(path))
    elif event.startswith("tempfile."):
        written.append(event)

score_files.read_video = counting
clip, motion, text, image = sys.argv[1:]
sys.addaudithook(watch)
report = score_files.score_files(
    __import__("pathlib").Path(clip),
    [f"hpsv3_general={image}", f"hpsv3_percentile={image}",
     f"videoalign_mq={motion}", f"videoalign_ta={text}"],
    prompt="a red disc drifts to the right",
    device="cpu",
)
print(json.dumps({"scores": report.rows[0].scores, "written": written, "decoded": decoded,
                  "frames": report.rows[0].frames}))
"""


def test_four_rewards_share_one_decode_and_write_nothing(tmp_path: Path) -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, HEIGHT), torch.linspace(0, 1, WIDTH), indexing="ij")
    frames = torch.stack([torch.stack([x, y, (x - t / FRAMES).abs()]) for t in range(FRAMES)])
    clip = write_mp4(frames, tmp_path / "clip.mp4", fps=15)
    places = [
        write_tiny_reward(tmp_path / name, tiny_spec(kind, color_mode=mode), seed=3).path
        for name, kind, mode in (
            ("motion", "videoreward", "bt601"),
            ("text", "videoreward", "rgb"),
            ("image", "hpsv3", "rgb"),
        )
    ]
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, clip, *places],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["frames"] == FRAMES and len(result["scores"]) == 4
    assert all(isinstance(score, float) for score in result["scores"].values())
    assert result["decoded"] == [str(clip)]
    assert result["written"] == []
    assert sorted(tmp_path.rglob("*")) == before
