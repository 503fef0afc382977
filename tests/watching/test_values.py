"""The recorded numbers are those of `trace`, and of slow sums in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.cases import by_name, plain_loss
from tests.watching.loops import train
from torch import nn

import signalprop as sp
from signalprop.watching.file.reader import Run
from signalprop.watching.watch import watch

pytestmark = pytest.mark.usefixtures("each_way")

NAMES = [
    "mlp-relu-he-10", "resnet-a", "gpt2", "conv-bn", "lstm", "vit", "mlp-tanh-glorot-10", "bert",
]  # fmt: skip


def known(names):
    found = []
    for name in names:
        try:
            found.append(by_name(name).name)
        except KeyError:
            continue
    assert len(found) >= 4
    return found


@pytest.mark.parametrize("name", known(NAMES))
def test_activations_and_deltas_are_those_of_a_trace(name, tmp_path):
    case = by_name(name)
    model, batch, loss = case.build()
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.modules.dropout._DropoutNd)):
            module.p = 0.0
    traced = sp.trace(model, batch, loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, optimizer, every=1, to=tmp_path / "run.sp"):
        plain_loss(model, batch, loss).backward()
        optimizer.step()
    with Run(tmp_path / "run.sp") as run:
        names = [site.name for site in run.sites]
        rms = dict(zip(names, run.values("activation_rms").mean[0], strict=True))
        delta = dict(zip(names, run.values("delta_rms").mean[0], strict=True))
        dead = (
            dict(zip(names, run.values("dead").mean[0], strict=True))
            if ("dead" in run.statistics)
            else {}
        )
    compared = 0
    for name, site in traced.sites.items():
        if site.kind == "input" or name.startswith("loss") or "#" in name:
            continue
        if name not in rms or math.isnan(rms[name]):
            continue
        compared += 1
        assert rms[name] == pytest.approx(site.activation.rms, rel=1e-4), name
        if site.delta is not None:
            assert delta[name] == pytest.approx(site.delta.rms, rel=1e-3, abs=1e-12), name
        if site.activation.dead is not None:
            assert dead[name] == pytest.approx(site.activation.dead, abs=1e-6), name
    inside = [s for s in traced.sites.values() if s.kind != "input"]
    assert compared >= 0.8 * len([s for s in inside if "#" not in s.name and s.module != "loss"])


def test_weights_gradients_updates_and_shares_in_float64(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = torch.randn(20, 3, 8), torch.randint(3, (20, 3))
    expected, before = [], None
    with watch(model, optimizer, every=4, to=tmp_path / "run.sp") as run:
        for step in range(9):
            optimizer.zero_grad()
            F.cross_entropy(model(x[step]), y[step]).backward()
            weights = [p.detach().double().clone() for p in model.parameters()]
            gradients = [p.grad.double().clone() for p in model.parameters()]
            optimizer.step()
            change = [
                p.detach().double() - w for p, w in zip(model.parameters(), weights, strict=True)
            ]
            if step % 4 == 0:
                expected.append(twin(weights, gradients, change, before))
            before = gradients
    assert run.failed is None
    with Run(run.path) as written:
        assert written.steps.tolist() == [0, 4, 8]
        places = [[s.name for s in written.sites].index(name) for name in ("0", "2")]
        for row, want in enumerate(expected):
            for statistic, value in want.items():
                got = written.values(statistic).mean[row, places]
                assert got == pytest.approx(value, rel=2e-5, nan_ok=True), (row, statistic)
        whole = dict(zip(*written.scalars()["gradient_norm"], strict=True))
        for row, step in enumerate((0, 4, 8)):
            norms = expected[row]["gradient_norm"]
            assert whole[step] == pytest.approx(math.hypot(*norms), rel=1e-5)


def twin(weights, gradients, change, before):
    """Both layers, weight and bias together, in float64."""

    def norm(parts):
        return [math.sqrt(sum(float(p.square().sum()) for p in parts[k : k + 2])) for k in (0, 2)]

    def dots(a, b):
        return [sum(float((a[i] * b[i]).sum()) for i in (k, k + 1)) for k in (0, 2)]

    decrease = [-d for d in dots(gradients, change)]
    found = {
        "weight_norm": norm(weights),
        "gradient_norm": norm(gradients),
        "update_norm": norm(change),
        "update_ratio": [c / w for c, w in zip(norm(change), norm(weights), strict=True)],
        "learning_share": [d / sum(decrease) for d in decrease],
    }
    if before is None:
        found["gradient_snr"] = [math.nan] * 2
    else:
        apart = [a - b for a, b in zip(gradients, before, strict=True)]
        noise = [v * v / 2 for v in norm(apart)]
        found["gradient_snr"] = [s / n for s, n in zip(dots(gradients, before), noise, strict=True)]
    return found


def last(path, statistic, site):
    with Run(path) as run:
        names = [s.name for s in run.sites]
        return float(run.values(statistic, site).mean[-1, 0]) if site in names else math.nan


def test_accumulation_is_one_large_batch(tmp_path):
    train("accumulated", True, tmp_path / "parts.sp", steps=3, every=1)
    train("plain", True, tmp_path / "whole.sp", steps=3, every=1)
    for statistic in ("activation_rms", "delta_rms", "gradient_norm", "update_ratio"):
        parts = last(tmp_path / "parts.sp", statistic, "b")
        assert parts == pytest.approx(last(tmp_path / "whole.sp", statistic, "b"), rel=1e-3)
    with Run(tmp_path / "parts.sp") as a, Run(tmp_path / "whole.sp") as b:
        assert np.allclose(a.values("dead", "relu").mean, b.values("dead", "relu").mean, atol=1e-6)


def test_clipping_is_told_and_taken_out_of_the_whole_norm(tmp_path):
    train("clipped", True, tmp_path / "clipped.sp", steps=1)
    train("plain", True, tmp_path / "plain.sp", steps=1)
    with Run(tmp_path / "clipped.sp") as clipped, Run(tmp_path / "plain.sp") as plain:
        factor = clipped.scalars()["clipped"][1][0]
        norm = plain.scalars()["gradient_norm"][1][0]
        assert clipped.scalars()["gradient_norm"][1][0] == pytest.approx(norm, rel=1e-4)
        assert factor == pytest.approx(0.1 / norm, rel=1e-4)
        own = clipped.values("gradient_norm").mean[0]
        assert math.sqrt(np.nansum(own**2)) == pytest.approx(0.1, rel=1e-4)


def test_loss_scaling_is_taken_out(tmp_path):
    train("scaler", True, tmp_path / "scaled.sp", steps=7)
    train("autocast", True, tmp_path / "plain.sp", steps=7)
    with Run(tmp_path / "scaled.sp") as scaled, Run(tmp_path / "plain.sp") as plain:
        for statistic in ("delta_rms", "gradient_norm"):
            a, b = scaled.values(statistic).mean[0], plain.values(statistic).mean[0]
            assert np.allclose(a, b, rtol=0.05, equal_nan=True)
        assert scaled.scalars()["skipped"][1][-1] == 1
        assert scaled.scalars()["loss_scale"][1][0] == 2.0**10


def test_tiny_and_huge_numbers_are_what_they_are(tmp_path):
    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.inner, self.factor = nn.Linear(4, 4), factor

        def forward(self, x):
            return self.inner(x) * self.factor

    for factor in (1e-24, 1e12):
        model = nn.Sequential(nn.Linear(4, 4), Scaled(factor))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with watch(model, optimizer, every=1, to=tmp_path / f"{factor}.sp"):
            model(torch.ones(8, 4)).sum().backward()
            optimizer.step()
        back = model[1].inner.weight.detach().double().sum(0)
        path, delta = tmp_path / f"{factor}.sp", factor * float(back.square().mean().sqrt())
        assert last(path, "delta_rms", "0") == pytest.approx(delta, rel=1e-4)
        gradients = torch.cat([p.grad.double().flatten() for p in model[0].parameters()])
        norm = float(torch.linalg.vector_norm(gradients))
        assert last(path, "gradient_norm", "0") == pytest.approx(norm, rel=1e-4)


def test_what_is_no_number_is_not_dead(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, optimizer, every=1, to=tmp_path / "run.sp", on=None):
        for factor in (1.0, math.nan):
            model(factor * torch.ones(8, 4)).sum().backward()
            optimizer.step()
    with Run(tmp_path / "run.sp") as run:
        rms, dead = (run.values(s, "1") for s in ("activation_rms", "dead"))
        assert np.isfinite(rms.mean[0, 0])
        assert 0 <= dead.mean[0, 0] <= 1
        assert np.isinf(rms.high[1, 0])
        assert np.isnan(dead.mean[1, 0])


def test_a_loop_over_a_cell_is_one_site_and_a_few_calls_are_several(tmp_path):
    class Loop(nn.Module):
        def __init__(self, steps):
            super().__init__()
            self.cell, self.steps = nn.Linear(4, 4), steps

        def forward(self, x):
            for _ in range(self.steps):
                x = torch.tanh(self.cell(x))
            return x

    for steps, names in ((3, {"cell", "cell#2", "cell#3"}), (100, {"cell"})):
        model = Loop(steps)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        path = tmp_path / f"{steps}.sp"
        with watch(model, optimizer, every=1, to=path):
            for _ in range(2):
                model(torch.randn(8, 4)).sum().backward()
                optimizer.step()
        with Run(path) as run:
            assert {s.name for s in run.sites if s.name.startswith("cell")} == names


def test_logged_numbers_belong_to_their_step(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for when in ("before", "after"):
        with watch(model, optimizer, every=2, to=tmp_path / f"{when}.sp") as run:
            for step in range(5):
                loss = model(torch.ones(1, 2)).sum() * 0 + step
                loss.backward()
                if when == "before":
                    run.log(loss=loss, accuracy=step / 10)
                optimizer.step()
                if when == "after":
                    run.log(loss=loss, accuracy=step / 10)
        with Run(tmp_path / f"{when}.sp") as written:
            steps, values = written.scalars()["loss"]
            assert steps.tolist() == list(range(5)) == values.tolist()
            assert written.scalars()["accuracy"][1].tolist() == [0, 0.1, 0.2, 0.3, 0.4]


def test_methods_of_a_model_are_passes_too(tmp_path):
    class Coder(nn.Module):
        def __init__(self):
            super().__init__()
            self.inward = nn.Sequential(nn.Linear(8, 4), nn.Tanh())
            self.outward = nn.Linear(4, 8)

        def encode(self, x):
            return self.inward(x)

        def decode(self, z):
            return self.outward(z)

        def forward(self, x):
            return self.decode(self.encode(x))

    rows = {}
    for how in ("forward", "methods"):
        torch.manual_seed(0)
        model = Coder()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        path = tmp_path / f"{how}.sp"
        with watch(model, optimizer, every=1, to=path) as run:
            for _ in range(3):
                x = torch.randn(16, 8)
                y = model(x) if how == "forward" else model.decode(model.encode(x))
                optimizer.zero_grad()
                (y - x).square().mean().backward()
                optimizer.step()
        assert run.failed is None
        with Run(path) as written:
            names = [site.name for site in written.sites]
            assert names == ["inward.0", "inward.1", "outward"]
            rows[how] = written.values("delta_rms").mean
    assert np.array_equal(rows["forward"], rows["methods"])


def test_a_fused_optimizer_that_unscales_and_skips_by_itself(tmp_path):
    norms = {}
    for scale in (None, 1024.0):
        torch.manual_seed(0)
        model = nn.Linear(8, 4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        path = tmp_path / f"{scale}.sp"
        with watch(model, optimizer, every=1, to=path, scaler=scaler, on=None) as run:
            for step in range(4):
                loss = model(torch.ones(4, 8)).square().mean()
                optimizer.zero_grad()
                if scaler is None:
                    loss.backward()
                    optimizer.step()
                else:
                    scaler.scale(loss * (1e38 if step == 2 else 1)).backward()
                    scaler.step(optimizer)
                    scaler.update()
        assert run.failed is None
        with Run(path) as written:
            norms[scale] = written.values("gradient_norm").mean[:2]
            if scale is not None:
                assert written.scalars()["skipped"][1].tolist() == [0, 0, 1, 1]
    assert np.allclose(norms[None], norms[1024.0], rtol=1e-5)


@pytest.mark.parametrize("shape", [(64, 9), (6, 9, 40), (6, 9, 5, 5)], ids=str)
@pytest.mark.parametrize(
    "activation",
    [nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Softsign, nn.ReLU, nn.ReLU6],
)
def test_units_that_are_lost(activation, shape, tmp_path):
    """Dead and saturated shares of units are those of a trace, whatever the activation."""
    torch.manual_seed(0)
    kind = {2: nn.Identity, 3: nn.Conv1d, 4: nn.Conv2d}[len(shape)]
    first = nn.Linear(9, 9) if kind is nn.Identity else kind(9, 9, 1)
    with torch.no_grad():  # from units that are never lost to such that always are
        first.weight.mul_(torch.logspace(-1, 2, 9).view(-1, *[1] * (first.weight.ndim - 1)))
        first.bias.copy_(torch.linspace(-30, 30, 9))
    model = nn.Sequential(first, activation())
    x = torch.randn(shape)
    trace = sp.trace(model, x, lambda y: y.square().mean())
    site = trace.sites["1"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, optimizer, every=1, to=tmp_path / "run.sp"):
        model(x).square().mean().backward()
        optimizer.step()
    name = "dead" if activation in (nn.ReLU, nn.ReLU6) else "saturated"
    with Run(tmp_path / "run.sp") as run:
        found = run.values(name).mean[0][[s.name for s in run.sites].index("1")]
    assert found == pytest.approx(getattr(site.activation, name))
    assert 0 < found < 1


def test_a_weight_that_changes_its_size_between_samples(tmp_path):
    """A glance reads no further than the gradient goes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with watch(model, optimizer, every=4, to=tmp_path / "run.sp") as run:
        for step in range(9):
            if step == 2:
                model[0].weight.data = torch.randn(64, 3)
            optimizer.zero_grad(set_to_none=True)
            x = torch.randn(8, model[0].weight.shape[1])
            model(x).square().mean().backward()
            optimizer.step()
        assert run.failed is None
    with Run(tmp_path / "run.sp") as written:
        assert written.steps.tolist() == [0, 4, 8]
        assert np.isfinite(written.values("gradient_norm").mean).all()
