import itertools
import json

import pytest
import torch

from longtake.core.checkpoint import load_checkpoint
from longtake.runtime.errors import ConfigError, RunDirectoryError
from longtake.sandbox.facts import split_of
from longtake.sandbox.recipes import pretrain as recipe
from longtake.sandbox.recipes.pretrain import PretrainConfig, pretrain, render_pool
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
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny") / "out"
    pretrain(out, SMALL, device="cpu")
    return out


def files(out):
    return {
        str(path.relative_to(out)): path.read_bytes()
        for part in PARTS
        for path in sorted((out / part).rglob("*"))
        if path.is_file()
    }


def test_writes_a_complete_checkpoint_that_loads(finished):
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


def test_records_config_times_versions_and_digests(finished):
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


def test_latents_of_clean_clips_have_unit_statistics(finished):
    vae = load_checkpoint(finished).vae
    pool = render_pool(4, 3, 2, 0, "cpu")
    z = vae.encode(pool.video[3:])
    mean, std = z.mean(dim=(0, 2, 3, 4)), z.std(dim=(0, 2, 3, 4))
    torch.testing.assert_close(mean, torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(std, torch.ones(4), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("trainer", "yields"),
    [(VAETrainer, 4), (BaseTrainer, 3), (BaseTrainer, 8)],
    ids=["vae-second-stage", "dit", "mixed-stage"],
)
def test_killed_run_resumes_bit_for_bit(trainer, yields, finished, tmp_path, monkeypatch):
    train = trainer.train
    done = itertools.count(1)  # over both stages of the DiT

    def killed(self, *args):
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


def test_kill_while_writing_the_checkpoint_resumes(finished, tmp_path, monkeypatch):
    def killed(*args, **kwargs):
        raise Killed

    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(recipe, "save_checkpoint", killed)
        pretrain(out, SMALL, device="cpu")
    pretrain(out, SMALL, device="cpu", resume=True)
    assert files(out) == files(finished)


def test_refusals_and_dry_runs_write_nothing(finished, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match="not empty"):
        pretrain(tmp_path, SMALL, device="cpu")
    with pytest.raises(RunDirectoryError, match="nothing to resume"):
        pretrain(finished, SMALL, device="cpu", resume=True)
    steps = ["base.num_steps=7", "mixed.num_steps=2"]
    plan = pretrain(tmp_path / "out", steps, dry_run=True, device="cpu")
    assert plan["dit_steps"] == 9 and plan["vae_steps"] == sum(PretrainConfig().vae.stage_steps)
    for wrong, name in (("base.num_stepz=7", "num_steps"), ("wild_share=1.5", "wild_share")):
        with pytest.raises(ConfigError, match=name):
            pretrain(tmp_path / "out", [wrong], dry_run=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_pool_holds_train_scenes_and_damages_only_the_wild_ones():
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

    def split(sprite):
        return split_of(sprite.shape, sprite.colour, sprite.motion)

    assert {split(sprite) for scene in pool.scenes for sprite in scene.sprites} == {"train"}
