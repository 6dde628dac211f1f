"""Videos of a plan by checkpoints/tiny: exact names, shards, resume, no mixing of models."""

from pathlib import Path

import pytest

from longtake.core.video import read_video
from longtake.evaluation.vbench import generate
from longtake.evaluation.vbench.generate import generate_videos
from longtake.evaluation.vbench.plan import Plan, PromptRow, SuiteData, make_plan
from longtake.evaluation.vbench.suites import VBENCH2
from longtake.evaluation.vbench.videos import find_videos
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


def distance(first: Path, second: Path) -> float:
    """Mean difference of two videos in levels of 255.

    Sums over threads may round in another order (the number of threads changes the last bits), so
    a video made twice is the same within a tenth of a level, not byte by byte; other noise is not.
    """
    clips = [read_video(path)[0].float() for path in (first, second)]
    return float((clips[0] - clips[1]).abs().mean())


def test_names_and_frames_are_those_of_the_plan(two_prompts: Plan, whole: Path) -> None:
    found = find_videos(two_prompts, whole)
    assert not found.missing and not found.extra and len(found.paths) == 6
    assert (whole / f"{'r' * 179} -2.mp4").is_file()
    paths = [whole / video.name for video in two_prompts.videos]
    assert all(read_video(path)[0].shape == (5, 3, 32, 32) for path in paths)
    assert all(distance(paths[0], path) > 0.3 for path in paths[1:])  # seeds differ


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
    assert generate_videos(two_prompts, tmp_path, overrides=FAST, device="cpu") == ([], 6)


def test_another_model_or_setting_is_not_mixed_in(
    two_prompts: Plan, whole: Path, tmp_path: Path
) -> None:
    other = make_plan(SuiteData(suite=VBENCH2, rows=two_prompts.rows, source="", digest=""), seed=1)
    name = two_prompts.videos[0].name
    (tmp_path / name).write_bytes((whole / name).read_bytes())  # of unknown origin
    for plan, folder, changed, problem in (
        (two_prompts, whole, ["fps=4"], "config"),
        (other, whole, [], "seed"),
        (two_prompts, tmp_path, [], "checkpoint"),
    ):
        with pytest.raises(UserError, match=f"(?s)made in another way.*{problem}"):
            generate_videos(plan, folder, overrides=[*FAST, *changed], device="cpu")
