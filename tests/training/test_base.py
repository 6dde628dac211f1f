import copy
import math
from collections import Counter
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from longtake.core.dit import DiTConfig, LongCatDiT
from longtake.runtime.errors import ConfigError
from longtake.training.base import (
    TASKS,
    BaseTrainer,
    BaseTrainingConfig,
    Task,
    learning_rate,
    pick_task,
)
from longtake.training.divergence import DivergenceError
from longtake.training.graphs import GraphedStep

LENGTH, WIDTH, BATCH = 6, 8, 4


class TableText(nn.Module):
    """A text model of one embedding table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, WIDTH)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return (self.table(ids) * mask[..., None])[:, None]


def trainer(tasks: tuple[Task, ...] = TASKS, **settings: object) -> BaseTrainer:
    config = BaseTrainingConfig(
        **{"num_steps": 12, "batch_size": BATCH, "warmup_steps": 2, **settings}  # type: ignore[arg-type]
    )
    dit = LongCatDiT(
        DiTConfig(
            in_channels=4,
            out_channels=4,
            hidden_size=24,
            depth=2,
            num_heads=2,
            caption_channels=WIDTH,
            adaln_tembed_dim=16,
            text_tokens_zero_pad=True,
        )
    ).initialize(torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        text = TableText()
    empty = torch.zeros(LENGTH, dtype=torch.int64)
    empty_mask = torch.tensor([1, 0, 0, 0, 0, 0])
    return BaseTrainer(dit, text, empty, empty_mask, config, tasks)


def batches(step: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(100 + step)
    return {
        "z": torch.randn(BATCH, 4, 3, 4, 4, generator=g),
        "ids": torch.randint(1, 10, (BATCH, LENGTH), generator=g),
        "mask": torch.ones(BATCH, LENGTH, dtype=torch.int64),
    }


def weights(mine: BaseTrainer) -> list[Tensor]:
    return [p.detach().clone() for p in mine.parameters] + [e.clone() for e in mine.ema]


def test_tasks_are_drawn_with_their_probabilities() -> None:
    total = 4000
    counts = Counter(pick_task(TASKS, 3, step).name for step in range(total))
    for task in TASKS:
        spread = math.sqrt(task.probability * (1 - task.probability) / total)
        assert abs(counts[task.name] / total - task.probability) < 4 * spread
    draws = [pick_task(TASKS, 3, step).name for step in range(50)]
    assert draws == [pick_task(TASKS, 3, step).name for step in range(50)]
    assert draws != [pick_task(TASKS, 4, step).name for step in range(50)]


def test_probabilities_need_not_sum_to_one() -> None:
    only = Task(name="t2v", num_frames=0, num_cond=0, probability=0.2)
    never = Task(name="t2i", num_frames=1, num_cond=0, probability=0.0)
    assert {pick_task((never, only), 0, step).name for step in range(20)} == {"t2v"}


def test_resume_is_bitwise_equal_to_an_uninterrupted_run() -> None:
    whole = trainer()
    records = list(whole.train(batches))
    first = trainer()
    run = first.train(batches)
    head = [next(run) for _ in range(5)]
    state = copy.deepcopy(first.state_dict())
    second = trainer()
    second.load_state_dict(state)
    tail = list(second.train(batches))
    assert head + tail == records
    for a, b in zip(weights(whole), weights(second), strict=True):
        assert torch.equal(a, b)
    assert len({str(r["task"]) for r in records}) > 1  # several tasks were part of it


def test_ema_follows_the_closed_form_and_is_what_is_shipped() -> None:
    mine = trainer(ema_decay=0.5)
    start = [e.clone() for e in mine.ema]
    run = mine.train(batches)
    trail = []
    for _ in range(4):
        next(run)
        trail.append([p.detach().clone() for p in mine.parameters])
    for i, mean in enumerate(mine.ema):
        expected = start[i]
        for step in range(4):
            decay = min(0.5, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * trail[step][i]
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-7)
    mine.load_ema()
    assert all(torch.equal(p, e) for p, e in zip(mine.parameters, mine.ema, strict=True))


def test_learning_rate_warms_up_and_decays_to_the_floor() -> None:
    config = BaseTrainingConfig(num_steps=1000, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0, abs=1e-3)
    assert rates[500] == pytest.approx(0.5 * 1.05, abs=1e-3)
    assert rates[-1] == pytest.approx(0.05, abs=1e-4)
    constant = BaseTrainingConfig(
        num_steps=10, warmup_steps=1, final_learning_rate_ratio=1.0, learning_rate=2e-3
    )
    assert {learning_rate(constant, step) for step in range(10)} == {2e-3}


def test_captions_are_dropped_at_their_rate_and_replaced_by_the_empty_prompt() -> None:
    mine = trainer(caption_dropout=0.3)
    dropped = []
    for step in range(200):
        mine.step = step
        batch = batches(step)
        inputs = mine._inputs(batch, TASKS[0])
        is_empty = (inputs["ids"] == mine.empty_ids).all(1)
        assert torch.equal(
            inputs["mask"][is_empty], mine.empty_mask.expand(int(is_empty.sum()), -1)
        )
        assert torch.equal(inputs["ids"][~is_empty], batch["ids"][~is_empty])
        dropped.append(is_empty.float().mean())
    assert float(torch.stack(dropped).mean()) == pytest.approx(0.3, abs=4 * (0.21 / 800) ** 0.5)


@pytest.mark.parametrize("name", [task.name for task in TASKS])
def test_each_task_shows_the_model_its_own_input(name: str) -> None:
    task = next(t for t in TASKS if t.name == name)
    mine = trainer((task,), condition_noise=0.1)
    seen: dict[str, Tensor] = {}
    forward = mine.dit.forward

    def spy(x: Tensor, timestep: Tensor, *args: object, **kwargs: object) -> Tensor:
        seen.update(x=x, timestep=timestep, cond=torch.tensor(kwargs["num_cond_latents"]))
        return forward(x, timestep, *args, **kwargs)  # type: ignore[arg-type, no-any-return]

    mine.dit.forward = spy  # type: ignore[method-assign, assignment]
    next(mine.train(batches))
    z = batches(0)["z"]
    assert seen["x"].shape[2] == (1 if name == "t2i" else 3)
    assert int(seen["cond"]) == task.num_cond
    assert not seen["timestep"][:, : task.num_cond].any()
    assert (seen["timestep"][:, task.num_cond :] > 0).all()
    head, clean = seen["x"][:, :, : task.num_cond], z[:, :, : task.num_cond]
    if name == "i2v":
        assert torch.equal(head, clean)
    if name == "vc":
        assert not torch.equal(head, clean)
        assert float((head - clean).abs().max()) < 0.1 * 8  # at most a tenth of (eps - z)


def test_condition_frames_get_no_gradient_but_the_others_learn() -> None:
    task = Task(name="i2v", num_frames=0, num_cond=1, probability=1.0)
    mine = trainer((task,), num_steps=60, learning_rate=3e-3, warmup_steps=1)
    losses = [r["loss"] for r in mine.train(lambda _: batches(0)) if "loss" in r]
    assert float(losses[-1]) < float(losses[0])


class Counting:
    """A loss with the gradient 2 x in each call, or NaN."""

    def __init__(self, p: nn.Parameter) -> None:
        self.p, self.scale = p, 1.0

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return (inputs["x"] * self.p * self.scale).sum()


def test_graphed_step_runs_eagerly_on_the_cpu_and_resets_gradients() -> None:
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.zeros(3)
    address = p.grad.data_ptr()
    step = GraphedStep(Counting(p), [p])
    x = torch.tensor([1.0, 2.0, 3.0])
    for _ in range(2):
        assert float(step({"x": x})) == 6.0
        assert torch.equal(p.grad, x)
    assert p.grad.data_ptr() == address and not step.is_graphed


def test_a_gradient_that_is_not_finite_is_dropped_as_a_whole() -> None:
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    p.grad, q.grad = torch.zeros(2), torch.zeros(2)

    def loss(inputs: Mapping[str, Tensor]) -> Tensor:
        return (p * inputs["x"]).sum() + q.sum()

    GraphedStep(loss, [p, q])({"x": torch.tensor([1.0, math.inf])})
    assert not p.grad.any() and not q.grad.any()
    GraphedStep(loss, [p, q])({"x": torch.tensor([1.0, 2.0])})
    assert p.grad.tolist() == [1.0, 2.0] and q.grad.tolist() == [1.0, 1.0]


def test_a_diverged_training_stops() -> None:
    mine = trainer()
    with torch.no_grad():
        mine.parameters[0].fill_(math.nan)
    with pytest.raises(DivergenceError, match=r"DiT is nan at step 12"):
        list(mine.train(batches))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="loss weight"):
        BaseTrainingConfig(loss_weight="uniform")
    with pytest.raises(ConfigError, match="at least 1"):
        BaseTrainingConfig(batch_size=0)
