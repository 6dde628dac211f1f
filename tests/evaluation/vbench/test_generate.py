"""Videos of a plan by checkpoints/tiny: exact names, shards, resume, no mixing of models."""

from pathlib import Path

import pytest
import torch

from longtake.core.video import read_video
from longtake.evaluation.vbench import generate
from longtake.evaluation.vbench.generate import SETTINGS_FILE, generate_videos, own_device
from longtake.evaluation.vbench.plan import Plan, PromptRow, SuiteData, make_plan
from longtake.evaluation.vbench.suites import VBENCH2
from longtake.evaluation.vbench.videos import find_videos, pending_videos
from longtake.runtime.errors import UserError

FAST = ["num_steps=1", "num_frames=5", "height=32", "width=32"]


@pytest.fixture(scope="module")
def two_prompts() -> Plan:
    prompts = ("a red circle moves left", "r" * 179 + " and a long way of saying it")
    rows = tuple(PromptRow(prompt=prompt, dimensions=("Material",)) for prompt in prompts)
    return make_plan(SuiteData(suite=VBENCH2, rows=rows, source="", digest=""))


@pytest.fixture(scope="module")
def whole(two_prompts: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    generate_videos(two_prompts, folder, overrides=FAST, device="cpu")
    return folder


def test_names_and_frames_are_those_of_the_plan(two_prompts: Plan, whole: Path) -> None:
    found = find_videos(two_prompts, whole)
    assert not found.missing and not found.extra and len(found.paths) == 6
    assert (whole / f"{'r' * 179} -2.mp4").is_file()
    clips = [read_video(whole / video.name)[0] for video in two_prompts.videos]
    assert all(clip.shape == (5, 3, 32, 32) for clip in clips)
    assert not any(torch.equal(clips[0], clip) for clip in clips[1:])  # seeds differ


def test_shards_make_the_same_files(two_prompts: Plan, whole: Path, tmp_path: Path) -> None:
    for rank in (1, 0):
        made, done = generate_videos(
            two_prompts, tmp_path, overrides=FAST, device="cpu", rank=rank, world=2
        )
        assert (len(made), done) == (3, 0)
    for video in two_prompts.videos:
        assert (tmp_path / video.name).read_bytes() == (whole / video.name).read_bytes()


def test_only_what_is_not_whole_is_made_again(
    two_prompts: Plan, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in whole.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    gone, torn = two_prompts.videos[1], two_prompts.videos[4]
    (tmp_path / gone.name).unlink()
    (tmp_path / torn.name).write_bytes(b"torn")
    (tmp_path / f".tmp-1-{gone.name}").write_bytes(b"left by a kill")
    made: list[str] = []
    original = generate.sample_to_file

    def noted(model, text, out, *rest, **options):  # type: ignore[no-untyped-def]
        made.append(out.name)
        return original(model, text, out, *rest, **options)

    monkeypatch.setattr(generate, "sample_to_file", noted)
    generate_videos(two_prompts, tmp_path, overrides=FAST, device="cpu")
    assert made == [gone.name, torn.name]
    assert (tmp_path / torn.name).read_bytes() == (whole / torn.name).read_bytes()
    assert pending_videos(two_prompts, tmp_path) == ([], 6)


def test_another_model_or_setting_is_not_mixed_in(two_prompts: Plan, whole: Path) -> None:
    for changed in (["fps=4"], ["num_steps=2"]):
        with pytest.raises(UserError, match=r"(?s)made in another way.*config"):
            generate_videos(two_prompts, whole, overrides=[*FAST, *changed], device="cpu")
    other = make_plan(SuiteData(suite=VBENCH2, rows=two_prompts.rows, source="", digest=""), seed=1)
    with pytest.raises(UserError, match=r"(?s)made in another way.*seed"):
        generate_videos(other, whole, overrides=FAST, device="cpu")


def test_videos_of_unknown_origin_are_not_mixed_in(
    two_prompts: Plan, whole: Path, tmp_path: Path
) -> None:
    name = two_prompts.videos[0].name
    (tmp_path / name).write_bytes((whole / name).read_bytes())
    with pytest.raises(UserError, match="unknown origin"):
        generate_videos(two_prompts, tmp_path, overrides=FAST, device="cpu")
    (tmp_path / SETTINGS_FILE).write_text("{torn")
    with pytest.raises(UserError, match="cannot be read"):
        generate_videos(two_prompts, tmp_path, overrides=FAST, device="cpu")


def test_each_process_of_a_launcher_has_a_gpu_of_its_own() -> None:
    assert [own_device("auto", str(rank), 4) for rank in range(5)] == [
        "cuda:0",
        "cuda:1",
        "cuda:2",
        "cuda:3",
        "cuda:0",
    ]
    assert own_device("auto", None, 4) == "auto"
    assert own_device("auto", "1", 0) == "auto"
    assert own_device("cpu", "1", 4) == "cpu"
