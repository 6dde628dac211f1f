"""The benchmark of HPSv3 runs end to end on the CPU with a tiny model."""

import json
from pathlib import Path

import pytest

from longtake.bench import bench_hpsv3 as bench


def test_the_tiny_benchmark_writes_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results" / "hpsv3.json"
    arguments = ["--tiny", "--repeats", "2", "--frames", "3", "--clips", "2"]
    assert bench.main([*arguments, "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    assert "equal" in capsys.readouterr().out
    assert set(record["ways"]) == {"shared", "independent"}
    for fields in record["ways"].values():
        assert len(fields["all_s"]) == 2 and min(fields["all_s"]) > 0
        assert fields["frames_per_s"] == pytest.approx(6 / fields["median_s"])
    ways = record["ways"]
    assert record["speedup"] == ways["independent"]["median_s"] / ways["shared"]["median_s"]
    for column in ("hpsv3_general", "hpsv3_percentile"):
        fields = record["scores"][column]
        assert len(fields["shared"]) == 2
        assert fields["relative_difference"] <= 1e-3
        assert fields["frame_spread"] > 1e-3 > 100 * fields["frame_difference"]
    general, percentile = (record["scores"][c]["shared"] for c in record["scores"])
    assert general != percentile
    assert record["provenance"]["packages"]["torch"] and record["settings"]["seed"] == 0
    tokens = record["settings"]["prompt_tokens"]
    assert tokens["hpsv3_percentile"] - tokens["hpsv3_general"] == bench.CAPTION_TOKENS - 3


def test_different_scores_are_a_failure() -> None:
    assert bench.main(["--tiny", "--repeats", "1", "--frames", "2", "--tolerance", "-1"]) == 1


def test_prompts_of_the_published_size() -> None:
    config = bench.model_config(tiny=False)
    encoder = bench.synthetic_encoder(config)
    ids = encoder.encode(bench.text(bench.CAPTION_TOKENS, "caption 0"), 252)
    assert ids.count(config.backbone.image_token_id) == 252
    assert ids[-1] == config.reward_token_ids[0]
    chat = 12  # system turn, start of the user turn, both ends of the picture: words and tokens
    assert len(ids) == 252 + 520 + 80 + 14 + chat
    assert ids.index(config.backbone.vision_start_token_id) < 20
