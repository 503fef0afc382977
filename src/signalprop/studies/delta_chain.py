"""delta-chain: is the error signal really a product of Jacobians?

Every layer a^i = f^i(a^{i-1}) is differentiated by itself, one sample at a time, and delta is
carried down through these matrices. Beside it stands the delta of one ordinary backward pass.
As autograd on both sides would only show that autograd agrees with itself, the matrices are also
made without it: in closed form, J = diag(1 - a^2) W, and by central differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signalprop.capture.observe import trace
from signalprop.studies.data import digits
from signalprop.studies.frame import Claim, Measured, Measurement, Series, Setup, Study, Values

#: step of the central differences: balances h^2 against 1e-16 / h in float64
STEP = 6e-6
#: rounding grows with the number of operations; these are far above it and far below any mistake
EXACT, EXACT_32, DIFFERENCES = 1e-11, 1e-3, 1e-6


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to its input."""
        return x + self.branch(x)


def plain_net(pixels: int, depth: int, width: int) -> list[nn.Module]:
    """Layers of a tanh net: `depth` hidden ones and a linear one on top."""
    sizes = [pixels] + [width] * depth
    hidden = [
        nn.Sequential(nn.Linear(m, n, dtype=torch.float64), nn.Tanh()) for m, n in pairwise(sizes)
    ]
    return [*hidden, nn.Linear(width, 10, dtype=torch.float64)]


def residual_net(pixels: int, depth: int, width: int) -> list[nn.Module]:
    """Layers of a net with skip connections and BatchNorm: x + W relu(BatchNorm(x)) + b."""
    blocks = [
        Residual(
            nn.Sequential(
                nn.BatchNorm1d(width, dtype=torch.float64),
                nn.ReLU(),
                nn.Linear(width, width, dtype=torch.float64),
            )
        )
        for _ in range(depth)
    ]
    first = nn.Linear(pixels, width, dtype=torch.float64)
    return [first, *blocks, nn.Linear(width, 10, dtype=torch.float64)]


def train(layers: Sequence[nn.Module], x: Tensor, y: Tensor, steps: int) -> None:
    """A few steps of Adam, so that the weights are not the initial ones."""
    net = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(steps):
        pick = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(net(x[pick]), y[pick]).backward()
        optimizer.step()


def deltas(layers: Sequence[nn.Module], x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Activations a^0..a^T and delta^0..delta^T = dL/da^i of one backward pass, L summed."""
    a = [x.detach().clone().requires_grad_()]
    for layer in layers:
        a.append(layer(a[-1]))
    found = torch.autograd.grad(F.cross_entropy(a[-1], y, reduction="sum"), a)
    return [v.detach() for v in a], list(found)


def by_autograd(layer: nn.Module, a: Tensor) -> Tensor:
    """J (n, out, in) of a layer, every sample by itself."""

    def alone(row: Tensor) -> Tensor:
        return layer(row[None])[0]  # BatchNorm asks for a batch

    return torch.func.vmap(torch.func.jacrev(alone))(a).detach()


def by_differences(layer: nn.Module, a: Tensor) -> Tensor:
    """J (n, out, in) by central differences: no derivative rule is used."""
    columns = []
    with torch.no_grad():
        for k in range(a.shape[1]):
            e = torch.zeros_like(a)
            e[:, k] = STEP
            columns.append((layer(a + e) - layer(a - e)) / (2 * STEP))
    return torch.stack(columns, -1)


def by_formula(layer: nn.Module, a: Tensor) -> Tensor:
    """J = diag(1 - a^2) W of tanh(W a + b), or W of a linear layer."""
    if isinstance(layer, nn.Linear):
        return layer.weight.detach().expand(len(a), -1, -1)
    assert isinstance(layer, nn.Sequential)
    assert isinstance(layer[0], nn.Linear)
    with torch.no_grad():
        return (1 - layer(a) ** 2)[:, :, None] * layer[0].weight


def error(found: Tensor, true: Tensor) -> float:
    """Largest over samples of ||found - true|| / ||true||."""
    return float(((found - true).norm(dim=1) / true.norm(dim=1)).max())


def chain(
    layers: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    jacobian: Callable[[nn.Module, Tensor], Tensor],
) -> tuple[list[float], list[float]]:
    """Compare with autograd's delta, from the top layer down to the input.

    Returns:
        Relative error of one step at every layer, delta^i J^i against delta^{i-1}, and of the
        whole product down to it, delta^T J^T ... J^i, where nothing is corrected on the way.
    """
    a, delta = deltas(layers, x, y)
    carried = delta[-1]
    steps: list[float] = []
    products: list[float] = []
    for i in range(len(layers), 0, -1):
        J = jacobian(layers[i - 1], a[i - 1])
        steps.append(error(torch.einsum("no,noi->ni", delta[i], J), delta[i - 1]))
        carried = torch.einsum("no,noi->ni", carried, J)
        products.append(error(carried, delta[i - 1]))
    return steps, products


def batchnorm_in_training(layers: list[nn.Module], x: Tensor, y: Tensor) -> tuple[float, float]:
    """The chain where BatchNorm uses the batch's own statistics.

    Returns:
        Error of the chain made of each sample's own Jacobian da^i_n / da^{i-1}_n, and of the
        chain made of the Jacobian of the whole batch as one vector, both down to the input.
    """
    a, delta = deltas(layers, x, y)
    alone = together = delta[-1]
    n = torch.arange(len(x))
    for i in range(len(layers), 0, -1):
        J = torch.autograd.functional.jacobian(layers[i - 1], a[i - 1], vectorize=True)
        assert isinstance(J, Tensor)  # (n, out, n, in)
        alone = torch.einsum("no,noi->ni", alone, J[n, :, n, :])
        together = torch.einsum("no,nomi->mi", together, J)
    return error(alone, delta[0]), error(together, delta[0])


def measure(setup: Setup) -> Measured:
    """Run it."""
    depth, width, samples, steps = (8, 24, 16, 100) if setup.quick else (30, 64, 64, 300)
    found = digits(10_000)
    x, y = found.x_test[:samples], found.y_test[:samples]
    numbers: list[Measurement] = []
    series: list[Series] = []

    def note(name: str, value: float, text: str, expected: float | None = 0.0) -> None:
        numbers.append(Measurement(name, value, "relative error", expected, text))

    def curve(name: str, errors: Sequence[float]) -> None:
        title = "Error of the product of Jacobians, from the loss down"
        layers_passed = tuple(float(i + 1) for i in range(len(errors)))
        series.append(
            Series(title, name, layers_passed, tuple(errors), "Jacobians multiplied",
                   "largest relative error over samples", log_y=True)
        )  # fmt: skip

    setup.at(0.0, f"training a tanh net with {depth} hidden layers")
    layers = plain_net(found.pixels, depth, width)
    train(layers, found.x, found.y, steps)
    setup.at(0.3, "multiplying its Jacobians")
    one, product = chain(layers, x, y, by_autograd)
    note("one layer, float64", max(one), "delta^i J^i against delta^{i-1}, worst layer")
    note("product, float64", max(product), "delta^T J^T ... J^i, worst depth")
    curve("float64", product)
    _, formula = chain(layers, x, y, by_formula)
    note("product, J in closed form", max(formula), "J = diag(1 - a^2) W, no autograd")
    _, differences = chain(layers, x, y, by_differences)
    note("product, J by differences", max(differences), "central, h = 6e-6")
    curve("J by central differences", differences)
    seen = trace(nn.Sequential(*layers), (x, y), F.cross_entropy)
    _, delta = deltas(layers, x, y)
    by_hand = float((delta[0].norm(dim=1) / delta[-1].norm(dim=1)).log().mean())
    numbers += [
        Measurement("decay by hand", by_hand, "nats", None, "ln |delta^0| / |delta^T|"),
        Measurement("decay by trace", seen.decay, "nats", by_hand, "sp.trace on the same net"),
    ]
    _, single = chain([layer.float() for layer in layers], x.float(), y, by_autograd)
    note("product, float32", max(single), "the same net rounded to float32")
    curve("float32", single)

    setup.at(0.6, f"training a net of {depth} residual blocks with BatchNorm")
    residual = residual_net(found.pixels, depth, width)
    train(residual, found.x, found.y, steps)
    net = nn.Sequential(*residual).eval()
    _, skips = chain(residual, x, y, by_autograd)
    note("product, skips + BatchNorm (eval)", max(skips), "x + W relu(BatchNorm(x))")
    curve("skip connections, BatchNorm in eval mode", skips)
    setup.at(0.9, "BatchNorm in training mode")
    few = 8  # the Jacobian of the whole batch has (few * width)^2 entries
    small = residual[: 4 if setup.quick else 8] + residual[-1:]
    net.train()
    alone, together = batchnorm_in_training(small, x[:few], y[:few])
    note("BatchNorm in training, per sample", alone, f"each sample's own J, batch of {few}", None)
    note("BatchNorm in training, whole batch", together, "J of the batch as one vector")
    settings = {"depth": depth, "width": width, "samples": samples, "training steps": steps}
    return Measured(tuple(numbers), found.name, settings, tuple(series))


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts from the measured values."""
    worst = max(v["one layer, float64"], v["product, float64"], v["product, J in closed form"])
    off = abs(v["decay by trace"] - v["decay by hand"])
    exact = (
        worst <= EXACT
        and v["product, J by differences"] <= DIFFERENCES
        and v["product, float32"] <= EXACT_32
        and off <= 1e-9
    )
    skips = v["product, skips + BatchNorm (eval)"]
    alone = v["BatchNorm in training, per sample"]
    together = v["BatchNorm in training, whole batch"]
    row = "The rule for a row vector delta; for columns it reads delta^{i-1} = (J^i)^T delta^i."
    return (
        Claim(
            "delta^{i-1} = delta^i J^i, layer by layer and as a product over depth",
            "holds" if exact else "does not hold as printed",
            f"In float64 the product of Jacobians differs from autograd's delta by at most "
            f"{worst:.1e} of its length at any depth ({v['product, float32']:.1e} in float32, "
            f"{v['product, J by differences']:.1e} with Jacobians from central differences); "
            f"the decay that sp.trace reports differs from it by {off:.0e} nats.",
            "" if exact else row,
        ),
        Claim(
            "the same with skip connections and BatchNorm in evaluation mode",
            "holds" if skips <= EXACT else "does not hold as printed",
            f"With skip connections and BatchNorm in evaluation mode the error is {skips:.1e}.",
        ),
        Claim(
            "the same with BatchNorm in training mode, for the batch as one vector",
            "holds" if together <= EXACT else "does not hold as printed",
            f"With BatchNorm in training mode the samples of a batch are coupled: each sample's "
            f"own Jacobians miss delta by {alone:.0%}, while the Jacobian of the whole batch as "
            f"one vector is off by {together:.1e} only.",
        ),
    )


STUDY = Study(
    name="delta-chain",
    title="The error signal is a product of Jacobians",
    statement="delta^{i-1} = delta^i J^i, with delta^i = dL/da^i a row vector and "
    "J^i = da^i/da^{i-1}",
    source="Lecture by Sepp Hochreiter; Rumelhart, Hinton & Williams 1986; Hochreiter 1991, "
    "Untersuchungen zu dynamischen neuronalen Netzen (diploma thesis, TU München)",
    function=measure,
    judge=judge,
)
