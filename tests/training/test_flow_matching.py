"""Flow-matching training: equations, task mix, schedule, resume, divergence."""

import copy
import math
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from longtake.core import flow
from longtake.core.dit import DiTConfig, LongCatDiT
from longtake.runtime.errors import ConfigError, DivergenceError, UserError
from longtake.training.flow_matching import (
    TASKS,
    BaseTrainer,
    BaseTrainingConfig,
    GraphedStep,
    Task,
    flow_matching_loss,
    learning_rate,
    noisy_input,
    pick_task,
)

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
    rates = [learning_rate(1.0, step, 1000, warmup=10, final=0.05) for step in range(1000)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0, abs=1e-3)
    assert rates[500] == pytest.approx(0.5 * 1.05, abs=1e-3)
    assert rates[-1] == pytest.approx(0.05, abs=1e-4)
    assert {learning_rate(2e-3, step, 10, warmup=1, final=1.0) for step in range(10)} == {2e-3}


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


def test_graphed_step_writes_gradients_in_place_and_resets_them() -> None:
    p = nn.Parameter(torch.ones(3))
    step = GraphedStep(lambda inputs: (inputs["x"] * p).sum(), [p])
    assert p.grad is not None
    address, x = p.grad.data_ptr(), torch.tensor([1.0, 2.0, 3.0])
    for _ in range(2):
        assert float(step({"x": x})) == 6.0
        assert torch.equal(p.grad, x)
    assert p.grad.data_ptr() == address


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_the_training_before_a_weight_is_lost(
    value: float,
) -> None:
    mine = trainer()
    run = mine.train(
        lambda step: (
            batches(step) | ({"z": torch.full((BATCH, 4, 3, 4, 4), value)} if step == 3 else {})
        )
    )
    for _ in range(3):
        next(run)
    before = weights(mine)
    with pytest.raises(UserError, match=r"gradient of the DiT is (nan|inf) at step 4") as error:
        next(run)
    assert "learning rate" in str(error.value) and isinstance(error.value, DivergenceError)
    assert mine.step == 3
    assert all(torch.equal(*pair) for pair in zip(before, weights(mine), strict=True))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="loss_weight"):
        BaseTrainingConfig(loss_weight="uniform")
    with pytest.raises(ConfigError, match="batch_size"):
        BaseTrainingConfig(batch_size=0)


def clips(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shape = (3, 4, 5, 2, 2)
    return (
        torch.randn(shape, generator=g, dtype=torch.float64),
        torch.randn(shape, generator=g, dtype=torch.float64),
    )


@pytest.mark.parametrize("num_cond", [0, 1, 2])
def test_loss_leaves_condition_frames_out(num_cond: int) -> None:
    z, eps = clips()
    v = torch.zeros_like(z, requires_grad=True)
    flow_matching_loss(v, z, eps, torch.ones(3, dtype=torch.float64), num_cond).backward()
    assert v.grad is not None
    touched = v.grad.abs().sum(dim=(0, 1, 3, 4)) > 0
    assert touched.tolist() == [frame >= num_cond for frame in range(5)]


def test_loss_equals_the_weighted_mean_written_out() -> None:
    z, eps = clips()
    v, _ = clips(1)
    weight = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)
    total = 0.0
    for sample in range(3):
        errors = [
            float(v[sample, c, t, y, x] - (z[sample, c, t, y, x] - eps[sample, c, t, y, x])) ** 2
            for c in range(4)
            for t in range(1, 5)
            for y in range(2)
            for x in range(2)
        ]
        total += float(weight[sample]) * sum(errors) / len(errors)
    # The loss is computed in float32 whatever the inputs are.
    assert float(flow_matching_loss(v, z, eps, weight, 1)) == pytest.approx(total / 3, rel=1e-6)


def test_true_velocity_has_no_loss() -> None:
    z, eps = clips()
    assert float(flow_matching_loss(z - eps, z, eps, torch.ones(3), 0)) == 0


def test_noisy_input_mixes_only_the_noisy_frames() -> None:
    z, eps = clips()
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    x_t, timestep = noisy_input(z, eps, t, None, 2)
    assert torch.equal(x_t[:, :, :2], z[:, :, :2])
    assert torch.equal(timestep[:, :2], torch.zeros(3, 2, dtype=torch.float64))
    assert torch.equal(timestep[:, 2:], 1000 * t[:, None].expand(3, 3))
    torch.testing.assert_close(x_t[1, :, 2:], 0.75 * z[1, :, 2:] + 0.25 * eps[1, :, 2:])
    assert torch.equal(x_t[0], z[0])
    assert torch.equal(x_t[2, :, 2:], eps[2, :, 2:])


def test_each_condition_frame_has_its_own_noise_level() -> None:
    z, eps = clips()
    level = torch.tensor([[0.0, 0.1], [0.2, 0.0], [0.1, 0.1]], dtype=torch.float64)
    x_t, timestep = noisy_input(z, eps, torch.full((3,), 0.5, dtype=torch.float64), level, 2)
    for sample in range(3):
        for frame in range(2):
            a = float(level[sample, frame])
            expected = (1 - a) * z[sample, :, frame] + a * eps[sample, :, frame]
            torch.testing.assert_close(x_t[sample, :, frame], expected)
    assert not timestep[:, :2].any()  # the model is not told about the noise


def test_shift_moves_the_logit_of_time_by_its_logarithm() -> None:
    u = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    moved = torch.logit(flow.shift_sigma(u, 3.0)) - torch.logit(u)
    torch.testing.assert_close(moved, torch.full_like(u, math.log(3.0)))


def test_weight_is_the_logit_normal_density() -> None:
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    weight = flow.logit_normal_weight(u)
    assert float(weight.mean()) == pytest.approx(1.0, abs=1e-4)
    # Its mean of any function equals the mean over sigmoid of a standard normal.
    normal = torch.special.ndtri(u)
    assert float((weight * u.square()).mean()) == pytest.approx(
        float(torch.sigmoid(normal).square().mean()), abs=1e-4
    )


def test_shift_grows_with_the_number_of_noisy_tokens() -> None:
    def shift(tokens: int) -> float:
        return flow.resolution_shift(tokens, reference_shift=3.0, reference_tokens=80, maximum=12.0)

    assert shift(80) == 3.0
    assert shift(320) == pytest.approx(6.0)
    assert shift(16) == pytest.approx(3.0 / math.sqrt(5))
    assert shift(1) == 1.0
    assert shift(100_000) == 12.0
