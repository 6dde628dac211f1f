"""Data that several tests of rewards train on."""

import json

import pytest
import torch

from longtake.core.video import write_mp4, write_png
from longtake.rewards.pairs import A_WINS, B_WINS, TIE, PreferencePair, write_pairs
from longtake.tests.tiny_reward import tiny_spec, write_tiny_reward


def clip(bright, seed):
    """A clip [4, 3, 56, 56] of random colours: dark or bright."""
    noise = torch.rand(4, 3, 56, 56, generator=torch.Generator().manual_seed(seed))
    return 0.4 * noise + (0.6 if bright else 0.0)


@pytest.fixture(scope="session")
def pair_folder(tmp_path_factory):
    """Pairs in which the brighter clip wins (MQ, one TA label in three), and image pairs."""
    root = tmp_path_factory.mktemp("data")
    videos, images = [], []
    for i in range(16):
        bright = i % 2 == 0
        names = {}
        for side, value in (("a", bright), ("b", not bright)):
            video = clip(value, 2 * i + (side == "b"))
            write_mp4(video, root / f"{i}{side}.mp4", fps=2, lossless=True)
            write_png((video[0].permute(1, 2, 0) * 255).byte(), root / f"{i}{side}.png")
            names[side] = f"{i}{side}"
        labels = {"MQ": A_WINS if bright else B_WINS}
        if i % 3 == 0:
            labels["TA"] = TIE
        pair = PreferencePair(
            prompt=f"clip number {i // 2}",
            path_a=f"{names['a']}.mp4",
            path_b=f"{names['b']}.mp4",
            labels=labels,
            fps_a=2.0,
            fps_b=2.0,
            num_frames_a=4,
            num_frames_b=4,
        )
        videos.append(pair)
        winner, loser = ("a", "b") if bright else ("b", "a")
        images.append(
            {
                "prompt": pair.prompt,
                "path1": f"{names[winner]}.png",
                "path2": f"{names[loser]}.png",
                "confidence": 1.0,
            }
        )
    write_pairs(videos, root / "pairs.csv")
    (root / "pairs.json").write_text(json.dumps(images))
    for kind in ("videoreward", "hpsv3"):
        write_tiny_reward(root / kind, tiny_spec(kind), seed=0)
    return root
