import errno
import json

import pytest
import torch

from longtake.rewards.directory import (
    read_reward_directory,
    write_reward_directory,
)
from longtake.rewards.frames import FrameSampler
from longtake.rewards.model_inputs import PromptTemplate
from longtake.rewards.spec import Normalization
from longtake.runtime.errors import CheckpointError
from longtake.sandbox.recipes.tiny_vlm import byte_tokenizer
from longtake.tests.tiny_reward import tiny_reward_model, tiny_spec, write_tiny_reward


@pytest.fixture
def make_reward(tmp_path):
    def make(kind, mode="rgb", seed=0):
        scales = {"MQ": Normalization(mean=-0.7, std=0.5)} if kind == "videoreward" else {}
        spec = tiny_spec(kind, color_mode=mode, normalization=scales)
        return write_tiny_reward(tmp_path / f"{kind}-{mode}-{seed}", spec, seed)

    return make


def edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("kind", "mode"), [("hpsv3", "rgb"), ("videoreward", "rgb"), ("videoreward", "bt601_trunc")]
)
def test_round_trip(make_reward, kind, mode):
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


def test_shards_are_read_back(make_reward, tmp_path):
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


def edited(change):
    return lambda path: edit(path / "reward.json", change)


def written(name, change):
    return lambda path: (path / name).write_bytes(change((path / name).read_bytes()))


DAMAGED = {
    "cut text": (written("template.txt", lambda data: data[:-7]), "template.txt has .* bytes, not"),
    "cut weights": (
        written("model.safetensors", lambda data: data[:-7]),
        "model.safetensors has .* bytes, not",
    ),
    "same size": (
        written("template.txt", lambda data: data.replace(b"Sharp", b"Shiny")),
        "template.txt was changed",
    ),
    "cut record": (written("reward.json", lambda data: data[: len(data) // 2]), r"reward\.json"),
    "empty record": (written("reward.json", lambda data: b""), r"reward\.json"),
    "list": (written("reward.json", lambda data: b"[]"), r"reward\.json"),
    "format": (edited(lambda r: r.update(format=99)), "99"),
    "missing": (edited(lambda r: r.pop("pixels")), "pixels"),
    "unknown": (edited(lambda r: r.update(colour=1)), "colour"),
    "colour": (edited(lambda r: r["color"].update(mode="sepia")), "color"),
    "order": (edited(lambda r: r["color"].update(order="after_resize")), "color"),
    "sampler": (edited(lambda r: r["sampler"].update(target_fps=-1)), "frame sampler"),
    "scale": (edited(lambda r: r["normalization"]["MQ"].update(std=0)), "std"),
    "kind": (edited(lambda r: r.update(sampler=None)), "frame sampler for videoreward"),
    "no files": (edited(lambda r: r.pop("files")), "list"),
    "outside": (
        edited(lambda r: r["files"].update({"../x": {"bytes": 1, "sha256": "0"}})),
        "leaves",
    ),
    "no weights": (edited(lambda r: r["files"].pop("model.safetensors")), "list"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_directories_are_refused(make_reward, case):
    damage, message = DAMAGED[case]
    path = make_reward("videoreward", "bt601").path
    damage(path)
    with pytest.raises(CheckpointError, match=message):
        read_reward_directory(path)


def test_all_missing_parts_are_in_one_error(make_reward, tmp_path):
    path = make_reward("hpsv3").path
    names = ("template.txt", "model.safetensors", "tokenizer/tokenizer.json")
    for name in names:
        (path / name).unlink()
    with pytest.raises(CheckpointError) as error:
        read_reward_directory(path)
    assert all(f"{name} is missing" in str(error.value) for name in names)
    with pytest.raises(CheckpointError, match=r"reward\.json"):
        read_reward_directory(tmp_path / "nowhere")


def test_fingerprints_tell_every_part_apart(make_reward, tmp_path):
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


def test_fingerprints_do_not_depend_on_the_reading_transformers(make_reward):
    written = make_reward("videoreward")
    edit(written.path / "reward.json", lambda r: r["model"]["backbone"].update(later_default=1))
    read = read_reward_directory(written.path)
    # What the file says, not what the installed transformers makes of it.
    assert read.fingerprint()["model"]["backbone"]["later_default"] == 1


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("weight", None), ("extra", torch.zeros(1)), ("weight", torch.zeros(3, 64))],
)
def test_weights_that_do_not_fit_leave_nothing_behind(make_reward, tmp_path, name, tensor):
    base = make_reward("videoreward")
    state = {**base.load_model().state_dict(), f"rm_head.{name}": tensor}
    state = {key: value for key, value in state.items() if value is not None}
    target = tmp_path / "new" / "reward"
    with pytest.raises(CheckpointError, match=r"rm_head\."):
        write_reward_directory(target, base.spec, base.template, base.tokenizer(), state)
    assert list(target.parent.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(make_reward, tmp_path):
    base = make_reward("videoreward")
    state = base.load_model().state_dict()

    def full():
        yield next(iter(state.items()))
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        write_reward_directory(
            tmp_path / "new" / "reward", base.spec, base.template, base.tokenizer(), full()
        )
    assert list((tmp_path / "new").iterdir()) == []


def test_a_taken_place_is_refused(make_reward):
    base = make_reward("videoreward")
    before = sorted(p.name for p in base.path.iterdir())
    with pytest.raises(CheckpointError, match="taken"):
        write_reward_directory(base.path, base.spec, base.template, base.tokenizer(), {})
    assert sorted(p.name for p in base.path.iterdir()) == before


def test_a_tokenizer_of_another_model_is_refused(make_reward, tmp_path):
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
