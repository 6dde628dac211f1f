"""Training of reward heads on tiny models: what is trained, learned, repeated and written."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import save_file

from longtake.core.video import read_video, write_mp4, write_png
from longtake.core.weights import digest_tensors, read_tensors
from longtake.rewards import preference_inputs
from longtake.rewards.contract import VideoBatch
from longtake.rewards.hpsv3 import GENERAL_PROMPT
from longtake.rewards.pixels import clip_patches, normalize_patches
from longtake.rewards.preference_data import OVERALL, PreferencePair, split_by_prompt
from longtake.rewards.preference_files import (
    read_hpsv3_json,
    read_preference_csv,
    write_hpsv3_json,
    write_preference_csv,
)
from longtake.rewards.preference_inputs import PreferenceDataset, collate
from longtake.rewards.preference_labels import A_WINS, B_WINS, TIE
from longtake.rewards.preference_loss import bradley_terry_ties_loss
from longtake.rewards.preference_trainer import (
    SCORER_INPUTS,
    PairLoss,
    PairScorer,
    PreferenceTrainer,
    load_trained,
    pair_metrics,
    scores_of,
    trained_state,
)
from longtake.rewards.prompt_sampler import PromptSampler
from longtake.rewards.qwen2vl_load import load_reward_model
from longtake.rewards.reward_directory import read_reward_directory
from longtake.rewards.train import latest_checkpoint, make_trainable, train_reward
from longtake.rewards.train_config import LoraSettings, RewardTrainingConfig
from longtake.rewards.videoalign import load_videoalign
from longtake.runtime.errors import CheckpointError, ConfigError, RunDirectoryError, UserError
from longtake.sandbox.recipes.tiny_vlm import tiny_spec, write_tiny_reward

FAST = (
    "precision=float32",
    "learning_rate=2e-3",
    "warmup_share=0",
    "batch_pairs=6",
    "micro_batch=6",
    "eval_every=2",
    "data.validation_share=0.3",
    "lora.rank=4",
    "lora.alpha=8",
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def clip(bright, seed):
    """A clip [4, 3, 56, 56] of random colours: dark or bright."""
    noise = torch.rand(4, 3, 56, 56, generator=torch.Generator().manual_seed(seed))
    return 0.4 * noise + (0.6 if bright else 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
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
        images.append(
            PreferencePair(
                prompt=pair.prompt,
                path_a=f"{names['a']}.png",
                path_b=f"{names['b']}.png",
                labels={OVERALL: labels["MQ"]},
                confidence=1.0,
            )
        )
    write_preference_csv(videos, root / "pairs.csv")
    write_hpsv3_json(images, root / "pairs.json")
    for kind in ("videoreward", "hpsv3"):
        write_tiny_reward(root / kind, tiny_spec(kind), seed=0)
    return root


def launch(folder, run, *overrides, kind="videoreward", file=None, **options):
    """Train on the data of ``folder``; (run directory, reward directory)."""
    default = "pairs.csv" if kind == "videoreward" else "pairs.json"
    reward = train_reward(
        None,
        [*FAST, *overrides],
        output_dir=run,
        base=folder / kind,
        data=folder / (file or default),
        device="cpu",
        **options,
    )
    return run, read_reward_directory(reward, verify_weights=True)


@pytest.fixture
def start(folder, tmp_path):
    """Train: start(*overrides, kind, out, resume) -> (run directory, reward directory)."""

    def run(*overrides, out="run", **options):
        return launch(folder, tmp_path / out, *overrides, **options)

    return run


@pytest.fixture(scope="module")
def learned(folder, tmp_path_factory):
    """One longer run, LoRA and vision tower, for the tests that only look at its results."""
    return launch(folder, tmp_path_factory.mktemp("learned") / "run", "max_updates=5", "patience=0")


def dataset(folder, reward, dimensions=("MQ",), *, spec=None, pairs=None, **options):
    pairs = pairs or read_preference_csv(folder / "pairs.csv")
    options = {"keep_ties": True, **options}
    return PreferenceDataset(
        pairs, dimensions, spec or reward.spec, reward.encoder(), folder, **options
    )


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(directory):
    return read_tensors(directory.path / "model.safetensors")


def test_a_video_head_learns_and_is_written(learned, folder):
    run, reward = learned
    lines = records(run)
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert [line["update"] for line in lines if "eval_loss" in line] == [-1, 1, 3, 4]
    assert [line["update"] for line in lines if "loss" in line] == [0, 1, 2, 3, 4]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["validation"]["eval_loss"] == pytest.approx(min(losses[1:]), abs=1e-6)
    assert min(losses) < 0.5 * losses[0]
    assert summary["validation"]["eval_MQ_accuracy"] == 1
    assert summary["best_update"] == (2, 4, 5)[losses[1:].index(min(losses[1:]))]
    assert reward.provenance["trained_from"]["weights_sha256"]
    assert reward.spec.model.lora_rank == 0 and reward.spec.color_mode == "bt601"

    # The scorer shows the model what training showed it, and held-out bright clips win.
    _, validation = split_by_prompt(read_preference_csv(folder / "pairs.csv"), 0.3, 0)
    data = dataset(folder, reward, pairs=validation)
    batch = collate([data[i] for i in range(len(data))])
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "pairs", "clips")}
    inputs["pixel_values"] = normalize_patches(inputs["pixel_values"], reward.spec.pixels)
    trained = reward.load_model().score(**inputs, tokens=(1,))[:, 0][batch["clips"].flatten()]
    paths = [path for side in "ab" for p in validation for path in [getattr(p, f"path_{side}")]]
    video = torch.stack([read_video(folder / path)[0] for path in paths])
    clips = VideoBatch(video=video, prompts=["any"] * len(paths), fps=2.0)
    scorer = load_videoalign(reward.path, ["MQ"], normalize=False)["videoalign_mq"]
    torch.testing.assert_close(scorer.score(clips).score, trained, atol=1e-4, rtol=0)
    a, b = trained.chunk(2)
    assert torch.equal((a - b).sign().long(), batch["labels"][:, 0])
    assert set(reward.spec.normalization) == {"MQ"}
    normalized = load_videoalign(reward.path, ["MQ"])["videoalign_mq"].score(clips).score
    assert normalized.mean().item() == pytest.approx(0, abs=1e-4)
    assert normalized.std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_the_public_layout_holds_the_same_model(learned, folder):
    run, reward = learned
    state = torch.load(run / "public" / "model.pth", weights_only=True)
    names = [name for name in state if "lora_A" in name]
    assert names and all(
        name.startswith("base_model.model.model.layers.") and name.endswith(".default.weight")
        for name in names
    )
    assert "base_model.model.rm_head.weight" in state
    config = dataclasses.replace(reward.spec.model, lora_rank=4, lora_alpha=8.0)
    unmerged, merged = load_reward_model(config, state), reward.load_model()
    data = dataset(folder, reward)
    batch = collate([data[0], data[1]])
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "pairs", "clips")}
    one, two = (model.score(**inputs, tokens=(1,)) for model in (unmerged, merged))
    torch.testing.assert_close(one, two, atol=1e-4, rtol=0)
    names = json.loads((run / "public" / "inference_config.json").read_text())
    assert names["MQ_mean"] == reward.spec.normalization["MQ"].mean
    assert (names["VQ_mean"], names["VQ_std"]) == (0, 1)


def test_an_image_head_learns_with_uncertainty(start):
    run, reward = start(
        f"dimensions=[{OVERALL}]", "max_updates=4", "uncertainty_draws=64", kind="hpsv3"
    )
    summary = json.loads((run / "summary.json").read_text())
    assert summary["loss"] == "uncertainty"
    losses = [line["eval_loss"] for line in records(run) if "eval_loss" in line]
    assert min(losses) < losses[0]
    assert summary["validation"]["eval_Overall_accuracy"] > 0.8
    state = read_tensors(run / "public" / "HPSv3.safetensors")
    assert {"rm_head.5.weight", "model.norm.weight", "lm_head.weight"} <= set(state)
    assert not any("lora" in name for name in state)
    again = load_reward_model(reward.spec.model, state).state_dict()
    assert digest_tensors(again) == digest_tensors(reward.load_model().state_dict())
    assert reward.spec.normalization == {}


def test_clips_give_an_image_head_one_row_per_frame(folder):
    reward = read_reward_directory(folder / "hpsv3")
    data = dataset(folder, reward, frames_per_clip=3)
    assert len(data) == 48 and [data[i].pair for i in range(4)] == [0, 0, 0, 1]
    assert not torch.equal(data[0].a.patches, data[1].a.patches)
    assert data[0].a.grid[0] == 1 and len(set(data.clip_keys())) == 48


def test_every_second_frame_can_be_shown_with_the_general_prompt(folder):
    reward = read_reward_directory(folder / "hpsv3")
    plain = dataset(folder, reward, frames_per_clip=3)
    data = dataset(folder, reward, frames_per_clip=3, general_prompt=GENERAL_PROMPT)
    for row in range(6):
        for key, other in zip(data.clip_keys()[row], plain.clip_keys()[row], strict=True):
            assert key.prompt == (GENERAL_PROMPT if row % 3 == 1 else other.prompt)
    assert data.rows_of_prompts() == plain.rows_of_prompts()
    ids = reward.encoder().encode(GENERAL_PROMPT, data[1].a.patches.shape[0] // 4, None)
    assert data[1].a.ids == ids and data[0].a.ids == plain[0].a.ids != ids


@pytest.mark.parametrize(
    ("kind", "setting"),
    [("videoreward", "data.frames_per_clip=4"), ("hpsv3", "data.frames_per_clip=1")],
)
def test_the_general_prompt_needs_two_frames_of_an_image_reward(start, kind, setting):
    with pytest.raises(ConfigError, match="general prompt cannot be shown"):
        start("data.general_prompt=true", setting, kind=kind)


def test_training_sees_the_pixels_of_scoring(folder, tmp_path):
    reward = read_reward_directory(folder / "hpsv3")
    generator = torch.Generator().manual_seed(3)
    # Resized to 112x140; resizing that once more would give 84x112.
    frames = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8, generator=generator)
    pairs = read_hpsv3_json(folder / "pairs.json")[:1]
    for name, frame in zip("ab", frames, strict=True):
        write_png(frame.permute(1, 2, 0), tmp_path / f"{name}.png")
    pair = dataclasses.replace(pairs[0], path_a="a.png", path_b="b.png")
    data = PreferenceDataset(
        [pair], (OVERALL,), reward.spec, reward.encoder(), tmp_path, keep_ties=True
    )
    for clip, frame in zip((data[0].a, data[0].b), frames, strict=True):
        patches, grid = clip_patches(frame[None], reward.spec.pixels)
        assert clip.grid == grid == (1, 8, 10)
        assert torch.equal(normalize_patches(clip.patches, reward.spec.pixels), patches)


def test_rows_of_a_pair_are_averaged_for_the_accuracy():
    outputs = torch.tensor([[3.0, 0], [0, 1], [0, 1], [0, 5]])[..., None]  # frames say A, B, B
    labels = torch.tensor([[A_WINS]] * 3 + [[B_WINS]])
    metrics = pair_metrics(
        outputs, labels, torch.tensor([7, 7, 7, 9]), ["MQ"], PairLoss(kind="bradley_terry")
    )
    assert metrics["MQ_accuracy"] == 1
    by_hand = [math.log1p(math.exp(-x)) for x in (3, -1, -1, 5)]
    assert metrics["loss"] == pytest.approx(sum(by_hand) / 4)


@pytest.mark.parametrize(("method", "vision"), [("lora", False), ("full", True)])
def test_only_what_is_asked_for_is_trained(start, folder, method, vision):
    _, reward = start("max_updates=1", f"method={method}", f"train_vision={vision}")
    before, after = weights(read_reward_directory(folder / "videoreward")), weights(reward)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    rows = "model.language_model.embed_tokens.weight"
    same = (before[rows] == after[rows]).all(1)
    assert set((~same).nonzero().flatten().tolist()) <= set(reward.spec.model.reward_token_ids)
    # Training stops at the motion token: its row moves, the text-alignment row cannot.
    _vq, mq, ta = reward.spec.model.reward_token_ids
    assert not same[mq] and same[ta]
    assert any(".visual." in name for name in changed) == vision
    assert "rm_head.weight" in changed
    norms = {name for name in changed if "layernorm" in name and "language_model" in name}
    assert bool(norms) == (method == "full")
    assert any("q_proj.weight" in name for name in changed)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_trained_has_float32_weights(folder, method):
    model = read_reward_directory(folder / "videoreward").load_model(dtype=torch.bfloat16)
    make_trainable(model, RewardTrainingConfig(method=method))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32, name
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}
    assert not model.embedding.weight.requires_grad
    assert model.reward_rows.requires_grad and model.reward_rows.shape == (3, 64)


def test_bfloat16_training_moves_the_weights(start, folder):
    _, reward = start("max_updates=1", "precision=bfloat16", "learning_rate=2e-6")
    head = weights(reward)["rm_head.weight"]
    before = weights(read_reward_directory(folder / "videoreward"))["rm_head.weight"]
    # In bfloat16 the step of 2e-6 would round away.
    assert head.dtype == torch.float32
    assert 1e-6 < (head - before).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("videoreward", []),
        ("videoreward", ["group_by_prompt=true", "schedule=cosine"]),
        ("hpsv3", [f"dimensions=[{OVERALL}]", "uncertainty_draws=64"]),
    ],
)
def test_a_run_that_was_interrupted_ends_like_one_that_was_not(start, monkeypatch, kind, extra):
    # The same seed, so this is also the proof that runs repeat; dropout and noise are on.
    options = ("max_updates=5", "eval_every=3", *extra)  # checkpoints in the middle of an epoch
    whole, wanted = start(*options, kind=kind, out="whole")
    step = PreferenceTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PreferenceTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            start(*options, kind=kind, out="broken")
    assert not (whole.parent / "broken" / "reward").exists()
    torn = whole.parent / "broken" / "checkpoints" / "checkpoint-4"  # as a kill leaves it
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_st')
    broken, found = start(*options, kind=kind, out="broken", resume=True)
    assert records(broken) == records(whole)
    assert found.digests == wanted.digests
    # A finished run can be resumed too: it exports again.
    assert start(*options, kind=kind, out="broken", resume=True)[1].digests == (wanted.digests)


def test_resume_needs_the_same_configuration(learned, folder):
    run, _ = learned
    with pytest.raises(RunDirectoryError, match="another configuration"):
        launch(folder, run, "max_updates=6", "patience=0", resume=True)
    with pytest.raises(RunDirectoryError, match="already holds"):
        launch(folder, run, "max_updates=5", "patience=0")


def test_micro_batches_do_not_change_the_update(start, folder):
    # One pair in three is labelled for TA: a mean per micro-batch would differ.
    options = ("max_updates=1", "dimensions=[MQ,TA]", "color_mode=rgb", "lora.dropout=0")
    _, one = start(*options, "micro_batch=6", out="one")
    _, six = start(*options, "micro_batch=1", out="six")
    first, second = weights(one), weights(six)
    base = weights(read_reward_directory(folder / "videoreward"))
    assert max((first[name] - base[name]).abs().max() for name in first) > 1e-3
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-5, rtol=0)


def test_training_stops_when_validation_no_longer_improves(start):
    options = ("max_updates=60", "eval_every=1", "patience=2", "learning_rate=0.05")
    run, reward = start(*options)
    summary = json.loads((run / "summary.json").read_text())
    losses = [line["eval_loss"] for line in records(run) if "eval_loss" in line][1:]
    best = losses.index(min(losses))
    assert summary["updates"] == best + 1 + 2 == len(losses) < 60
    assert summary["best_update"] == best + 1
    assert summary["validation"]["eval_loss"] == pytest.approx(min(losses), rel=1e-4)
    kept = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert kept == sorted({f"checkpoint-{best + 1}", f"checkpoint-{len(losses)}"})
    # Resuming does not go on where validation had stopped it.
    _, again = start(*options, resume=True)
    assert len(records(run)) == 2 * len(losses) + 1 and again.digests == reward.digests


def test_the_cache_changes_nothing(folder):
    reward = read_reward_directory(folder / "videoreward")
    plain, cached = dataset(folder, reward), dataset(folder, reward, cache_bytes=10**6)
    for _ in range(2):
        for i in (0, 5):
            assert torch.equal(plain[i].b.patches, cached[i].b.patches)
        cached._recent.clear()  # the second time frames come from the cache
    assert len(cached._cache) == 4 and len(plain._cache) == 0


def test_inputs_of_the_last_clips_are_kept_within_bounds(folder, monkeypatch):
    reward = read_reward_directory(folder / "videoreward")
    data = dataset(folder, reward)
    first = data[0]
    assert data[0].a is first.a
    monkeypatch.setattr(preference_inputs, "RECENT_BYTES", first.a.patches.nbytes)
    data[5]
    assert len(data._recent) == 1 and data[0].a is not first.a


def test_batches_hold_each_clip_once(folder):
    reward = read_reward_directory(folder / "videoreward")
    data = dataset(folder, reward, ("TA", "MQ"))
    batch = collate([data[0], data[1]])
    assert batch["labels"].tolist() == [[TIE, A_WINS], [-100, B_WINS]]
    assert batch["pairs"].tolist() == [0, 1]
    assert batch["clips"].tolist() == [[0, 2], [1, 3]]
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["grid_thw"].tolist() == [[2, 4, 4]] * 4
    assert torch.equal(batch["pixel_values"][:32], data[0].a.patches)
    assert torch.equal(batch["pixel_values"][32:64], data[0].b.patches)
    assert torch.equal(batch["pixel_values"][64:96], data[1].a.patches)
    again = collate([data[1], data[0], data[1]])  # a row that appears twice shares both clips
    assert again["clips"].tolist() == [[0, 2, 0], [1, 3, 1]] and len(again["grid_thw"]) == 4
    without_ties = dataset(folder, reward, ("TA", "MQ"), keep_ties=False)
    assert without_ties[0].labels == [-100, A_WINS]


def test_shared_clips_give_the_outputs_and_gradients_of_separate_ones(folder):
    reward = read_reward_directory(folder / "videoreward")
    data = dataset(folder, reward, ("MQ",))
    rows = [data[0], data[1], data[0], dataclasses.replace(data[1], a=data[0].b)]
    scorer = PairScorer(reward.load_model().requires_grad_(True), (1,), reward.spec.pixels)
    together = collate(rows)
    assert len(together["grid_thw"]) == 4
    results = []
    for parts in ([together], [collate([row]) for row in rows]):
        scorer.zero_grad()
        outputs = torch.cat(
            [scorer(**{name: part[name] for name in SCORER_INPUTS}) for part in parts]
        )
        bradley_terry_ties_loss(
            *scores_of(outputs, 1).unbind(1), together["labels"], reduction="sum"
        ).backward()
        results.append((outputs.detach(), [p.grad for p in scorer.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=0)
    for one, two in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)


def test_pairs_of_a_prompt_come_together():
    groups = [[0, 3], [1, 2, 5, 7], [4], [6, 8]]
    sampler = PromptSampler(groups, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(9)) and len(sampler) == 9
        for group in groups:
            places = [orders[-1].index(row) for row in group]
            assert max(places) - min(places) == len(group) - 1
    assert orders[0] == orders[2] != orders[1]
    assert list(PromptSampler(groups, seed=4)) != orders[0]


def test_gray_training_with_validation_data_of_their_own(start, folder):
    pairs = read_preference_csv(folder / "pairs.csv")
    write_preference_csv(pairs[:10], folder / "first.csv")
    write_preference_csv(pairs[10:], folder / "rest.csv")
    own = f"data.validation={folder / 'rest.csv'}"
    options = ("max_updates=1", "export_public=false", "color_mode=mean")
    run, reward = start(own, *options, file="first.csv")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["pairs"] == {"train": 10, "validation": 6}
    assert not (run / "public").exists()
    with pytest.raises(UserError, match="prompts are in the training and in the validation"):
        start(own, out="shared")

    assert reward.spec.color_mode == "mean"
    with pytest.raises(UserError, match="colour mode"):
        reward.spec.require_color_mode("rgb")
    patches = dataset(folder, reward)[0].a.patches.view(-1, 3, 2, 14, 14)
    assert torch.equal(patches[:, 0], patches[:, 1]) and torch.equal(patches[:, 0], patches[:, 2])
    colour = dataset(folder, reward, spec=dataclasses.replace(reward.spec, color_mode="rgb"))
    assert (colour[0].a.patches.view_as(patches).int() - patches.int()).abs().max() > 30


def test_a_dry_run_writes_nothing(folder, tmp_path, capsys):
    found = train_reward(
        None,
        FAST,
        output_dir=tmp_path / "run",
        base=folder / "videoreward",
        data=folder / "pairs.csv",
        dry_run=True,
    )
    assert found is None and not (tmp_path / "run").exists()
    assert "train MQ" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dimensions=[XX]"], "does not score this dimension"),
        (["loss=uncertainty"], "no uncertainty"),
        (["dimensions=[VQ]"], "no pair has a label for VQ"),
        (["dimensions=[TA]", "loss=bradley_terry"], "or the loss bradley_terry_ties"),
        (["color_mode=sepia"], "sepia"),
        (["dimensions=[MQ,TA]"], "train MQ apart"),
        (["data.root=/nowhere"], "clips of the preference data are missing"),
    ],
)
def test_settings_that_do_not_fit_are_refused(start, overrides, message):
    with pytest.raises(UserError, match=message):
        start(*overrides)


@pytest.mark.parametrize(
    "override",
    [
        "batch_pairs=7",
        "micro_batch=0",
        "learning_rate=0",
        "tie_factor=1",
        "lora.dropout=1",
        "data.validation_share=1",
        "epochs=.nan",
        "method=qlora",
        "precision=float16",
        "dimensions=[]",
        "dimensions=[MQ,MQ]",
        "warmup_share=1",
        "max_updates=0",
    ],
)
def test_values_out_of_range_are_refused(start, override):
    with pytest.raises(ConfigError):
        start(override)


def test_missing_inputs_are_named(folder, tmp_path):
    for options, message in (
        ({"data": folder / "pairs.csv"}, "base is not set"),
        ({"base": folder / "videoreward"}, "data.train is not set"),
        ({"base": folder / "videoreward", "data": folder / "x.txt"}, "format"),
    ):
        with pytest.raises(UserError, match=message):
            train_reward(output_dir=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_launcher_is_refused(start, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        start()


def test_prompts_with_reserved_tokens_are_refused(folder):
    reward = read_reward_directory(folder / "videoreward")
    pairs = read_preference_csv(folder / "pairs.csv")
    bad = dataclasses.replace(pairs[3], prompt="a <|video_pad|> cat")
    with pytest.raises(UserError, match="reserved token"):
        PreferenceDataset([bad], ["MQ"], reward.spec, reward.encoder(), folder, keep_ties=True)
    image = dataclasses.replace(pairs[3], fps_a=None)
    with pytest.raises(UserError, match="playback rate"):
        PreferenceDataset([image], ["MQ"], reward.spec, reward.encoder(), folder, keep_ties=True)


def test_a_broken_clip_is_named(folder):
    pairs = read_preference_csv(folder / "pairs.csv")
    (folder / "broken.mp4").write_bytes((folder / "0a.mp4").read_bytes()[:200])
    reward = read_reward_directory(folder / "videoreward")
    bad = dataclasses.replace(pairs[0], path_a="broken.mp4")
    data = PreferenceDataset([bad], ["MQ"], reward.spec, reward.encoder(), folder, keep_ties=True)
    with pytest.raises(UserError, match=r"broken\.mp4"):
        data[0]


def test_checkpoints_hold_only_what_is_trained(learned, tmp_path):
    path = latest_checkpoint(learned[0] / "checkpoints")
    state = read_tensors(path / "trained.safetensors")
    kinds = (".lora_", ".rm_head.", ".visual.", "reward_rows")
    assert all(any(kind in name for kind in kinds) for name in state)
    assert len([name for name in state if ".lora_" in name]) == 2 * 7 * 3
    assert state["reward.reward_rows"].shape == (3, 64)


def test_a_checkpoint_of_another_model_is_refused(folder, learned, tmp_path):
    state = read_tensors(latest_checkpoint(learned[0] / "checkpoints") / "trained.safetensors")
    reward = read_reward_directory(folder / "videoreward")
    model = reward.load_model()
    make_trainable(model, RewardTrainingConfig(lora=LoraSettings(rank=4, alpha=8.0)))
    scorer = PairScorer(model, (1,), reward.spec.pixels)
    save_file(state, tmp_path / "trained.safetensors")
    load_trained(scorer, tmp_path)
    assert digest_tensors(trained_state(scorer)) == digest_tensors(state)
    save_file(
        {k: v for k, v in state.items() if "lora_A" not in k}, tmp_path / "trained.safetensors"
    )
    with pytest.raises(CheckpointError, match="21 missing"):
        load_trained(scorer, tmp_path)
    save_file({**state, "other": torch.zeros(1)}, tmp_path / "trained.safetensors")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_trained(scorer, tmp_path)
    (tmp_path / "trained.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_trained(scorer, tmp_path)
