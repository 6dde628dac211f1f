"""Recorded scores of the public reward classes are met, and faults are not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLModel

from longtake.core.golden import CHECKS, check_file
from longtake.rewards.golden import REWARD_CHECKS
from longtake.rewards.qwen2vl.model import Qwen2VLRewardModel
from longtake.runtime.errors import CheckpointError

DATA = Path(__file__).parents[1] / "data"
FILES = {
    "hpsv3": {"out.logits", "out.logits_bf16_rounded_inv_freq", "wrong.logits_3d_positions"},
    "videoreward": {"out.logits", "out.logits_bf16_rounded_inv_freq", "wrong.logits_3d_positions"},
    "videoreward_lora": {"out.logits", "out.logits.merged"},
}


def check(path):
    results = check_file(path, checks={**CHECKS, **REWARD_CHECKS})
    return {result.name: result for result in results}


def edited(name, tmp_path, tensors, **metadata):
    """A copy of a golden file with tensors and metadata replaced, or removed with None."""
    source = DATA / f"{name}.safetensors"
    with safe_open(source, "pt") as file:
        header = {**file.metadata(), **metadata}
    kept = {k: v for k, v in {**load_file(source), **tensors}.items() if v is not None}
    save_file(kept, tmp_path / "x.safetensors", {k: v for k, v in header.items() if v is not None})
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("name", FILES)
def test_recorded_scores_are_met(name):
    results = check(DATA / f"{name}.safetensors")
    assert results.keys() == FILES[name]
    for result in results.values():
        assert result.passed and result.tolerance == 1e-4, result
        assert result.is_control == result.name.startswith("wrong.")
        if result.is_control:
            assert result.max_abs_error > 0.1
        else:
            assert result.max_abs_error <= 2e-5 and result.magnitude > 1


def three_dimensional(monkeypatch):
    """transformers' own language model at the time, height and width positions of Qwen2-VL.

    Text counts on by one; a picture of T x H x W merged patches that begins at position p has
    p + (t, h, w), and text goes on after the largest of these.
    """

    def forward(self, ids, mask, pixels, grid, *_):
        backbone = self.config.backbone
        stock = Qwen2VLModel._from_config(backbone).eval()
        stock.load_state_dict(self.model.state_dict())
        vision = (ids == backbone.image_token_id) | (ids == backbone.video_token_id)
        t, h, w = (int(n) for n in grid[0] // torch.tensor([1, 2, 2]))
        begin = int(vision[0].int().argmax())
        axes = torch.meshgrid(*map(torch.arange, (t, h, w)), indexing="ij")
        picture = begin + torch.stack(axes).reshape(3, -1)
        after = torch.arange(ids.shape[1] - begin - t * h * w) + picture.max() + 1
        places = torch.cat([torch.arange(begin).expand(3, -1), picture, after.expand(3, -1)], dim=1)
        embeddings = stock.get_input_embeddings()(ids)
        embeddings[vision] = stock.visual(pixels, grid_thw=grid).pooler_output
        states = stock.language_model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=places[:, None].expand(3, len(ids), -1),
        ).last_hidden_state
        rows = torch.stack([states[ids == t] for t in self.config.reward_token_ids], dim=1)
        return self.rm_head.score_rows(rows, range(rows.shape[1]))

    monkeypatch.setattr(Qwen2VLRewardModel, "forward", forward)


def unmerged_tokens(monkeypatch):
    """The vision tokens before the merger, laid out as a masked scatter would take them."""

    def vision_tokens(self, pixels, grid):
        out = self.model.visual(pixels, grid_thw=grid)
        width = self.embedding.embedding_dim
        return out.last_hidden_state.flatten()[: out.pooler_output.numel()].view(-1, width)

    monkeypatch.setattr(Qwen2VLRewardModel, "vision_tokens", vision_tokens)


@pytest.mark.parametrize("fault", [three_dimensional, unmerged_tokens])
@pytest.mark.parametrize("name", ["hpsv3", "videoreward"])
def test_known_faults_fail_the_check(name, fault, monkeypatch):
    fault(monkeypatch)
    results = check(DATA / f"{name}.safetensors")
    assert not results["out.logits"].passed
    assert results["out.logits"].max_abs_error > 0.1
    # The recorded control is this very fault: matching it fails too.
    control = results["wrong.logits_3d_positions"]
    assert control.passed == (fault is unmerged_tokens)


def test_exact_frequencies_are_not_taken_for_rounded_ones(tmp_path):
    for name in ("hpsv3", "videoreward"):
        tensors = load_file(DATA / f"{name}.safetensors")
        swapped = {
            "out.logits": tensors["out.logits_bf16_rounded_inv_freq"],
            "out.logits_bf16_rounded_inv_freq": tensors["out.logits"],
        }
        results = check(edited(name, tmp_path, swapped))
        assert not any(results[key].passed for key in swapped)


def test_a_control_that_matches_and_a_new_output_fail(tmp_path):
    recorded = load_file(DATA / "hpsv3.safetensors")["out.logits"]
    path = edited("hpsv3", tmp_path, {"wrong.same": recorded + 1e-5, "out.new": recorded})
    results = check(path)
    assert {name for name, result in results.items() if not result.passed} == {
        "wrong.same",
        "out.new",
    }


def test_a_changed_weight_and_a_changed_scale_fail(tmp_path):
    name = "weights.visual.merger.mlp.2.weight"
    weight = load_file(DATA / "hpsv3.safetensors")[name]
    assert not check(edited("hpsv3", tmp_path, {name: 1.01 * weight}))["out.logits"].passed
    path = edited("videoreward_lora", tmp_path, {}, lora=json.dumps({"r": 64, "alpha": 64}))
    assert not any(result.passed for result in check(path).values())


def test_incomplete_files_are_explained(tmp_path):
    with pytest.raises(CheckpointError, match=r"lacks inputs[\s\S]*in\.pixel_values"):
        check(edited("hpsv3", tmp_path, {"in.pixel_values": None}))
    with pytest.raises(CheckpointError, match=r"1 missing \(model\.language_model\.norm\.weight\)"):
        check(edited("hpsv3", tmp_path, {"weights.model.norm.weight": None}))
    with pytest.raises(CheckpointError, match="special_token_ids"):
        check(edited("hpsv3", tmp_path, {}, head="{}"))
    with pytest.raises(CheckpointError, match="no usable config"):
        check(edited("hpsv3", tmp_path, {}, config=None))
