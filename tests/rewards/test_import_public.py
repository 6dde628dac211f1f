"""Importing published files: what they become, and what a failed import says and leaves."""

import functools
import hashlib
import json
import os
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from longtake.rewards.directory import read_reward_directory
from longtake.rewards.import_public import (
    TemplateDigest,
    import_reward,
    read_template,
)
from longtake.rewards.qwen2vl.weights import public_layout
from longtake.runtime.errors import CheckpointError, UserError
from longtake.sandbox.recipes.tiny_vlm import TINY_TEMPLATES, byte_tokenizer
from longtake.tests.tiny_reward import tiny_model_config, tiny_reward_model


def digest(kind):
    text = TINY_TEMPLATES[kind].text
    return TemplateDigest(
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        characters=len(text),
        reward_tokens=TINY_TEMPLATES[kind].reward_tokens,
        name="invented",
    )


@functools.cache
def random_weights(kind):
    config = tiny_model_config(kind, lora_rank=0 if kind == "hpsv3" else 4)
    state = tiny_reward_model(config, 5).state_dict()
    return config, {name: tensor.bfloat16() for name, tensor in state.items()}


class Published:
    """The files of a user: published weights of a tiny model, public source, tokenizer."""

    def __init__(self, root, kind):
        self.kind, self.root = kind, root
        self.source = root / "checkout"
        self.source.mkdir()
        text = TINY_TEMPLATES[kind].text
        (self.source / "prompts.py").write_text(f"raise SystemExit\nA = {text!r}\n")
        self.tokenizer = root / "qwen"
        byte_tokenizer().save_pretrained(self.tokenizer)  # without the reward tokens
        config, state = random_weights(kind)
        self.state = dict(state)
        self.backbone = root / "config.json"
        fields = config.backbone.to_dict()
        fields["text_config"]["vocab_size"] = 999  # training resizes it; the file is the base's
        self.backbone.write_text(json.dumps(fields))
        self.weights = root / "weights"
        self.weights.mkdir()
        if kind == "videoreward":
            self.write_config()

    def write_config(self, **changes):
        content = {
            "data_config": {
                "fps": 2.0,
                "num_frames": None,
                "max_frame_pixels": 200704,
                "sample_type": "uniform",
                "prompt_template_type": "detailed_special",
            },
            "training_args": {},
            "model_config": {"output_dim": 1, "reward_token": "special"},
            "peft_lora_config": {"lora_r": 4, "lora_alpha": 16, "use_rslora": False},
            "inference_config": {
                **{f"{d}_mean": i + 0.5 for i, d in enumerate(("VQ", "MQ", "TA"))},
                **{f"{d}_std": i + 1.25 for i, d in enumerate(("VQ", "MQ", "TA"))},
            },
        }
        for part, change in changes.items():
            content[part].update(change)
        (self.weights / "model_config.json").write_text(json.dumps(content))

    def public_state(self):
        return public_layout(self.state, "legacy" if self.kind == "hpsv3" else "peft")

    def save(self, state=None, step=7):
        content = dict(self.public_state() if state is None else state)
        if self.kind == "hpsv3":
            file = self.weights / "HPSv3.safetensors"
            save_file(content, file)
        else:
            file = self.weights / f"checkpoint-{step}" / "model.pth"
            file.parent.mkdir(exist_ok=True)
            torch.save(content, file)
        return file

    def import_it(self, **changes):
        arguments = {
            "weights": self.weights / "HPSv3.safetensors" if self.kind == "hpsv3" else self.weights,
            "source": self.source,
            "tokenizer": self.tokenizer,
            "out": self.root / "out" / "reward",
            "backbone": self.backbone,
            "template": digest(self.kind),
        }
        return import_reward(self.kind, **{**arguments, **changes})

    def nothing_left(self):
        out = self.root / "out"
        return not out.exists() or not any(out.iterdir())


@pytest.fixture
def hpsv3(tmp_path):
    return Published(tmp_path, "hpsv3")


@pytest.fixture
def videoreward(tmp_path):
    return Published(tmp_path, "videoreward")


def merged(state, scaling):
    """Independent merge in float64."""
    out = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        if name.endswith(".base_layer.weight"):
            stem = name.removesuffix("base_layer.weight")
            up, down = state[f"{stem}lora_B.default.weight"], state[f"{stem}lora_A.default.weight"]
            tensor = tensor.double() + scaling * up.double() @ down.double()
        out[name.replace(".base_layer", "")] = tensor
    return out


def same(loaded, wanted):
    return loaded.keys() == wanted.keys() and all(
        torch.equal(loaded[name], wanted[name].float()) for name in wanted
    )


def test_hpsv3_is_imported_whole(hpsv3):
    hpsv3.save()
    reward = hpsv3.import_it()
    assert same(reward.load_model().state_dict(), hpsv3.state)
    spec = reward.spec
    assert (spec.kind, spec.vision, spec.sampler, spec.color_mode) == (
        "hpsv3",
        "image",
        None,
        "rgb",
    )
    assert spec.pixels.min_pixels == spec.pixels.max_pixels == 256 * 28 * 28
    assert spec.model.rotary == "bf16" and spec.model.head == "ranknet"
    assert reward.template == TINY_TEMPLATES["hpsv3"]
    assert reward.tokenizer().convert_tokens_to_ids("<|Reward|>") == 262
    assert reward.provenance["reward_tokens_added"] == 1
    assert read_reward_directory(reward.path) == reward


def test_hpsv3_below_model_gives_the_same_reward(hpsv3):
    file = hpsv3.weights / "HPSv3.pth"
    torch.save({"model": hpsv3.public_state(), "epoch": 3}, file)
    assert same(hpsv3.import_it(weights=file).load_model().state_dict(), hpsv3.state)


def test_videoreward_is_merged(videoreward):
    videoreward.save()
    reward = videoreward.import_it()
    assert reward.spec.model.lora_rank == 0 and reward.provenance["lora_merged"] is True
    loaded = reward.load_model().state_dict()
    wanted = merged(videoreward.state, 16 / 4)
    assert loaded.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(loaded[name], tensor.to(torch.float32).bfloat16().float()), name
    spec = reward.spec
    assert spec.vision == "video" and spec.sampler is not None and spec.sampler.target_fps == 2.0
    assert (spec.pixels.min_pixels, spec.pixels.max_pixels) == (100352, 200704)
    assert spec.normalization["MQ"].mean == 1.5 and spec.normalization["MQ"].std == 2.25


def test_the_step_is_the_largest_or_the_one_asked_for(videoreward):
    for step in (9, 100, 20):
        videoreward.state["rm_head.weight"] = torch.full((1, 64), float(step)).bfloat16()
        videoreward.save(step=step)
    (videoreward.weights / "checkpoint-last").mkdir()
    for step, found in ((None, 100), (20, 20)):
        reward = videoreward.import_it(step=step, out=videoreward.root / str(step))
        assert reward.load_model().state_dict()["rm_head.weight"][0, 0] == found
        assert reward.provenance["checkpoint"] == f"checkpoint-{found}"
    with pytest.raises(CheckpointError, match="step 21") as error:
        videoreward.import_it(step=21)
    assert "[9, 20, 100]" in str(error.value) and videoreward.nothing_left()


def without(part):
    """Leave out the first tensor whose name contains ``part``."""

    def spoil(p):
        state = p.public_state()
        state.pop(next(name for name in state if part in name))
        p.save(state)

    return spoil


def pickle_of(content):
    return lambda p: torch.save(content, p.save())


def config_with(part, **change):
    def spoil(p):
        p.save()
        p.write_config(**{part: change})

    return spoil


def cut(p):
    file = p.save()
    file.write_bytes(file.read_bytes()[:-300])


def with_a_larger_vocabulary(p):
    p.save()
    byte_tokenizer(("<|extra|>",)).save_pretrained(p.tokenizer)


def with_an_edited_template(p):
    p.save()
    edited = TINY_TEMPLATES["hpsv3"].text.replace("Judge", "Gauge")
    (p.source / "prompts.py").write_text(f"A = {edited!r}")


def of_the_other_kind(p):
    state = random_weights("hpsv3" if p.kind == "videoreward" else "videoreward")[1]
    p.save(public_layout(state, "legacy" if p.kind == "videoreward" else "peft"))


REFUSED = {
    "key": ("hpsv3", without("layers.1.mlp.up_proj"), r"1 missing .*layers\.1\.mlp\.up_proj"),
    "another key": (
        "hpsv3",
        lambda p: p.save({**p.public_state(), "visual.extra.weight": torch.zeros(2)}),
        r"1 unexpected .*visual\.extra",
    ),
    "shape": (
        "hpsv3",
        lambda p: p.save({**p.public_state(), "rm_head.5.bias": torch.zeros(3)}),
        r"rm_head\.5\.bias has the wrong shape",
    ),
    "cut": ("hpsv3", cut, r"cannot read HPSv3\.safetensors"),
    "vocabulary": ("hpsv3", with_a_larger_vocabulary, "264 tokens for 263 embedding rows"),
    "template": ("hpsv3", with_an_edited_template, "template is not in the source"),
    "clip as image": ("hpsv3", of_the_other_kind, "of another reward"),
    "image as clip": ("videoreward", of_the_other_kind, "of another reward"),
    "no head": ("videoreward", pickle_of({"model": {}, "step": 3}), "no reward head"),
    "lists": ("videoreward", pickle_of({"weights": [1, 2]}), r"weights \(list\)"),
    "cut pickle": ("videoreward", cut, r"cannot read model\.pth"),
    "output": ("videoreward", config_with("model_config", output_dim=3), "output_dim 3"),
    "pixels": ("videoreward", config_with("data_config", max_frame_pixels=1000), "min_pixels"),
    "scale": ("videoreward", config_with("peft_lora_config", lora_alpha=None), "scale of the LoRA"),
    "factor": ("videoreward", without("lora_B.default.weight"), "1 missing .*lora_B"),
    "no files": ("videoreward", lambda p: p.save().unlink(), r"cannot read model\.pth"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_failed_import_says_why_and_leaves_nothing(tmp_path, case):
    kind, spoil, message = REFUSED[case]
    published = Published(tmp_path, kind)
    spoil(published)
    with pytest.raises(UserError, match=message):
        published.import_it()
    assert published.nothing_left()


class Code:
    """An object whose unpickling would run a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return (os.system, (self.command,))


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_pickle_is_never_run(videoreward, new_format):
    file = videoreward.save()
    proof = videoreward.root / "ran"
    content = {**videoreward.public_state(), "extra": Code(f"touch {proof}")}
    torch.save(content, file, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match="cannot read"):
        videoreward.import_it()
    assert not proof.exists() and videoreward.nothing_left()


INSTRUCTION = "Judge the picture.\nIt should show: {text_prompt}\n\tIn \\ words: été\n"
SUFFIX = "\nScore: <|R|>\n"
WHOLE = "Clip quality <|Q|> and {text_prompt} <|T|> end"


def digest_of(text, *tokens):
    sha = hashlib.sha256(text.encode()).hexdigest()
    return TemplateDigest(sha256=sha, characters=len(text), reward_tokens=tokens, name="invented")


TWO_PARTS = digest_of(INSTRUCTION + SUFFIX, "<|R|>")
ONE_PART = digest_of(WHOLE, "<|Q|>", "<|T|>")

COLLATOR = f'''
import os, does_not_exist
raise SystemExit("this module must not run")
OTHER = """Judge something else: {{text_prompt}}"""
INSTRUCTION = """{INSTRUCTION.replace(chr(92), chr(92) * 2)}"""
with_token = """{SUFFIX}"""
without_token = """{SUFFIX.replace("<|R|>", "")}"""
'''
PROMPTS = f"def build(p):\n    T = {{'special': {WHOLE!r}}}\n    return T['special'].format(p)\n"


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "checkout"
    (root / "pkg" / "data").mkdir(parents=True)
    (root / "pkg" / "data" / "collator.py").write_text(COLLATOR, encoding="utf-8")
    (root / "pkg" / "prompts.py").write_text(PROMPTS, encoding="utf-8")
    (root / "pkg" / "old.py").write_text("print 'python 2 {text_prompt}'\n")
    return root


def wheel_of(checkout, target):
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(checkout.rglob("*.py")):
            archive.write(file, file.relative_to(checkout))
        archive.writestr("pkg/weights.bin", b"\x00" * 100)
    return target


def test_a_template_of_two_constants_is_read_from_every_kind_of_source(checkout, tmp_path):
    wheel = wheel_of(checkout, tmp_path / "pkg-1.0-py3-none-any.whl")
    for source in (checkout, wheel, checkout / "pkg" / "data" / "collator.py"):
        template = read_template(source, TWO_PARTS)
        assert template.text == INSTRUCTION + SUFFIX
        assert template.reward_tokens == ("<|R|>",)
    assert read_template(checkout, ONE_PART).text == WHOLE  # inside a function
    file = checkout / "pkg" / "data" / "collator.py"  # line endings do not matter
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert read_template(file, TWO_PARTS).text == INSTRUCTION + SUFFIX


def test_sources_without_a_usable_template_are_refused(checkout, tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    wheel = wheel_of(checkout, tmp_path / "pkg.whl")
    wheel.write_bytes(wheel.read_bytes()[:-40])
    for source, words in (
        (tmp_path / "a.py", "1 Python files; templates: none"),
        (wheel, "cannot be read"),
        (tmp_path / "nothing.whl", "cannot be read"),
    ):
        with pytest.raises(UserError, match=words):
            read_template(source, TWO_PARTS)
