import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longtake.rewards.directory import (
    RewardDirectory,
    read_reward_directory,
    write_reward_directory,
)
from longtake.rewards.frames import FrameSampler
from longtake.rewards.model_inputs import PromptTemplate
from longtake.rewards.spec import ColorMode, Normalization, RewardKind, RewardSpec
from longtake.runtime.errors import CheckpointError, UserError
from longtake.sandbox.recipes.tiny_vlm import byte_tokenizer
from longtake.tests.tiny_reward import tiny_reward_model, tiny_spec, write_tiny_reward

MakeReward = Callable[..., RewardDirectory]


@pytest.fixture
def make_reward(tmp_path: Path) -> MakeReward:
    def make(kind: RewardKind, mode: ColorMode = "rgb", seed: int = 0) -> RewardDirectory:
        scales = {"MQ": Normalization(mean=-0.7, std=0.5)} if kind == "videoreward" else {}
        spec = tiny_spec(kind, color_mode=mode, normalization=scales)
        return write_tiny_reward(tmp_path / f"{kind}-{mode}-{seed}", spec, seed)

    return make


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("kind", "mode"), [("hpsv3", "rgb"), ("videoreward", "rgb"), ("videoreward", "bt601_trunc")]
)
def test_round_trip(make_reward: MakeReward, kind: str, mode: str) -> None:
    written = make_reward(kind, mode, 3)
    read = read_reward_directory(written.path)
    assert read.spec == written.spec and read.spec.color_mode == mode
    assert read.template == written.template and read.digests == written.digests
    state = tiny_reward_model(read.spec.model, 3).state_dict()
    loaded = read.load_model().state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    caption = "a dog, a béret"
    assert read.encoder().encode(caption, 5) == written.encoder().encode(caption, 5)


def test_the_files_are_the_documented_ones_and_moving_them_is_fine(
    make_reward: MakeReward, tmp_path: Path
) -> None:
    path = make_reward("videoreward").path
    assert {p.name for p in path.iterdir()} == {
        "reward.json",
        "template.txt",
        "tokenizer",
        "model.safetensors",
    }
    moved = Path(shutil.move(path, tmp_path / "elsewhere"))
    assert read_reward_directory(moved).load_model() is not None
    record = json.loads((moved / "reward.json").read_text())
    template = (moved / "template.txt").read_bytes()
    assert record["files"]["template.txt"]["sha256"] == hashlib.sha256(template).hexdigest()
    assert (
        record["files"]["model.safetensors"]["bytes"]
        == (moved / "model.safetensors").stat().st_size
    )
    assert str(tmp_path) not in json.dumps(record)


def test_gray_modes_record_formula_and_order(make_reward: MakeReward) -> None:
    record = json.loads((make_reward("videoreward", "bt601").path / "reward.json").read_text())
    assert record["color"] == {"mode": "gray", "formula": "bt601", "order": "before_resize"}
    path = make_reward("videoreward", "mean").path
    edit(path / "reward.json", lambda r: r["color"].update(order="after_resize"))  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="color"):
        read_reward_directory(path)


def test_shards_are_read_back(make_reward: MakeReward, tmp_path: Path) -> None:
    whole = make_reward("videoreward")
    state = whole.load_model().state_dict()
    sharded = write_reward_directory(
        tmp_path / "sharded",
        whole.spec,
        whole.template,
        whole.tokenizer(),
        iter(state.items()),
        shard_bytes=200_000,
    )
    assert len(list(sharded.path.glob("model-*.safetensors"))) > 2
    loaded = sharded.load_model().state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    first = sorted(sharded.path.glob("model-*.safetensors"))[0]
    first.unlink()
    with pytest.raises(CheckpointError, match=f"{first.name} is missing"):
        read_reward_directory(sharded.path)


def test_all_missing_parts_are_in_one_error(make_reward: MakeReward, tmp_path: Path) -> None:
    path = make_reward("hpsv3").path
    (path / "template.txt").unlink()
    (path / "model.safetensors").unlink()
    (path / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError) as error:
        read_reward_directory(path)
    for name in ("template.txt", "model.safetensors", "tokenizer/tokenizer.json"):
        assert f"{name} is missing" in str(error.value)
    with pytest.raises(CheckpointError, match="no such reward"):
        read_reward_directory(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["template.txt", "model.safetensors"])
def test_cut_files_are_named(make_reward: MakeReward, name: str) -> None:
    path = make_reward("videoreward").path
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[:-7])
    with pytest.raises(CheckpointError, match=f"{name} has {len(data) - 7} bytes, not {len(data)}"):
        read_reward_directory(path)


def test_changed_files_of_the_same_size_are_named(make_reward: MakeReward) -> None:
    path = make_reward("videoreward").path
    text = (path / "template.txt").read_bytes()
    (path / "template.txt").write_bytes(text.replace(b"Sharp", b"Shiny"))
    with pytest.raises(CheckpointError, match=r"template.txt was changed"):
        read_reward_directory(path)


def test_a_cut_reward_json_is_named(make_reward: MakeReward) -> None:
    path = make_reward("videoreward").path
    text = (path / "reward.json").read_text()
    for cut in (text[: len(text) // 2], "[]", ""):
        (path / "reward.json").write_text(cut)
        with pytest.raises(CheckpointError, match=r"reward\.json"):
            read_reward_directory(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format=99), "99"),
        (lambda r: r.pop("pixels"), "pixels"),
        (lambda r: r.update(colour=1), "colour"),
        (lambda r: r["color"].update(mode="sepia"), "color"),
        (lambda r: r["pixels"].update(min_pixels=0), "min_pixels"),
        (lambda r: r["sampler"].update(target_fps=-1), "frame sampler"),
        (lambda r: r["normalization"]["MQ"].update(std=0), "std"),
        (lambda r: r.update(sampler=None), "frame sampler for videoreward"),
        (lambda r: r.pop("files"), "list"),
        (lambda r: r["files"].update({"../x": {"bytes": 1, "sha256": "0"}}), "leaves"),
        (lambda r: r["files"].update({"a": 3}), "cannot be used"),
        (lambda r: r["files"].pop("model.safetensors"), "list"),
    ],
)
def test_unusable_fields_are_named(
    make_reward: MakeReward, change: Callable[[dict[str, object]], object], message: str
) -> None:
    path = make_reward("videoreward").path
    edit(path / "reward.json", change)
    with pytest.raises(CheckpointError, match=message):
        read_reward_directory(path)


def test_fingerprints_tell_every_part_apart(make_reward: MakeReward, tmp_path: Path) -> None:
    base = make_reward("videoreward")
    state = base.load_model().state_dict()
    changed = {name: tensor.clone() for name, tensor in state.items()}
    next(iter(changed.values())).view(-1)[0] += 1
    other_text = PromptTemplate(
        text=base.template.text + ".", reward_tokens=base.template.reward_tokens
    )
    slower = base.spec.replace(sampler=FrameSampler(target_fps=1.0))
    raw = base.spec.replace(normalization={"MQ": Normalization(mean=0.0, std=1.0)})
    variants = [
        (base.spec, base.template, changed),
        (base.spec, other_text, state),
        (slower, base.template, state),
        (raw, base.template, state),
    ]
    prints = [base.fingerprint()] + [
        write_reward_directory(
            tmp_path / str(i), spec, template, base.tokenizer(), weights
        ).fingerprint()
        for i, (spec, template, weights) in enumerate(variants)
    ]
    assert len({json.dumps(p, sort_keys=True) for p in prints}) == len(prints)
    again = write_reward_directory(
        tmp_path / "again", base.spec, base.template, base.tokenizer(), state
    )
    assert again.fingerprint() == prints[0]


def test_fingerprints_do_not_depend_on_the_reading_transformers(make_reward: MakeReward) -> None:
    written = make_reward("videoreward")
    edit(written.path / "reward.json", lambda r: r["model"]["backbone"].update(later_default=1))  # type: ignore[attr-defined]
    read = read_reward_directory(written.path)
    # What the file says, not what the installed transformers makes of it.
    assert read.fingerprint()["model"]["backbone"]["later_default"] == 1  # type: ignore[index]


def drop_one(state: dict[str, Tensor]) -> None:
    state.pop("rm_head.weight")


def add_one(state: dict[str, Tensor]) -> None:
    state["rm_head.extra"] = torch.zeros(1)


def reshape_one(state: dict[str, Tensor]) -> None:
    state["rm_head.weight"] = torch.zeros(3, 64)


@pytest.mark.parametrize("spoil", [drop_one, add_one, reshape_one])
def test_weights_that_do_not_fit_leave_nothing_behind(
    make_reward: MakeReward, tmp_path: Path, spoil: Callable[[dict[str, Tensor]], None]
) -> None:
    base = make_reward("videoreward")
    state = dict(base.load_model().state_dict())
    spoil(state)
    target = tmp_path / "new" / "reward"
    with pytest.raises(CheckpointError, match=r"rm_head\."):
        write_reward_directory(target, base.spec, base.template, base.tokenizer(), state)
    assert list(target.parent.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(make_reward: MakeReward, tmp_path: Path) -> None:
    base = make_reward("videoreward")
    state = base.load_model().state_dict()

    def full() -> Iterator[tuple[str, Tensor]]:
        yield next(iter(state.items()))
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        write_reward_directory(
            tmp_path / "new" / "reward", base.spec, base.template, base.tokenizer(), full()
        )
    assert list((tmp_path / "new").iterdir()) == []


def test_a_taken_place_is_refused(make_reward: MakeReward) -> None:
    base = make_reward("videoreward")
    before = sorted(p.name for p in base.path.iterdir())
    with pytest.raises(CheckpointError, match="taken"):
        write_reward_directory(base.path, base.spec, base.template, base.tokenizer(), {})
    assert sorted(p.name for p in base.path.iterdir()) == before


def test_a_tokenizer_of_another_model_is_refused(make_reward: MakeReward, tmp_path: Path) -> None:
    base = make_reward("videoreward")
    state = base.load_model().state_dict()
    with pytest.raises(CheckpointError) as error:
        write_reward_directory(
            tmp_path / "new", base.spec, base.template, byte_tokenizer(("<|MQ_reward|>",)), state
        )
    message = str(error.value)
    assert "<|VQ_reward|> is missing" in message and "<|MQ_reward|> has id 262, not 263" in message
    assert "263 tokens for 265 embedding rows" in message
    assert not (tmp_path / "new").exists()


def test_parts_that_do_not_fit_are_refused(make_reward: MakeReward) -> None:
    clip, still = make_reward("videoreward").spec, make_reward("hpsv3").spec
    wrong: list[tuple[RewardSpec, dict[str, object]]] = [
        (still, {"kind": "videoreward"}),
        (still, {"sampler": FrameSampler()}),
        (still, {"normalization": {"MQ": Normalization(mean=0.0, std=1.0)}}),
        (clip, {"normalization": {"XQ": Normalization(mean=0.0, std=1.0)}}),
        (clip, {"reward_tokens": ("<|a|>",)}),
    ]
    for spec, change in wrong:
        with pytest.raises(UserError, match="do not fit"):
            spec.replace(**change)  # type: ignore[arg-type]
