"""Networks that cannot be analysed, or only just: numbers or one clear sentence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.cases.base import Built, classes, collect, features, odd, sgd
from torch import nn

WIDTH = 16


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 5))


def task(model: nn.Module) -> Built:
    x = features(16, WIDTH)
    return model, (x, classes(x, 5)), F.cross_entropy


@odd("empty-module", error="no parameters")
def empty() -> Built:
    return task(nn.Sequential())


@odd("no-parameters", error="no parameters")
def no_parameters() -> Built:
    return task(nn.Sequential(nn.Tanh(), nn.Softmax(dim=1)))


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x):
        x = self.net[0](x)
        raise ValueError("the sensor gave no calibration table")


@odd("raises-in-forward", error="the sensor gave no calibration table", optimizer=sgd(0.05))
def raises() -> Built:
    return task(Raises())


@odd("wrong-shape", error="32x16", note="the batch does not fit the first layer")
def wrong_shape() -> Built:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
    x = features(32, WIDTH)
    return model, (x, classes(x, 5)), F.cross_entropy


@odd("batchnorm1d-batch-of-one", error="more than 1 value per channel")
def batch_of_one() -> Built:
    model = nn.Sequential(nn.Linear(WIDTH, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5))
    return model, (torch.randn(1, WIDTH), torch.tensor([2])), F.cross_entropy


class Speaks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x):
        return f"class {self.net(x).argmax(1)[0].item()}"


@odd("returns-a-string", error="str", optimizer=sgd(0.05))
def speaks() -> Built:
    return task(Speaks())


@odd("lazy-parameters", error="lazy", note="looking must not give them their shape")
def lazy() -> Built:
    return task(nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.LazyLinear(5)))


class LogOfNegative(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(WIDTH, 32), nn.Linear(32, 5)

    def forward(self, x):
        return self.head(torch.log(self.first(x)))


@odd("produces-nan", "SP202", optimizer=sgd(0.05))
def produces_nan() -> Built:
    return task(LogOfNegative())


@odd("inference-mode-batch", error="inference", note="autograd cannot save such tensors")
def inference_batch() -> Built:
    model, (x, y), loss = task(net())
    with torch.inference_mode():
        x = x.clone()
    return model, (x, y), loss


class Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x):
        return self.net(x).detach()


@odd("detached-output", error="does not depend", note="the loss reaches no parameter")
def cut() -> Built:
    return task(Cut())


@odd("all-frozen", error="requires_grad", note="nothing is to be trained")
def all_frozen() -> Built:
    return task(net().requires_grad_(False))


@odd("no-grad-in-forward", error="does not depend")
def no_grad() -> Built:
    model = net()
    model.forward = torch.no_grad()(model.forward)
    return task(model)


@odd("empty-batch", error="no samples", note="torch gives a loss of NaN")
def empty_batch() -> Built:
    model, (x, y), loss = task(net())
    return model, (x[:0], y[:0]), loss


@odd("loss-per-sample", error="one number", note="reduction='none'")
def loss_per_sample() -> Built:
    model, batch, _ = task(net())
    return model, batch, nn.CrossEntropyLoss(reduction="none")


@odd("own-loss-missing", error="loss", note="no loss given, and the model returns none")
def own_loss_missing() -> Built:
    model, (x, _), _ = task(net())
    return model, {"input": x}, None


@odd("meta-device", error="meta", note="no data behind the shapes")
def meta() -> Built:
    return task(net().to("meta"))


@odd("one-linear", note="no depth at all", optimizer=sgd(0.05))
def one_linear() -> Built:
    return task(nn.Linear(WIDTH, 5))


@odd("one-sample", note="statistics over samples have nothing to compare", optimizer=sgd(0.05))
def one_sample() -> Built:
    model, (x, y), loss = task(net())
    return model, (x[:1], y[:1]), loss


CASES = collect(globals())
