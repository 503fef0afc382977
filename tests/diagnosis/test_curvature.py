"""Sharpness against the exact Hessian, gradient noise against every micro-batch by itself."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from signalprop.capture.observe import eager
from signalprop.capture.sandbox import untouched
from signalprop.diagnosis import curvature
from signalprop.diagnosis.engine import diagnose
from signalprop.diagnosis.probe import Probe

# torch.func loads the compiler, which warns at itself
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)


def network():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.GELU(), nn.Linear(6, 3))


def task(n=48, dtype=torch.float64):
    return torch.randn(n, 5, dtype=dtype), torch.randint(3, (n,))


def gradients_of(model, batch, loss):
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    value = loss(model(batch[0]), batch[1])
    found = torch.autograd.grad(value, [model.get_parameter(n) for n in names])
    return dict(zip(names, found, strict=True))


def measured(model, batch, loss=F.cross_entropy, **options):
    """Sharpness as the engine measures it, and whether it left every bit in place."""
    before = copy.deepcopy(model.state_dict())
    gradients = gradients_of(model, batch, loss)
    with untouched(model) as sandbox, eager():
        value = curvature.sharpness(Probe(model, sandbox, batch, loss), gradients, **options)
        inside = copy.deepcopy(model.state_dict())
    for state in (inside, model.state_dict()):
        assert all(torch.equal(before[key], state[key]) for key in before)
    return value


def spectrum(model, batch, loss=F.cross_entropy):
    """Every eigenvalue of the Hessian, formed whole."""
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    shapes = {n: p.shape for n, p in parameters.items()}
    flat = torch.cat([p.reshape(-1) for p in parameters.values()])

    def of(vector):
        parts = vector.split([s.numel() for s in shapes.values()])
        weights = {n: v.view(s) for (n, s), v in zip(shapes.items(), parts, strict=True)}
        return loss(torch.func.functional_call(model, weights, (batch[0],)), batch[1])

    return torch.linalg.eigvalsh(torch.func.hessian(of)(flat))


@pytest.mark.parametrize("seed", range(5))
def test_sharpness_comes_near_from_below(seed):
    torch.manual_seed(seed)
    model, batch = network().double(), task()
    top = spectrum(model, batch)[-1].item()
    values = [measured(model, batch, iterations=k) for k in (1, 2, 4, 12)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(top, rel=0.05)
    assert values[2] > 0.5 * top  # four products are what a diagnosis takes
    assert all(value <= 1.01 * top for value in values)


def test_sharpness_in_float32_does_not_exceed_the_largest_eigenvalue():
    model, batch = network().double(), task()
    top = spectrum(model, batch)[-1].item()
    x, y = batch
    value = measured(model.float(), (x.float(), y), iterations=10)
    assert 0.95 * top < value <= 1.01 * top


class Saddle(nn.Module):
    """A loss with the eigenvalues 3, -50 and 0.5, wherever its weights are."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -0.2, 0.3], dtype=torch.float64))
        self.register_buffer("d", torch.tensor([3.0, -50.0, 0.5], dtype=torch.float64))

    def forward(self, x):
        return 0.5 * (self.d * self.w.square()).sum() * x.mean()


def test_a_large_negative_eigenvalue_does_not_mislead():
    """Power iteration would find -50."""
    x = torch.ones(8, 1, dtype=torch.float64)
    value = measured(Saddle(), (x, x), lambda output, target: output, iterations=3)
    assert value == pytest.approx(3.0, rel=1e-3)


def test_four_products_find_the_top_of_an_indefinite_network():
    torch.manual_seed(3)
    model, batch = network().double(), task()
    for parameter in model.parameters():
        parameter.data.mul_(2.5)
    values = spectrum(model, batch)
    assert values[0] < -0.05 * values[-1]
    assert measured(model, batch, iterations=12) == pytest.approx(values[-1].item(), rel=0.05)


def test_one_weight_is_exact_and_stops_early():
    model = nn.Linear(1, 1, bias=False).double()
    x = torch.randn(16, 1, dtype=torch.float64)
    value = measured(model, (x, 2 * x), F.mse_loss, iterations=8)
    assert value == pytest.approx(2 * x.square().mean().item(), rel=1e-6)


def test_zero_gradient_has_no_sharpness():
    model = nn.Linear(3, 2).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    x = torch.randn(8, 3, dtype=torch.float64)
    batch = (x, torch.zeros(8, 2, dtype=torch.float64))
    assert measured(model, batch, F.mse_loss) is None
    found = diagnose(model, batch, F.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1))
    assert found.sharpness is None
    assert {r.outcome for r in found.results if r.code == "SP210"} == {"passed"}


def test_weights_that_start_at_zero_have_a_sharpness():
    """The step is relative to the weights; without any it falls back to an absolute one."""
    model = nn.Linear(3, 2).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    x = torch.randn(32, 3, dtype=torch.float64)
    batch = (x, x[:, :2].clone())
    top = spectrum(model, batch, F.mse_loss)[-1].item()
    assert measured(model, batch, F.mse_loss, iterations=6) == pytest.approx(top, rel=0.05)


def test_diagnose_hands_the_sharpness_on():
    model, batch = network().double(), task()
    look = lambda rate: diagnose(  # noqa: E731
        model, batch, F.cross_entropy, torch.optim.SGD(model.parameters(), lr=rate)
    )
    for doubtful in (100.0, 1e-7):
        assert look(doubtful).sharpness == pytest.approx(measured(model, batch), rel=1e-9)
    assert look(0.1).sharpness is None  # the loss falls
    assert diagnose(model, batch, F.cross_entropy).sharpness is None


# ---- gradient noise --------------------------------------------------------------------------


def noise_of(model, batch, loss=F.cross_entropy, parts=4):
    before = copy.deepcopy(model.state_dict())
    with untouched(model) as sandbox, eager():
        probe = Probe(model, sandbox, batch, loss)
        value = curvature.gradient_noise(probe, parts=parts)
        inside = copy.deepcopy(model.state_dict())
    assert all(torch.equal(before[key], inside[key]) for key in before)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    return value


def noise_twin(model, batch, parts, loss=F.cross_entropy):
    """|mean g|^2 over the variance of that mean, from every micro-batch's whole gradient."""
    rows = len(batch[1]) // parts
    result = {}
    layers = dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters())
    for layer in layers:
        vectors = []
        for i in range(parts):
            part = tuple(t[i * rows : (i + 1) * rows] for t in batch)
            found = gradients_of(model, part, loss)
            own = [g.reshape(-1) for n, g in found.items() if n.rpartition(".")[0] == layer]
            vectors.append(torch.cat(own).double())
        stacked = torch.stack(vectors)
        spread = stacked.var(0, correction=1).sum() / parts
        result[layer] = (stacked.mean(0).square().sum() / spread).item()
    return result


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_gradient_noise_agrees_with_its_twin(parts):
    model, batch = network().double(), task(n=50)  # two rows are left over
    assert noise_of(model, batch, parts=parts) == pytest.approx(
        noise_twin(model, batch, parts), rel=1e-9
    )


def test_gradient_noise_in_float32():
    model, (x, y) = network(), task(n=64)
    expected = noise_twin(copy.deepcopy(model).double(), (x, y), 4)
    assert noise_of(model, (x.float(), y)) == pytest.approx(expected, rel=1e-4)


def test_equal_micro_batches_have_no_noise():
    model, (x, y) = network().double(), task(n=8)
    noise = noise_of(model, (x.repeat(4, 1), y.repeat(4)))
    assert all(value > 1e12 for value in noise.values())


def test_pure_noise_is_around_one():
    """Where the labels have nothing to do with the inputs, a mean gradient is its own noise."""
    model, (x, _) = nn.Sequential(nn.Linear(5, 2, bias=False)).double(), task(n=4000)
    nn.init.zeros_(model[0].weight)
    noise = noise_of(model, (x, torch.randint(2, (4000,))))
    assert 0.05 < noise["0"] < 8


def test_gradient_noise_reads_sequence_first_batches():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x)[-1]

    model, x, y = Last().double(), torch.randn(6, 16, 4).double(), torch.randint(3, (16,))
    with untouched(model) as sandbox, eager():
        probe = Probe(model, sandbox, (x, y), F.cross_entropy, batch_dim=1)
        noise = curvature.gradient_noise(probe)
    last = nn.Sequential(copy.deepcopy(model.layer))
    assert noise["layer"] == pytest.approx(noise_twin(last, (x[-1], y), 4)["0"], rel=1e-9)


@pytest.mark.parametrize(("size", "enough"), [(7, False), (8, True)])
def test_a_batch_needs_four_parts_of_two(size, enough):
    model, batch = network().double(), task(n=size)
    noise = noise_of(model, batch)
    assert (noise is not None) == enough
    found = diagnose(model, batch, F.cross_entropy)
    skipped = [r for r in found.results if r.outcome == "skipped" and "noise" in r.reason]
    assert all("too small to be split into four" in r.reason for r in skipped)
    assert not (enough and skipped)


def test_noise_is_measured_with_the_random_numbers_of_one_pass():
    """Dropout draws the same mask for every micro-batch, so twice the same is the same."""
    model = nn.Sequential(nn.Linear(5, 30), nn.Dropout(0.5), nn.Linear(30, 3)).double()
    batch = task()
    first = noise_of(model, batch)
    assert first == noise_of(model, batch)
    assert all(math.isfinite(value) for value in first.values())
