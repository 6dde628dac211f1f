"""CLIP reward on small open_clip checkpoints made here: loading, scores, captions, errors."""

import json

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from longtake.core.video import to_uint8
from longtake.rewards.clip import load_clip
from longtake.rewards.contract import Reward, Score, VideoBatch
from longtake.runtime.errors import CheckpointError

CONTEXT = 12
MODEL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2,
                 "layers": 2},
}  # fmt: skip
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.25], "resize_mode": "shortest"}
PROMPTS = ("a red circle moves left", "two blue squares", "a green star on a grey background")


def write_model(folder, seed=0, **text):
    """A random open_clip model in the published folder layout."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**MODEL, "text_cfg": {**MODEL["text_cfg"], **text}}
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config)
    # The default initialisation is so small that all captions have nearly one embedding.
    state = {k: v * 3 if v.ndim > 1 else v for k, v in model.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "open_clip_model.safetensors")
    record = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def reward(folder):
    return load_clip(folder)


def batch(num=3, frames=5, seed=0, size=(40, 56), prompts=PROMPTS):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num * frames, 3, 5, 7, generator=generator)
    video = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    video = video.view(num, frames, 3, *size)
    return VideoBatch(video=video, prompts=list(prompts[:num]), fps=8.0)


def cosines_by_open_clip(folder, clips):
    """Cosines [B, F] by open_clip's own loader, transform and normalisation, image by image."""
    name = f"local-dir:{folder}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    model.eval()
    tokenizer = open_clip.get_tokenizer(name)
    rows = []
    with torch.no_grad():
        for video, prompt in zip(clips.video, clips.prompts, strict=True):
            text = model.encode_text(tokenizer([prompt]), normalize=True)
            pixels = to_uint8(video).permute(0, 2, 3, 1).numpy()
            images = [model.encode_image(preprocess(Image.fromarray(p))[None], normalize=True)
                      for p in pixels]  # fmt: skip
            rows.append(torch.cat([image @ text.T for image in images])[:, 0])
    return torch.stack(rows)


def values(reward, clips):
    return torch.tensor([float(score) for score in reward.score(clips)])


def test_scores_are_open_clips_cosines_times_100(folder, reward):
    clips = batch(frames=35)  # more than one pass
    expected = cosines_by_open_clip(folder, clips)
    torch.testing.assert_close(values(reward, clips), 100 * expected.mean(1), atol=1e-4, rtol=0)
    assert expected.std() > 0.01  # frames and captions do differ


def test_a_score_does_not_depend_on_its_batch_or_dtype(reward):
    clips = batch()
    together = list(reward.score(clips))
    assert [reward.score(clips.select([i]))[0] for i in range(3)] == together
    as_uint8 = VideoBatch(video=to_uint8(clips.video), prompts=clips.prompts, fps=8.0)
    assert reward.score(as_uint8) == together


def test_a_long_caption_is_noted(reward):
    fits = " ".join(["red"] * (CONTEXT - 2))  # start and end take two places
    prompts = (fits, fits + " red", fits + " red blue")
    video = batch().video[:1].expand(3, -1, -1, -1, -1)
    first, second, third = reward.score(VideoBatch(video=video, prompts=prompts, fps=8))
    assert not first.note and "text context" in second.note and third.note
    assert first.value == second.value == third.value  # what lies beyond does not count


def test_a_missing_caption_is_unscored(reward):
    first, second, third = reward.score(batch(prompts=(PROMPTS[0], " ", PROMPTS[2])))
    assert second == Score.unscored("the clip has no caption")
    assert first.reason is None and third.reason is None


def test_protocol_and_fingerprint(folder, reward, tmp_path):
    assert isinstance(reward, Reward) and reward.needs_prompt and not reward.needs_time
    first = reward.fingerprint()
    assert json.loads(json.dumps(first)) == first
    assert first["preprocess"]["mean"] == PREPROCESS["mean"]
    assert load_clip(folder).fingerprint() == first
    other = load_clip(write_model(tmp_path / "other", seed=1)).fingerprint()
    assert {k for k in first if first[k] != other[k]} == {"weights_sha256"}


class Evil:
    def __reduce__(self):
        return (open, ("/nonexistent/evil", "w"))


def drop_tensor(weights, config):
    save_file({k: v for k, v in load_file(weights).items() if k != "text_projection"}, weights)


def pickled(weights, config):
    weights.unlink()
    torch.save({"x": Evil()}, weights.with_name("open_clip_pytorch_model.bin"))


def downloading(weights, config):
    record = json.loads(config.read_text())
    record["model_cfg"]["text_cfg"]["hf_model_name"] = "xlm-roberta-base"
    config.write_text(json.dumps(record))


DAMAGED = {
    "cut": (lambda weights, _: weights.write_bytes(weights.read_bytes()[:-1000]), "cannot load"),
    "tensor": (drop_tensor, "text_projection"),
    "no weights": (lambda weights, _: weights.unlink(), "could not be loaded"),
    "no json": (lambda _, config: config.write_text("{"), "cannot read open_clip_config.json"),
    "empty": (lambda _, config: config.write_text("{}"), "model_cfg"),
    "code": (pickled, "cannot load"),
    "download": (downloading, "hf_model_name=xlm-roberta-base"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_folders_are_refused(tmp_path, case):
    damage, words = DAMAGED[case]
    folder = write_model(tmp_path / "bad")
    damage(folder / "open_clip_model.safetensors", folder / "open_clip_config.json")
    with pytest.raises(CheckpointError, match=words):
        load_clip(folder)
