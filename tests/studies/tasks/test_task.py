"""What every task has in common, and the registry."""

from __future__ import annotations

import pickle
import time

import pytest
import torch
from torch.nn.utils.rnn import pad_packed_sequence

from signalprop.errors import SignalpropError
from signalprop.studies import tasks
from signalprop.studies.tasks import Criterion, Score
from signalprop.studies.tasks.scores import legal_most_active, right_class, within

SMALL = {
    "embedded-reber": tasks.embedded_reber,
    "continual-reber": lambda: tasks.continual_reber(50),
    "2a": lambda: tasks.noise_free(8),
    "2b": lambda: tasks.no_regularities(8),
    "2c": lambda: tasks.very_long_lags(6, 6),
    "3a": lambda: tasks.two_sequences(20, 2, "3a"),
    "3b": lambda: tasks.two_sequences(20, 2, "3b"),
    "3c": lambda: tasks.two_sequences(20, 2, "3c"),
    "adding": lambda: tasks.adding(30),
    "multiplication": lambda: tasks.multiplication(30),
    "6a": lambda: tasks.temporal_order(30, 2),
    "6b": lambda: tasks.temporal_order(30, 3),
    "copying": lambda: tasks.copying(10, 3, 4),
    "digits": tasks.sequential_digits,
    "permuted": lambda: tasks.sequential_digits(permuted=True),
}

every = pytest.mark.parametrize("name", SMALL)
PARTS = ("elements", "targets", "truth", "lengths", "mask")


@every
def test_same_generator_same_sequences(name):
    task = SMALL[name]()
    make = lambda seed: task.sample(20, torch.Generator().manual_seed(seed))  # noqa: E731
    one, two, other = make(1), make(1), make(2)
    for part in PARTS:
        assert getattr(one, part).equal(getattr(two, part)), part
    assert any(
        getattr(one, part).shape != getattr(other, part).shape
        or not getattr(one, part).equal(getattr(other, part))
        for part in PARTS
    )
    # the caller's random state is neither read nor touched
    before = torch.get_rng_state()
    torch.manual_seed(99)
    assert make(1).elements.equal(one.elements)
    torch.set_rng_state(before)
    make(1)
    assert torch.get_rng_state().equal(before)
    # without a generator: torch's own
    torch.manual_seed(7)
    default = task.sample(20)
    torch.manual_seed(7)
    assert task.sample(20).elements.equal(default.elements)


@every
def test_shapes(name):
    task = SMALL[name]()
    batch = task.sample(25)
    steps = batch.mask.shape[1]
    assert len(batch) == len(batch.lengths) == 25
    assert batch.inputs.shape == (25, steps, task.n_in)
    assert batch.inputs.dtype == torch.float32
    assert batch.lengths.dtype == torch.int64
    assert int(batch.lengths.max()) == steps
    outside = torch.arange(steps) >= batch.lengths.unsqueeze(1)
    assert not batch.mask[outside].any()
    assert batch.inputs[outside].eq(0).all()
    if task.target == "last step":
        assert batch.mask.sum(1).eq(1).all()
        assert batch.targets.shape in {(25,), (25, task.n_out)}
    else:
        assert batch.mask.equal(~outside)
        assert batch.targets.shape == (25, steps)
    assert 0 <= task.nearest <= task.lag < int(batch.lengths.min())


@every
def test_a_layer_of_torch_reads_it(name):
    task = SMALL[name]()
    batch = task.sample(12)
    torch.manual_seed(0)
    layer = torch.nn.LSTM(task.n_in, 5, batch_first=True)
    linear = torch.nn.Linear(5, task.n_out)
    packed, _ = layer(batch.packed())
    padded, lengths = pad_packed_sequence(packed, batch_first=True)
    assert lengths.equal(batch.lengths)
    outputs = linear(padded)
    loss = task.objective(outputs, batch)
    loss.backward()
    assert loss.dim() == 0
    assert bool(torch.isfinite(loss))
    assert float(layer.weight_hh_l0.grad.abs().max()) > 0
    score = task.evaluate(outputs, batch)
    assert 0 <= score.solved <= 1
    assert score.sequences == 12
    # padding is not read, neither by the loss nor by the score
    plain = linear(layer(batch.inputs)[0])
    assert task.objective(plain, batch).item() == pytest.approx(loss.item(), rel=1e-5)
    assert task.evaluate(plain, batch).solved == score.solved


@every
def test_an_untrained_net_does_not_solve_it(name):
    task = SMALL[name]()
    batch = task.sample(400)
    steps = batch.mask.shape[1]
    for outputs in (torch.zeros(400, steps, task.n_out), torch.randn(400, steps, task.n_out)):
        score = task.evaluate(outputs, batch)
        assert score.solved < 0.3
        assert not task.criterion.met(score)
    nothing = torch.full((400, steps, task.n_out), torch.nan)
    assert task.evaluate(nothing, batch).solved == 0


@every
def test_pickle(name):
    task = SMALL[name]()
    again = pickle.loads(pickle.dumps(task))
    g = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert again.sample(5, g[0]).elements.equal(task.sample(5, g[1]).elements)


def test_objective_by_hand():
    task = tasks.embedded_reber()
    batch = task.sample(5)
    outputs = torch.randn(5, batch.mask.shape[1], 7)
    losses = [
        -outputs[i, t].log_softmax(0)[batch.targets[i, t]]
        for i in range(5)
        for t in range(int(batch.lengths[i]))
    ]
    assert task.objective(outputs, batch) == pytest.approx(float(sum(losses) / len(losses)))
    task = tasks.two_sequences(20, 1, "3a")
    batch = task.sample(5)
    outputs = torch.randn(5, batch.mask.shape[1], 1)
    last = outputs[torch.arange(5), batch.lengths - 1, 0].sigmoid()
    wanted = -torch.where(batch.targets[:, 0] == 1, last, 1 - last).log().mean()
    assert task.objective(outputs, batch) == pytest.approx(float(wanted))


def test_moved_to_a_device():
    batch = tasks.adding(30).sample(3)
    moved = batch.to("meta")
    assert moved.inputs.device.type == moved.mask.device.type == "meta"
    assert moved.lengths.device.type == "cpu"


def test_refusals():
    task = tasks.adding(30)
    batch = task.sample(8)
    steps = batch.mask.shape[1]
    for n in (0, -1, 2.5, True):
        with pytest.raises(SignalpropError, match="n, the number of sequences, has to be"):
            task.sample(n)
        with pytest.raises(SignalpropError, match="n, the number of sequences, has to be"):
            task.sample_test(n)
    with pytest.raises(SignalpropError, match="is the layer batch first"):
        task.objective(torch.zeros(steps, 8, 1), batch)
    with pytest.raises(SignalpropError, match="total_length"):
        task.evaluate(torch.zeros(8, steps - 1, 1), batch)
    with pytest.raises(SignalpropError, match="needs 1 outputs, and there are 3"):
        task.objective(torch.zeros(8, 3), batch)
    for make in (tasks.embedded_reber, tasks.noise_free, tasks.copying):
        task = make()
        batch = task.sample(8)
        for judge in (task.objective, task.evaluate):
            with pytest.raises(SignalpropError, match=r"\(sequences, steps, units\)"):
                judge(torch.zeros(8, task.n_out), batch)


def test_criterion():
    tight = Criterion("", sequences=256, wrong=5, error=0.04)
    assert tight.met(Score(251 / 256, 0.039, 256))
    assert not tight.met(Score(250 / 256, 0.039, 256))
    assert not tight.met(Score(1.0, 0.04, 256))
    assert not tight.met(Score(1.0, float("nan"), 256))
    assert tight.met(Score(2510 / 2560, 0.0, 2560))
    assert not tight.met(Score(2509 / 2560, 0.0, 2560))
    every_one = Criterion("", sequences=10_000)
    assert every_one.met(Score(1.0, 0.3, 10_000))
    assert not every_one.met(Score(9_999 / 10_000, 0.3, 10_000))


def test_registry():
    names = set()
    for name in tasks.TASKS:
        task = tasks.find(name)
        names.add(task.name)
        assert task.source
        assert task.criterion.text
    assert len(names) == len(tasks.TASKS)
    with pytest.raises(SignalpropError, match="did you mean adding-100"):
        tasks.find("adding_100x")
    with pytest.raises(SignalpropError, match="there are: embedded-reber, continual-reber"):
        tasks.find("qqq")


def test_published_figures():
    """The figures of the tables, typed a second time."""
    wanted = {
        "embedded-reber": 8_440,
        "noise-free": 5_040,
        "no-regularities": 5_680,
        "very-long-lags": 49_000,
        "two-sequences-3a": 39_850,
        "two-sequences-3b": 43_250,
        "two-sequences-3c": 269_650,
        "adding-100": 74_000,
        "adding-500": 209_000,
        "adding-1000": 853_000,
        "multiplication": 1_273_000,
        "temporal-order-2": 31_390,
        "temporal-order-3": 571_100,
    }
    for name, figure in wanted.items():
        assert tasks.find(name).published[-1].sequences == figure


@pytest.mark.parametrize(("name", "n"), [("adding-1000", 2_560), ("embedded-reber", 10_000)])
def test_speed(name, n):
    task = tasks.find(name)
    start = time.process_time()
    task.sample(n)
    assert time.process_time() - start < 2  # takes 0.03 s


def test_padding_is_not_judged():
    truth = torch.tensor([[0, 1, 1], [1, 0, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    outputs = torch.nn.functional.one_hot(truth, 2).float()
    outputs[1, 2] = torch.tensor([9.0, 9.0])
    for score in (within(0.1), right_class):
        assert score(outputs, truth, mask) == Score(1.0, 0.0, 2)
    assert legal_most_active(outputs, outputs == 1, mask) == Score(1.0, 0.0, 2)
    outputs[1, 1] = torch.tensor([0.0, 1.0])
    assert within(0.1)(outputs, truth, mask) == Score(0.5, pytest.approx(2 / 10), 2)
    assert right_class(outputs, truth, mask) == Score(0.5, pytest.approx(1 / 5), 2)
    # the last step of the mask, not of the tensor
    assert within(0.1, end_only=True)(outputs, truth, mask).solved == 0.5
