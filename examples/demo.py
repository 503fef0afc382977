"""A deep sigmoid network on handwritten digits: the network that did not learn, diagnosed.

Run by `make demo`. Prints the verdict, writes report.html, and shows the same network with ReLU
and He initialisation, and with SELU and LeCun initialisation, beside it.
"""

from __future__ import annotations

import torch
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import signalprop as sp

DEPTH, WIDTH, SAMPLES = 30, 64, 256


def digits() -> tuple[Tensor, Tensor]:
    """The first 8 x 8 digits of scikit-learn's set, each pixel with mean 0 and variance 1."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32)
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-3)
    return x[:SAMPLES], torch.tensor(labels)[:SAMPLES]


def network(activation: type[nn.Module], gain: float | None = None) -> nn.Sequential:
    """30 hidden layers; weights of variance gain^2 / n, or torch's default where gain is None."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(DEPTH):
        linear = nn.Linear(64 if i == 0 else WIDTH, WIDTH)
        if gain is not None:
            nn.init.normal_(linear.weight, std=gain / linear.in_features**0.5)
            nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def diagnosed(model: nn.Module, batch: tuple[Tensor, Tensor]) -> sp.Diagnosis:
    """The diagnosis with the optimizer it would be trained with."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return sp.diagnose(model, batch, F.cross_entropy, optimizer)


def main() -> None:
    """Diagnose the sick network, save its report, then the two cured ones."""
    console = Console()
    batch = digits()
    sick = diagnosed(network(nn.Sigmoid), batch)
    console.print(sick)
    path = sick.save("report.html")
    console.print(f"\nThe whole report: [bold]{path.resolve()}[/bold]\n", soft_wrap=True)
    cures = {"ReLU + He": (nn.ReLU, 2**0.5), "SELU + LeCun": (nn.SELU, 1.0)}
    for name, (activation, gain) in cures.items():
        cured = diagnosed(network(activation, gain), batch)
        console.print(f"The same network with {name}: {cured.verdict}")


if __name__ == "__main__":
    main()
