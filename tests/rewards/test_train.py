"""Training of reward heads on tiny models: what is trained, learned, repeated and written."""

import dataclasses
import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from longtake.core.video import read_video
from longtake.core.weights import digest_tensors, read_tensors
from longtake.rewards.contract import VideoBatch
from longtake.rewards.directory import read_reward_directory
from longtake.rewards.losses import bradley_terry_ties_loss
from longtake.rewards.model_inputs import collate_clips
from longtake.rewards.pair_dataset import PairDataset, collate_pairs
from longtake.rewards.pairs import (
    OVERALL,
    read_pairs,
    split_by_prompt,
    write_pairs,
)
from longtake.rewards.pixels import normalize_patches
from longtake.rewards.qwen2vl.weights import load_reward_model
from longtake.rewards.train import (
    HeadTrainer,
    HeadTraining,
    MuonWithAdamW,
    PromptSampler,
    RatingObjective,
    Scorer,
    latest_checkpoint,
    load_trained,
    make_trainable,
    trained_state,
)
from longtake.rewards.train_config import LoraSettings, RewardTrainingConfig
from longtake.rewards.train_pairs import train_reward
from longtake.rewards.videoalign import load_videoalign
from longtake.runtime.errors import CheckpointError, RunDirectoryError, UserError
from longtake.runtime.run_directory import RunDirectory
from longtake.runtime.tracking import Trackers

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


def launch(pair_folder, run, *overrides, kind="videoreward", file=None, **options):
    """Train on the data of ``pair_folder``; (run directory, reward directory)."""
    default = "pairs.csv" if kind == "videoreward" else "pairs.json"
    reward = train_reward(
        None,
        [*FAST, *overrides],
        output_dir=run,
        base=pair_folder / kind,
        data=pair_folder / (file or default),
        device="cpu",
        **options,
    )
    return run, read_reward_directory(reward)


@pytest.fixture
def start(pair_folder, tmp_path):
    """Train: start(*overrides, kind, out, resume) -> (run directory, reward directory)."""

    def run(*overrides, out="run", **options):
        return launch(pair_folder, tmp_path / out, *overrides, **options)

    return run


@pytest.fixture(scope="module")
def learned(pair_folder, tmp_path_factory):
    """One longer run, LoRA and vision tower, for the tests that only look at its results."""
    return launch(
        pair_folder, tmp_path_factory.mktemp("learned") / "run", "max_updates=5", "patience=0"
    )


def dataset(pair_folder, reward, dimensions=("MQ",), *, spec=None, pairs=None, **options):
    pairs = pairs or read_pairs(pair_folder / "pairs.csv")
    options = {"keep_ties": True, **options}
    return PairDataset(
        pairs, dimensions, spec or reward.spec, reward.encoder(), pair_folder, **options
    )


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(directory):
    return read_tensors(directory.path / "model.safetensors")


def test_a_video_head_learns_and_is_written(learned, pair_folder):
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
    _, validation = split_by_prompt(read_pairs(pair_folder / "pairs.csv"), 0.3, 0)
    data = dataset(pair_folder, reward, pairs=validation)
    batch = collate_pairs([data[i] for i in range(len(data))])
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "pairs", "clips")}
    inputs["pixel_values"] = normalize_patches(inputs["pixel_values"], reward.spec.pixels)
    trained = reward.load_model().score(**inputs, tokens=(1,))[:, 0][batch["clips"].flatten()]
    paths = [path for side in "ab" for p in validation for path in [getattr(p, f"path_{side}")]]
    video = torch.stack([read_video(pair_folder / path)[0] for path in paths])
    clips = VideoBatch(video=video, prompts=["any"] * len(paths), fps=2.0)
    scores = load_videoalign(reward, ["videoalign_mq"])["videoalign_mq"].score(clips)
    normalized = torch.tensor([float(score) for score in scores])
    scale = reward.spec.normalization["MQ"]
    raw = normalized * scale.std + scale.mean
    torch.testing.assert_close(raw, trained, atol=1e-4, rtol=0)
    a, b = trained.chunk(2)
    assert torch.equal((a - b).sign().long(), batch["labels"][:, 0])
    assert set(reward.spec.normalization) == {"MQ"}
    assert normalized.mean().item() == pytest.approx(0, abs=1e-4)
    assert normalized.std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_the_public_layout_holds_the_same_model(learned, pair_folder):
    run, reward = learned
    state = torch.load(run / "public" / "model.pth", weights_only=True)
    names = [name for name in state if "lora_A" in name]
    assert names and all(
        name.startswith("base_model.model.model.layers.") and name.endswith(".default.weight")
        for name in names
    )
    assert "base_model.model.rm_head.weight" in state
    config = reward.spec.model.replace(lora_rank=4, lora_alpha=8.0)
    unmerged, merged = load_reward_model(config, state), reward.load_model()
    data = dataset(pair_folder, reward)
    batch = collate_pairs([data[0], data[1]])
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


@pytest.mark.parametrize(("method", "vision"), [("lora", False), ("full", True)])
def test_only_what_is_asked_for_is_trained(start, pair_folder, method, vision):
    _, reward = start("max_updates=1", f"method={method}", f"train_vision={vision}")
    before, after = weights(read_reward_directory(pair_folder / "videoreward")), weights(reward)
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


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("videoreward", ["group_by_prompt=true", "schedule=cosine"]),
        ("videoreward", ["optimizer=muon", "method=full"]),
        ("hpsv3", [f"dimensions=[{OVERALL}]", "uncertainty_draws=64"]),
    ],
)
def test_a_run_that_was_interrupted_ends_like_one_that_was_not(start, monkeypatch, kind, extra):
    # The same seed, so this is also the proof that runs repeat; dropout and noise are on.
    options = ("max_updates=5", "eval_every=3", *extra)  # checkpoints in the middle of an epoch
    whole, wanted = start(*options, kind=kind, out="whole")
    step = HeadTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(HeadTrainer, "training_step", interrupted)
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


def test_resume_needs_the_same_configuration(learned, pair_folder):
    run, _ = learned
    with pytest.raises(RunDirectoryError, match="another configuration"):
        launch(pair_folder, run, "max_updates=6", "patience=0", resume=True)
    with pytest.raises(RunDirectoryError, match="already holds"):
        launch(pair_folder, run, "max_updates=5", "patience=0")


def test_micro_batches_do_not_change_the_update(start, pair_folder):
    # One pair in three is labelled for TA: a mean per micro-batch would differ.
    options = ("max_updates=1", "dimensions=[MQ,TA]", "color_mode=rgb", "lora.dropout=0")
    _, one = start(*options, "micro_batch=6", out="one")
    _, six = start(*options, "micro_batch=1", out="six")
    first, second = weights(one), weights(six)
    base = weights(read_reward_directory(pair_folder / "videoreward"))
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


def test_shared_clips_give_the_outputs_and_gradients_of_separate_ones(pair_folder):
    reward = read_reward_directory(pair_folder / "videoreward")
    data = dataset(pair_folder, reward, ("MQ",))
    rows = [data[0], data[1], data[0], dataclasses.replace(data[1], a=data[0].b)]
    scorer = Scorer(reward.load_model().requires_grad_(True), (1,), reward.spec.pixels)
    together = collate_pairs(rows)
    assert len(together["grid_thw"]) == 4
    results = []
    for parts in ([together], [collate_pairs([row]) for row in rows]):
        scorer.zero_grad()
        outputs = torch.cat(
            [scorer(**{k: part[k] for k in part if k not in ("labels", "pairs")}) for part in parts]
        )
        bradley_terry_ties_loss(*outputs.unbind(1), together["labels"]).sum().backward()
        results.append((outputs.detach(), [p.grad for p in scorer.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=0)
    for one, two in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)


def test_ratings_train_the_same_head(pair_folder, tmp_path):
    reward = read_reward_directory(pair_folder / "videoreward")
    data = dataset(pair_folder, reward)
    ratings = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([[3.0, 1], [1, 0], [2, 5], [0, 0]])
    rows = [(data[i].a, ratings[i], counts[i]) for i in range(4)]

    def collate(rows):
        clips, values, numbers = zip(*rows, strict=True)
        targets = {"ratings": torch.stack(values), "counts": torch.stack(numbers)}
        return {**targets, **collate_clips(clips)}

    config = RewardTrainingConfig(
        base="b",
        method="full",
        precision="float32",
        micro_batch=1,
        batch_pairs=4,
        learning_rate=1e-3,
        warmup_share=0,
        eval_every=3,
        patience=0,
    )
    training = HeadTraining(
        source=reward,
        config=config,
        tokens=(0, 1),
        objective=RatingObjective(),
        train=rows,
        held_out=rows,
        collate=collate,
        updates=3,
        batch=4,  # all rows in every update: their order does not matter
    )
    cpu = torch.device("cpu")
    with RunDirectory.create(tmp_path / "run", "a: 1", resume=False) as run:
        head = training.run(run, Trackers(run, (), {}), cpu, Console(stderr=True))
    model = reward.load_model()
    make_trainable(model, config)
    scorer, batch = Scorer(model, (0, 1), reward.spec.pixels), collate(rows)
    inputs = {k: v for k, v in batch.items() if k not in ("ratings", "counts")}
    optimizer = torch.optim.AdamW(
        [p for p in scorer.parameters() if p.requires_grad], 1e-3, weight_decay=0
    )
    for line in [line for line in records(tmp_path / "run") if "loss" in line]:
        loss = (counts * (scorer(**inputs) - ratings) ** 2).sum() / counts.sum()
        assert line["loss"] == pytest.approx(loss.item(), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        optimizer.step()
    torch.testing.assert_close(head.outputs, scorer.eval()(**inputs), atol=2e-3, rtol=0)
    assert head.metrics["eval_loss"] < loss.item() and head.best_update == 3


def test_muon_steps_hidden_matrices_and_adamw_the_rest():
    model = torch.nn.ModuleDict(
        {name: torch.nn.Linear(4, 4) for name in ("hidden", "rm_head", "embed")}
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = MuonWithAdamW(model, 0.1, 0.0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    for name, parameter in model.named_parameters():
        step = (parameter - before[name]).abs()
        # AdamW's first step moves everything by the rate, Muon's orthogonal matrix does not.
        assert torch.allclose(step, torch.full_like(step, 0.1), atol=1e-5) != (
            name == "hidden.weight"
        )
    for group in optimizer.param_groups:  # what a schedule does
        group["lr"] = 0.0
    moved = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert all(torch.equal(moved[name], p) for name, p in model.named_parameters())


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


def test_gray_training_with_validation_data_of_their_own(start, pair_folder):
    pairs = read_pairs(pair_folder / "pairs.csv")
    write_pairs(pairs[:10], pair_folder / "first.csv")
    write_pairs(pairs[10:], pair_folder / "rest.csv")
    own = f"data.validation={pair_folder / 'rest.csv'}"
    options = ("max_updates=1", "export_public=false", "color_mode=mean")
    run, reward = start(own, *options, file="first.csv")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["pairs"] == {"train": 10, "validation": 6}
    assert not (run / "public").exists()
    with pytest.raises(UserError, match="prompts are in the training and in the validation"):
        start(own, out="shared")

    assert reward.spec.color_mode == "mean"
    patches = dataset(pair_folder, reward)[0].a.patches.view(-1, 3, 2, 14, 14)
    assert torch.equal(patches[:, 0], patches[:, 1]) and torch.equal(patches[:, 0], patches[:, 2])
    colour = dataset(pair_folder, reward, spec=reward.spec.replace(color_mode="rgb"))
    assert (colour[0].a.patches.view_as(patches).int() - patches.int()).abs().max() > 30


def test_a_dry_run_writes_nothing(pair_folder, tmp_path, capsys):
    found = train_reward(
        None,
        FAST,
        output_dir=tmp_path / "run",
        base=pair_folder / "videoreward",
        data=pair_folder / "pairs.csv",
        dry_run=True,
    )
    assert found is None and not (tmp_path / "run").exists()
    assert "train MQ" in capsys.readouterr().err


REFUSED = {
    "micro-batch": (["batch_pairs=7"], "a multiple"),
    "twice": (["dimensions=[MQ,MQ]"], "different names"),
    "dimension": (["dimensions=[XX]"], "does not score this dimension"),
    "uncertainty": (["loss=uncertainty"], "no uncertainty"),
    "labels": (["dimensions=[VQ]"], "no pair has a label for VQ"),
    "ties": (["dimensions=[TA]", "loss=bradley_terry"], "with the loss bradley_terry_ties"),
    "colours": (["dimensions=[MQ,TA]"], "MQ alone"),
    "root": (["data.root=/nowhere"], "clips of the preference data cannot be used"),
    "general": (["data.general_prompt=true"], "general prompt cannot be shown"),
    "data": (["data.train=''"], "data.train is not set"),
    "launcher": ([], "one process"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_do_not_fit_are_refused(pair_folder, tmp_path, case, monkeypatch):
    overrides, message = REFUSED[case]
    if case == "launcher":
        monkeypatch.setenv("WORLD_SIZE", "2")
    given = [f"base={pair_folder / 'videoreward'}", f"data.train={pair_folder / 'pairs.csv'}"]
    with pytest.raises(UserError, match=message):
        train_reward(None, [*FAST, *given, *overrides], output_dir=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_diverged_training_says_so_and_keeps_its_checkpoints(start):
    with pytest.raises(UserError, match=r"(?s)diverged.*lower learning_rate"):
        start("max_updates=8", "learning_rate=1e30", out="run")


def test_what_is_trained_has_float32_weights(pair_folder):
    model = read_reward_directory(pair_folder / "videoreward").load_model(dtype=torch.bfloat16)
    make_trainable(model, RewardTrainingConfig(method="lora"))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert not model.embedding.weight.requires_grad
    assert model.reward_rows.requires_grad and model.reward_rows.shape == (3, 64)


def test_checkpoints_hold_only_what_is_trained_and_fit_one_model(pair_folder, learned, tmp_path):
    state = read_tensors(latest_checkpoint(learned[0] / "checkpoints") / "trained.safetensors")
    kinds = (".lora_", ".rm_head.", ".visual.", "reward_rows")
    assert all(any(kind in name for kind in kinds) for name in state)
    assert len([name for name in state if ".lora_" in name]) == 2 * 7 * 3
    reward = read_reward_directory(pair_folder / "videoreward")
    model = reward.load_model()
    make_trainable(model, RewardTrainingConfig(lora=LoraSettings(rank=4, alpha=8.0)))
    scorer = Scorer(model, (1,), reward.spec.pixels)
    file = tmp_path / "trained.safetensors"
    save_file(state, file)
    load_trained(scorer, tmp_path)
    assert digest_tensors(trained_state(scorer)) == digest_tensors(state)
    for wrong, words in (
        ({k: v for k, v in state.items() if "lora_A" not in k}, "21 missing"),
        ({**state, "other": torch.zeros(1)}, "1 unexpected"),
    ):
        save_file(wrong, file)
        with pytest.raises(CheckpointError, match=words):
            load_trained(scorer, tmp_path)
    file.write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_trained(scorer, tmp_path)
