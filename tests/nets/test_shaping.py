import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tests.nets.support import ratio, through
from torch import nn

from signalprop.nets import (
    ShapedActivation,
    TailoredReLU,
    leaky_cosine,
    tailored_slope,
)

DOUBLE = {"dtype": torch.float64}


def orthogonal(width):
    layer = nn.Linear(width, width, bias=False, **DOUBLE)
    nn.init.orthogonal_(layer.weight)
    return layer


def stack(phi, depth, width):
    """Plain layers phi(W x) of orthogonal weights, with which lengths fluctuate least."""
    return nn.Sequential(*(nn.Sequential(orthogonal(width), phi) for _ in range(depth)))


def pair(cosine, width):
    """Two inputs of length sqrt(width) and that cosine."""
    q, _ = torch.linalg.qr(torch.randn(width, 2, **DOUBLE))
    u, v = q.T * math.sqrt(width)
    return torch.stack([u, cosine * u + math.sqrt(1 - cosine**2) * v])


# ---- leaky ReLU ----------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.0, 0.3, 0.9, 1.0, -0.5])
@pytest.mark.parametrize("c", [-1.0, -0.6, 0.0, 0.5, 0.95, 1.0])
def test_the_closed_form_is_what_sampling_finds(c, slope):
    draw = torch.Generator().manual_seed(5)
    u, w = torch.randn(2, 400_000, generator=draw, **DOUBLE)
    v = c * u + math.sqrt(1 - c * c) * w
    f = math.sqrt(2 / (1 + slope**2)) * F.leaky_relu(torch.stack([u, v]), slope)
    products = f[0] * f[1]
    error = float(products.std()) / math.sqrt(len(u))
    assert leaky_cosine(c, slope) == pytest.approx(float(products.mean()), abs=4.5 * error + 1e-12)


def test_known_values_of_the_closed_form():
    # arc-cosine kernel of ReLU
    assert leaky_cosine(0.0, 0.0) == pytest.approx(1 / math.pi)
    assert leaky_cosine(0.37, 1.0, 50) == pytest.approx(0.37)
    twice = leaky_cosine(leaky_cosine(0.2, 0.4), 0.4)
    assert leaky_cosine(0.2, 0.4, 2) == pytest.approx(twice, abs=1e-15)


@pytest.mark.parametrize("eta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("depth", [20, 50, 1000])
def test_composed_over_its_depth_it_takes_zero_to_eta(depth, eta):
    slope = tailored_slope(depth, eta)
    assert 0.0 < slope < 1.0
    assert leaky_cosine(0.0, slope, depth) == pytest.approx(eta, rel=1e-12)
    # the deeper, the more linear; the less eta, the more linear
    assert slope < tailored_slope(2 * depth, eta)
    assert slope < tailored_slope(depth, 0.8 * eta)


@pytest.mark.parametrize("depth", [1, 3, 7])
def test_what_relu_itself_reaches_is_its_limit(depth):
    most = leaky_cosine(0.0, 0.0, depth)
    assert tailored_slope(depth, most) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match=rf"out of reach of {depth} layers.*{most:.4g}"):
        tailored_slope(depth, 1.0001 * most)


def test_a_wide_network_does_what_the_closed_form_says():
    depth, width, cosines, squares, ratios = 40, 256, [], [], []
    phi = TailoredReLU(depth)
    for seed in range(4):
        torch.manual_seed(seed)
        states, deltas = through(stack(phi, depth, width), pair(0.0, width))
        u, v = states[-1]
        cosines.append(float(u @ v / (u.norm() * v.norm())))
        squares.append(states[-1].square().mean().item())
        ratios.append(ratio(deltas))
    assert sum(cosines) / 4 == pytest.approx(0.9, abs=0.05)
    assert sum(squares) / 4 == pytest.approx(1.0, rel=0.4)
    assert math.prod(ratios) ** 0.25 == pytest.approx(1.0, rel=0.4)


def test_the_activation_is_the_scaled_leaky_relu():
    phi = TailoredReLU(30, 0.8)
    a = tailored_slope(30, 0.8)
    assert phi.negative_slope == a
    x = torch.randn(1000, **DOUBLE)
    want = math.sqrt(2 / (1 + a * a)) * torch.where(x > 0, x, a * x)
    torch.testing.assert_close(phi(x), want)
    assert f"negative_slope={a:.6g}" in repr(phi)


# ---- smooth activations --------------------------------------------------------------------------

SMOOTH = [
    (F.softplus, 10),
    (F.softplus, 1000),
    (torch.tanh, 1),
    (torch.tanh, 100),
    (F.silu, 100),
    (F.gelu, 10),
    (torch.erf, 100),
    (nn.Mish(), 10),
    (F.elu, 100),
]


@pytest.mark.parametrize(("phi", "depth"), SMOOTH)
def test_the_four_conditions_hold(phi, depth):
    shaped = ShapedActivation(depth, phi)
    # midpoints, where the solver has the trapezoid rule
    z = (torch.arange(100_000, **DOUBLE) + 0.5) / 100_000 * 24 - 12
    weights = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi) * 24 / 100_000
    z.requires_grad_()
    f = shaped(z)
    (slope,) = torch.autograd.grad(f.sum(), z)
    f, z = f.detach(), z.detach()
    assert float(weights @ f**2) == pytest.approx(1.0, abs=1e-7)
    assert float(weights @ f) == pytest.approx(0.0, abs=1e-7)
    assert float(weights @ (f * slope * z)) == pytest.approx(1.0, abs=1e-7)
    assert float(weights @ slope**2) ** depth == pytest.approx(1.5, abs=1e-5)


@pytest.mark.parametrize("zeta", [1.05, 1.5, 5.0])
def test_other_slopes(zeta):
    shaped = ShapedActivation(50, torch.tanh, zeta)
    z = torch.linspace(-12, 12, 100_001, **DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(shaped(z).sum(), z)
    weights = torch.exp(-(z.detach() ** 2) / 2)
    assert float(weights @ slope**2 / weights.sum()) ** 50 == pytest.approx(zeta, rel=1e-6)


def test_a_shaped_network_keeps_length_and_tells_inputs_apart():
    depth, width = 40, 256
    phi = ShapedActivation(depth, torch.tanh)
    shaped, plain = [], []
    for seed in range(4):
        torch.manual_seed(seed)
        net = stack(phi, depth, width)
        states, deltas = through(net, pair(0.0, width))
        u, v = states[-1]
        shaped.append(float(u @ v / (u.norm() * v.norm())))
        assert states[-1].square().mean().item() == pytest.approx(1.0, rel=0.5)
        assert 0.7 * math.sqrt(1.5) < ratio(deltas) < 1.5 * math.sqrt(1.5)
        relu = stack(nn.LeakyReLU(0.0), depth, width)
        u, v = through(relu, pair(0.0, width))[0][-1]
        plain.append(float(u @ v / (u.norm() * v.norm())))
    assert abs(sum(shaped) / 4) < 0.2
    assert min(plain) > 0.95


def test_the_solution_is_the_same_whatever_mode_and_device_are_set():
    found = ShapedActivation(20, torch.tanh).shape
    assert found.beta > 0
    with torch.no_grad(), torch.device("meta"):
        assert ShapedActivation(20, torch.tanh).shape == found
    with torch.inference_mode():
        assert ShapedActivation(20, torch.tanh).shape == found
    # nothing random is drawn
    before = torch.get_rng_state()
    ShapedActivation(20, torch.tanh)
    assert torch.equal(before, torch.get_rng_state())


# ---- both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "argument"),
    [(TailoredReLU, 0.9), (ShapedActivation, F.softplus), (ShapedActivation, nn.Tanh())],
)
def test_it_is_an_ordinary_module(make, argument):
    phi = make(20, argument)
    x = torch.randn(5, 3, **DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(phi, (x,))
    y = phi(x)
    assert torch.equal(copy.deepcopy(phi)(x), y)
    phi.load_state_dict(phi.state_dict())
    assert not list(phi.parameters())
    compiled = torch.compile(copy.deepcopy(phi), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), y)
    assert phi(x.float()).dtype == torch.float32
    assert phi(x.half()).dtype == torch.float16
    assert "depth=20" in repr(phi)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TailoredReLU(0), "depth has to be a whole number"),
        (lambda: TailoredReLU(100, 1.0), "eta has to lie between 0 and 1"),
        (
            lambda: TailoredReLU(5),
            "out of reach of 5 layers.*use ReLU, or a smaller eta",
        ),
        (lambda: leaky_cosine(1.1, 0.5), "c has to lie between -1 and 1"),
        (lambda: leaky_cosine(0.1, math.nan), "negative_slope has to be a finite number"),
        (lambda: leaky_cosine(0.1, 0.5, 0), "depth has to be a whole number"),
        (lambda: ShapedActivation(0), "depth has to be a whole number"),
        (lambda: ShapedActivation(10, zeta=1.0), "zeta has to be above 1"),
        (lambda: ShapedActivation(10, F.relu), "no scale and shift of relu fulfil"),
        (lambda: ShapedActivation(10, torch.square), "no scale and shift of square fulfil"),
        (lambda: ShapedActivation(10, torch.sign), "no scale and shift of sign fulfil"),
        (lambda: ShapedActivation(10, lambda x: x), "no scale and shift of <lambda> fulfil"),
        (lambda: ShapedActivation(10, lambda x: x.sum(0)), "<lambda> cannot be shaped"),
        (lambda: ShapedActivation(10, lambda x: x.round().long()), "<lambda> cannot be shaped"),
        (lambda: ShapedActivation(10, nn.Linear(3, 3)), "cannot be shaped"),
        (lambda: ShapedActivation(10, "tanh"), "cannot be shaped"),
    ],
)
def test_bad_arguments_are_one_sentence(make, said):
    with pytest.raises(ValueError, match=said):
        make()
