import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from longtake.core.checkpoint import load_checkpoint
from longtake.core.weights import read_tensors
from longtake.runtime.errors import ConfigError, RunDirectoryError
from longtake.sandbox.facts import split_of
from longtake.sandbox.recipes import pretrain as recipe
from longtake.sandbox.recipes.pretrain import PretrainConfig, pretrain, render_pool
from longtake.sandbox.scene import Sprite
from longtake.training.flow_matching import BaseTrainer
from longtake.training.vae import VAETrainer

SMALL = [
    "num_clean_clips=4",
    "num_wild_clips=3",
    "captions_per_clip=2",
    "text_dim=16",
    "hidden_size=24",
    "depth=1",
    "num_heads=2",
    "adaln_dim=16",
    "save_every=2",
    "vae.base_dim=2",
    "vae.dim_mult=[1,1,1,2]",
    "vae.z_dim=4",
    "vae.stage_frames=[1,5]",
    "vae.stage_crop_px=[32,64]",
    "vae.stage_squared=[1.0,0.0]",
    "vae.stage_batch=[2,1]",
    "vae.stage_steps=[3,2]",
    "base.num_steps=6",
    "base.batch_size=2",
    "mixed.num_steps=3",
    "mixed.batch_size=2",
]
PARTS = ("dit", "vae", "text_encoder", "tokenizer", "scheduler")


class Killed(BaseException):
    """Stands for a kill: no handler of the code under test may catch it."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "out"
    pretrain(out, SMALL, device="cpu")
    return out


def files(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for part in PARTS
        for path in sorted((out / part).rglob("*"))
        if path.is_file()
    }


def test_writes_a_complete_checkpoint_that_loads(finished: Path) -> None:
    checkpoint = load_checkpoint(finished)
    assert checkpoint.shift == 3.0
    assert next(checkpoint.dit.parameters()).dtype == torch.float32
    z = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embeds, mask = checkpoint.text.encode(["a red circle moves left"])
        v = checkpoint.dit(z, torch.tensor([500.0]), embeds, mask)
        video = checkpoint.vae.decode(z)
    assert v.shape == z.shape and torch.isfinite(v).all()
    assert video.shape == (1, 5, 3, 64, 64)
    assert not (finished / "state").exists()


def test_records_config_times_versions_and_digests(finished: Path) -> None:
    record = json.loads((finished / "provenance.json").read_text())
    assert record["config"]["base"]["num_steps"] == 6
    assert set(record["seconds"]) == {"data", "vae", "encode", "dit", "mixed"}
    assert set(record["digests"]) == set(PARTS)
    assert record["packages"]["torch"]
    history = [json.loads(line) for line in (finished / "history.jsonl").read_text().splitlines()]
    assert [(r["part"], r["step"]) for r in history] == [
        ("vae", 3),
        ("vae", 2),
        ("dit", 6),
        ("mixed", 3),
    ]


def test_latents_of_clean_clips_have_unit_statistics(finished: Path) -> None:
    vae = load_checkpoint(finished).vae
    pool = render_pool(4, 3, 2, 0, "cpu")
    z = vae.encode(pool.video[3:])
    mean, std = z.mean(dim=(0, 2, 3, 4)), z.std(dim=(0, 2, 3, 4))
    torch.testing.assert_close(mean, torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(std, torch.ones(4), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("trainer", "yields"),
    [(VAETrainer, 1), (VAETrainer, 4), (BaseTrainer, 3), (BaseTrainer, 6), (BaseTrainer, 8)],
    ids=["vae-before-a-save", "vae-second-stage", "dit", "dit-last-step", "mixed-stage"],
)
def test_killed_run_resumes_bit_for_bit(
    trainer: type, yields: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = trainer.train  # type: ignore[attr-defined]
    done = itertools.count(1)  # over both stages of the DiT

    def killed(self: object, *args: object) -> Iterator[object]:
        for record in train(self, *args):
            yield record
            if next(done) == yields:
                raise Killed

    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(trainer, "train", killed)
        pretrain(out, SMALL, device="cpu")
    assert not (out / "provenance.json").exists()
    pretrain(out, SMALL, device="cpu", resume=True)
    assert files(out) == files(finished)
    assert (out / "history.jsonl").read_bytes() == (finished / "history.jsonl").read_bytes()


def test_kill_while_writing_the_checkpoint_resumes(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object, **kwargs: object) -> None:
        raise Killed

    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(recipe, "save_checkpoint", killed)
        pretrain(out, SMALL, device="cpu")
    pretrain(out, SMALL, device="cpu", resume=True)
    assert files(out) == files(finished)


def test_refuses_directories_that_it_cannot_continue(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "state").mkdir(parents=True)
    (other / "state" / "config.yaml").write_text("seed: 1\n")
    for out, resume, word in (
        (other, False, "not empty"),
        (finished, True, "nothing to resume"),
        (other, True, "another configuration"),
    ):
        with pytest.raises(RunDirectoryError, match=word):
            pretrain(out, SMALL, device="cpu", resume=resume)
    assert (other / "state" / "config.yaml").read_text() == "seed: 1\n"


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    steps = ["base.num_steps=7", "mixed.num_steps=2"]
    plan = pretrain(tmp_path / "out", steps, dry_run=True, device="cpu")
    assert plan["dit_steps"] == 9 and plan["vae_steps"] == sum(PretrainConfig().vae.stage_steps)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="num_steps"):
        pretrain(tmp_path / "out", ["base.num_stepz=7"], dry_run=True)
    with pytest.raises(ConfigError, match="wild_share"):
        pretrain(tmp_path / "out", ["wild_share=1.5"], dry_run=True)


def test_pool_holds_train_scenes_and_damages_only_the_wild_ones() -> None:
    pool, again = render_pool(5, 4, 2, 3, "cpu"), render_pool(5, 4, 2, 3, "cpu")
    assert torch.equal(pool.video, again.video)
    clean = render_pool(9, 0, 2, 3, "cpu")
    assert clean.scenes == pool.scenes
    same = (pool.video == clean.video).flatten(1).all(1)
    assert same.tolist() == [False] * 4 + [True] * 5
    worse = render_pool(0, 4, 3, 3, "cpu")  # the wild clips of the mixed stage
    assert worse.scenes == pool.scenes[:4]
    damage = [(p.video[:4].float() - clean.video[:4]).abs().mean() for p in (pool, worse)]
    assert damage[1] > damage[0]

    def split(sprite: Sprite) -> str:
        return split_of(sprite.shape, sprite.colour, sprite.motion)

    assert {split(sprite) for scene in pool.scenes for sprite in scene.sprites} == {"train"}


def test_rows_follow_the_wild_share_and_cover_both_parts() -> None:
    pool = render_pool(3, 2, 1, 0, "cpu")
    rows = pool.rows(20_000, 0.25, torch.Generator().manual_seed(0))
    assert float((rows < 2).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert sorted(set(rows.tolist())) == [0, 1, 2, 3, 4]
    only_clean = pool.rows(100, 0.0, torch.Generator().manual_seed(0))
    assert int(only_clean.min()) == 2


def test_averaged_weights_are_shipped(finished: Path) -> None:
    shipped = read_tensors(finished / "dit" / "diffusion_pytorch_model.safetensors")
    gate = shipped["final_layer.linear.weight"]
    # Nine steps from zero: the average lags behind, but it has moved.
    config = PretrainConfig()
    most = 6 * config.base.learning_rate + 3 * config.mixed.learning_rate
    assert 0 < float(gate.abs().max()) < most
