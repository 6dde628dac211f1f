"""CLIP reward on small open_clip checkpoints made here: loading, scores, captions, errors."""

import json
import math
import sys
from dataclasses import replace

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from longtake.core.video import to_uint8
from longtake.rewards.clip_reward import ClipConfig, load_clip_reward
from longtake.rewards.contract import Reward, VideoBatch
from longtake.rewards.suite import RewardSuite
from longtake.runtime.errors import CheckpointError, ConfigError, UserError

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
    return load_clip_reward(folder)


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
    return torch.stack(rows), model


@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_open_clips_cosines_times_100(folder, reward, seed):
    clips = batch(seed=seed)
    expected, _ = cosines_by_open_clip(folder, clips)
    output = reward.score(clips)
    torch.testing.assert_close(output.aux["per_frame"], 100 * expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(output.score, 100 * expected.mean(1), atol=1e-4, rtol=0)
    assert output.valid.all() and output.score.dtype == torch.float32
    assert expected.std() > 0.01  # frames and captions do differ


def test_logit_scale_and_bias_are_the_models_own(tmp_path):
    folder = write_model(tmp_path / "m")
    clips = batch()
    expected, model = cosines_by_open_clip(folder, clips)
    reward = load_clip_reward(folder, config=ClipConfig(scale="logit"))
    scale = model.logit_scale.exp().item()
    assert not math.isclose(scale, 100, rel_tol=0.01)
    torch.testing.assert_close(
        reward.score(clips).score, scale * expected.mean(1), atol=1e-4, rtol=0
    )
    reward._model.logit_bias = torch.nn.Parameter(torch.tensor([-7.0]))
    torch.testing.assert_close(
        reward.score(clips).score, scale * expected.mean(1) - 7, atol=1e-4, rtol=0
    )


def test_top_fraction_and_frame_choice(folder, reward):
    clips = batch(frames=10)
    per_frame = reward.score(clips).aux["per_frame"]
    top = load_clip_reward(folder, config=ClipConfig(how="top_fraction", fraction=0.3))
    expected = per_frame.sort(1, descending=True).values[:, :3].mean(1)
    torch.testing.assert_close(top.score(clips).score, expected)
    few = load_clip_reward(folder, config=ClipConfig(num_frames=4))
    torch.testing.assert_close(few.score(clips).aux["per_frame"], per_frame[:, [0, 3, 6, 9]])


def test_a_score_does_not_depend_on_its_batch(reward):
    clips = batch()
    together = reward.score(clips)
    for i in range(clips.num_samples):
        alone = reward.score(clips.select([i]))
        assert torch.equal(alone.score, together.score[i : i + 1])
        assert torch.equal(alone.aux["per_frame"], together.aux["per_frame"][i : i + 1])


def test_the_size_of_a_pass_changes_rounding_only(folder, reward):
    clips = batch(frames=7)
    small = load_clip_reward(folder, config=ClipConfig(frames_per_pass=2))
    torch.testing.assert_close(small.score(clips).score, reward.score(clips).score, atol=1e-4,
                               rtol=0)  # fmt: skip


def test_float_and_uint8_clips_score_the_same(reward):
    clips = batch()
    as_uint8 = VideoBatch(video=to_uint8(clips.video), prompts=clips.prompts, fps=8.0)
    assert torch.equal(reward.score(clips).score, reward.score(as_uint8).score)


def test_a_long_caption_is_reported(reward):
    fits = " ".join(["red"] * (CONTEXT - 2))  # start and end take two places
    clips = batch(prompts=(fits, fits + " red", fits + " red blue"))
    output = reward.score(clips)
    assert output.aux["caption_truncated"].tolist() == [0, 1, 1]
    assert output.valid.all()
    same = VideoBatch(video=clips.video[:1].expand(3, -1, -1, -1, -1), prompts=clips.prompts, fps=8)
    scores = reward.score(same).score
    assert scores[0] == scores[1] == scores[2]  # what lies beyond the context does not count


def test_a_missing_caption_is_unscored(reward):
    output = reward.score(batch(prompts=(PROMPTS[0], " ", PROMPTS[2])))
    assert output.valid.tolist() == [True, False, True]
    assert output.reasons == [None, "the clip has no caption", None]
    assert output.score[1].isnan()
    scores = RewardSuite({"clip": (reward, 1.0)}).score(batch(prompts=(PROMPTS[0], "", "x")))
    assert scores.unscored() == {"clip": 1} and "no caption" in scores.reasons[0][1]


def test_protocol_and_fingerprint(folder, reward, tmp_path):
    assert isinstance(reward, Reward) and reward.needs_prompt and not reward.needs_time
    first = reward.fingerprint()
    assert json.loads(json.dumps(first)) == first
    assert first["preprocess"]["mean"] == PREPROCESS["mean"]
    assert load_clip_reward(folder).fingerprint() == first
    other = load_clip_reward(write_model(tmp_path / "other", seed=1)).fingerprint()
    assert {k for k in first if first[k] != other[k]} == {"weights_sha256"}
    assert load_clip_reward(folder, config=ClipConfig(fraction=0.5)).fingerprint() != first


def test_low_precision_follows_fp32(folder, reward):
    clips = batch()
    low = load_clip_reward(folder, config=ClipConfig(precision="bf16"))
    torch.testing.assert_close(low.score(clips).score, reward.score(clips).score, atol=3, rtol=0)


def test_architecture_name_with_a_weights_file(folder, reward, tmp_path, monkeypatch):
    from open_clip import factory

    monkeypatch.setattr(factory, "_MODEL_CONFIGS", {"tiny-clip": MODEL})
    state = open_clip.create_model_from_pretrained(f"local-dir:{folder}")[0].state_dict()
    torch.save(state, tmp_path / "weights.pt")
    named = load_clip_reward("tiny-clip", tmp_path / "weights.pt")
    assert named.fingerprint()["preprocess"]["mean"][0] == pytest.approx(0.48145466)
    clips = batch()
    default = replace_preprocess(folder, tmp_path / "default")
    assert torch.equal(named.score(clips).score, load_clip_reward(default).score(clips).score)
    assert not torch.equal(named.score(clips).score, reward.score(clips).score)


def replace_preprocess(folder, target):
    """The same model without a preprocessing of its own."""
    write_model(target)
    (target / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL}))
    (target / "open_clip_model.safetensors").write_bytes(
        (folder / "open_clip_model.safetensors").read_bytes()
    )
    return target


def damaged(folder, target, change):
    write_model(target)
    change(target)
    return target


def truncate(folder):
    path = folder / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def drop_tensor(folder):
    path = folder / "open_clip_model.safetensors"
    from safetensors.torch import load_file

    state = load_file(path)
    del state["text_projection"]
    save_file(state, path)


def remove_weights(folder):
    (folder / "open_clip_model.safetensors").unlink()


def break_json(folder):
    (folder / "open_clip_config.json").write_text("{")


def empty_json(folder):
    (folder / "open_clip_config.json").write_text("{}")


class Evil:
    def __reduce__(self):
        return (open, ("/nonexistent/evil", "w"))


def pickled(folder):
    remove_weights(folder)
    torch.save({"x": Evil()}, folder / "open_clip_pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (truncate, "cannot load"),
        (drop_tensor, "text_projection"),
        (remove_weights, "could not be loaded"),
        (break_json, "cannot read open_clip_config.json"),
        (empty_json, "no open_clip model configuration"),
        (pickled, "cannot load"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_damaged_folders_are_named(folder, tmp_path, change, words):
    with pytest.raises(CheckpointError, match=words):
        load_clip_reward(damaged(folder, tmp_path / "bad", change))


def test_nothing_is_downloaded(tmp_path):
    with pytest.raises(CheckpointError, match="weights of ViT-B-32 are not there"):
        load_clip_reward("ViT-B-32")
    with pytest.raises(CheckpointError, match="tags of pretrained weights are not downloaded"):
        load_clip_reward("ViT-B-32", "openai")
    with pytest.raises(CheckpointError, match="local files only"):
        load_clip_reward("hf-hub:laion/CLIP-ViT-B-32")
    with pytest.raises(CheckpointError, match="ViT-B-32-quickgelu"):
        load_clip_reward("b-32-quick")
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"")
    with pytest.raises(CheckpointError, match="download the tokenizer"):
        load_clip_reward("ViT-B-16-SigLIP", weights)
    folder = write_model(tmp_path / "m")
    record = json.loads((folder / "open_clip_config.json").read_text())
    record["model_cfg"]["text_cfg"]["hf_model_name"] = "xlm-roberta-base"
    (folder / "open_clip_config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="hf_model_name=xlm-roberta-base"):
        load_clip_reward(folder)


@pytest.mark.parametrize("error", [ImportError("No module named 'torchvision'"), RuntimeError(
    "operator torchvision::nms does not exist")], ids=["absent", "other_build"])  # fmt: skip
def test_a_missing_library_names_the_extra(folder, monkeypatch, error):
    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name == "open_clip":
                raise error

    for name in [n for n in sys.modules if n.split(".")[0] == "open_clip"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Refuse(), *sys.meta_path])
    with pytest.raises(UserError, match=r"longtake\[clip\]") as caught:
        load_clip_reward(folder)
    assert str(error) in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"frames_per_pass": 0}, {"scale": "cos"}, {"precision": "fp64"}]
)
def test_bad_settings_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        replace(ClipConfig(), **change)
