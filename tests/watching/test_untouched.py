"""A training that is watched is bit for bit the training that is not."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.cases import by_name, cases, plain_loss
from tests.watching.loops import BATCH, KINDS, Net, make, one, train
from torch import nn
from torch.nn.modules import module as hooks
from torch.overrides import _get_current_function_mode_stack

from signalprop.watching.file.reader import Run
from signalprop.watching.watch import watch


def nothing_left(*models_and_optimizers):
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks
    assert not hooks._global_forward_hooks_always_called
    assert not _get_current_function_mode_stack()
    for one_ in models_and_optimizers:
        if isinstance(one_, torch.optim.Optimizer):
            assert not one_._optimizer_step_pre_hooks
            assert not one_._optimizer_step_post_hooks
            continue
        for m in one_.modules():
            assert not m._forward_hooks
            assert not m._forward_pre_hooks
        for p in one_.parameters():
            assert not p._post_accumulate_grad_hooks
            assert not p._backward_hooks


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_loop(kind, tmp_path):
    losses, weights, state, _ = train(kind, False)
    seen, same, after, run = train(kind, True, tmp_path / "run.sp")
    assert seen == losses
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))
    assert torch.equal(state, after)
    assert run.failed is None
    nothing_left()
    with Run(tmp_path / "run.sp") as written:
        assert len(written.steps) >= 3
        last = {s: written.values(s).mean[-1] for s in written.statistics}
        names = [site.name for site in written.sites]
        for site in ("a", "b", "c"):
            place = names.index(site)
            for statistic in ("activation_rms", "delta_rms", "weight_norm", "update_ratio"):
                assert 0 < last[statistic][place] < 1e3, (site, statistic)
        assert np.nansum(last["learning_share"]) == pytest.approx(1, abs=1e-5)


TRAINED = [case.name for case in cases("healthy")]


@pytest.mark.parametrize("name", TRAINED)
def test_every_healthy_network(name):
    def trained(watched):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        case = by_name(name)
        model, batch, loss = case.build()
        optimizer = case.optimizer(model)
        run = watch(model, optimizer, every=1, to=None) if watched else None
        losses = []
        for _ in range(2):
            value = plain_loss(model, batch, loss)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())
        if run is not None:
            run.close()
            assert run.failed is None
            nothing_left(model, optimizer)
        state = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
        return losses, model.state_dict(), state

    plain, watched = trained(False), trained(True)
    assert plain[0] == watched[0]
    for key, value in plain[1].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, watched[1][key]) or value.isnan().any()
    assert torch.equal(plain[2][0], watched[2][0])
    assert plain[2][1:] == watched[2][1:]


def test_hooks_are_there_for_a_sampled_step_only():
    loop = make("plain")
    run = watch(loop.model, loop.optimizers[0], every=3, to=None)
    seen = []
    for step in range(7):
        seen.append(bool(hooks._global_forward_pre_hooks))
        one("plain", loop, step)
    run.close()
    assert seen == [True, False, False, True, False, False, True]
    nothing_left(loop.model, loop.optimizers[0])


def test_copies_made_meanwhile_carry_nothing(tmp_path):
    loop = make("plain")
    with watch(loop.model, loop.optimizers[0], every=1, to=tmp_path / "run.sp"):
        one("plain", loop, 0)
        model, optimizer = copy.deepcopy((loop.model, loop.optimizers[0]))
        again = pickle.loads(pickle.dumps((loop.model, loop.optimizers[0])))
        for part in (model, optimizer, *again):
            hooked = [v for k, v in vars(part).items() if "hook" in k and v]
            assert not hooked


def test_an_exception_in_the_loop_passes_through_and_nothing_is_left(tmp_path):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.count = nn.Linear(4, 4), 0

        def forward(self, x):
            self.count += 1
            if self.count == 3:
                raise ZeroDivisionError("the user's own")
            return self.inner(x)

    model = nn.Sequential(nn.Linear(4, 4), Breaks())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run = watch(model, optimizer, every=1, to=tmp_path / "run.sp")

    def loop():
        with run:
            for _ in range(5):
                model(torch.randn(2, 4)).sum().backward()
                optimizer.step()

    with pytest.raises(ZeroDivisionError, match="the user's own"):
        loop()
    assert run.failed is None
    nothing_left(model, optimizer)
    with Run(tmp_path / "run.sp") as written:
        assert written.steps.tolist() == [0, 1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_the_middle_of_a_forward(error, tmp_path):
    class Interrupted(nn.Module):
        armed = True

        def forward(self, x):
            if self.armed:
                raise error
            return x

    part = Interrupted()
    model = nn.Sequential(nn.Linear(4, 4), part, nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run = watch(model, optimizer, every=1, to=None)
    with pytest.raises(error):
        model(torch.randn(2, 4))
    # a notebook goes on with the same watch
    part.armed = False
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    assert run.failed is None
    part.armed = True
    with pytest.raises(error):
        model(torch.randn(2, 4))
    run.close()
    nothing_left(model, optimizer)


def test_two_watches_on_one_model_and_one_on_its_part(tmp_path):
    def trained(watched):
        loop = make("plain")
        runs = []
        if watched:
            for k, model in enumerate((loop.model, loop.model, loop.model.b)):
                path = tmp_path / f"run{k}.sp"
                runs.append(watch(model, loop.optimizers[0], every=k + 1, to=path))
        losses = [one("plain", loop, step) for step in range(6)]
        for run in runs:
            run.close()
            assert run.failed is None
        return losses, runs

    assert trained(False)[0] == trained(True)[0]
    nothing_left()
    with Run(tmp_path / "run0.sp") as first, Run(tmp_path / "run1.sp") as second:
        for statistic in ("activation_rms", "delta_rms", "update_ratio"):
            a = first.values(statistic).mean[[0, 2, 4]]
            assert np.array_equal(a, second.values(statistic).mean, equal_nan=True)
        with Run(tmp_path / "run2.sp") as part:
            assert [s.name for s in part.sites] == ["linear"] or len(part.sites) == 1


def test_a_watch_within_a_trace_and_a_trace_within_a_watch(tmp_path):
    import signalprop as sp

    loop = make("plain")
    with watch(loop.model, loop.optimizers[0], every=1, to=tmp_path / "run.sp") as run:
        losses = []
        for step in range(4):
            losses.append(one("plain", loop, step))
            sp.diagnose(loop.model, (loop.x, loop.y), F.cross_entropy, loop.optimizers[0])
    assert run.failed is None
    assert losses == train("plain", False, steps=4)[0]
    with Run(tmp_path / "run.sp") as written:
        assert written.steps.tolist() == [0, 1, 2, 3]


def test_several_models_a_gan(tmp_path):
    def trained(watched):
        torch.manual_seed(0)
        make_, tell = Net(dropout=0.0), Net(dropout=0.0)
        one_, two = (torch.optim.Adam(m.parameters(), 1e-3) for m in (tell, make_))
        noise, real = torch.randn(BATCH, 16), torch.randn(BATCH, 16)
        run = None
        if watched:
            run = watch(
                {"generator": make_, "discriminator": tell},
                [one_, two],
                every=2,
                to=tmp_path / "gan.sp",
            )
        losses = []
        for _ in range(5):
            fake = torch.cat([make_(noise)] * 4, 1)
            loss = F.softplus(tell(fake.detach())).mean() + F.softplus(-tell(real)).mean()
            one_.zero_grad()
            loss.backward()
            one_.step()
            other = F.softplus(-tell(fake)).mean()
            two.zero_grad()
            other.backward()
            two.step()
            losses.append((loss.item(), other.item()))
        if run is not None:
            run.close()
            assert run.failed is None
        return losses

    assert trained(False) == trained(True)
    with Run(tmp_path / "gan.sp") as written:
        assert {site.model for site in written.sites} == {"generator", "discriminator"}
        names = [site.name for site in written.sites]
        assert {"generator.a", "discriminator.a"} <= set(names)
        share = written.values("learning_share").mean[-1]
        for model in ("generator", "discriminator"):
            own = [s for n, s in zip(names, share, strict=True) if n.startswith(model)]
            assert np.nansum(own) == pytest.approx(1, abs=1e-5)


class Transformed(nn.Module):
    """Calls its own parts within torch's transforms of functions, whose tensors have no values."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = torch.vmap(lambda row: F.relu(self.a(row)))(x)
        slopes = torch.func.jacrev(lambda z: self.b(torch.tanh(z)))(h[0])
        return self.b(h) + slopes.sum()


def test_transforms_of_functions_within_the_forward(tmp_path):
    found = []
    for watched in (False, True):
        torch.manual_seed(0)
        model, x = Transformed(), torch.randn(6, 4)
        optimizer = torch.optim.Adam(model.parameters())

        def loop(model=model, optimizer=optimizer, x=x):
            for _ in range(3):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()

        if watched:
            with watch(model, optimizer, every=1, to=tmp_path / "run.sp") as run:
                loop()
            assert run.failed is None
        else:
            loop()
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with Run(tmp_path / "run.sp") as run:
        names = [site.name for site in run.sites]
        assert np.isfinite(run.values("delta_rms").mean[:, names.index("b")]).all()


@pytest.mark.parametrize(
    "what",
    ["attention.seen", "tally.Tally.see", "tally.Tally.add_delta", "light.LightRecorder.end"],
)
def test_an_error_of_ours_does_not_reach_the_model(what, monkeypatch, caplog):
    def fail(*args):
        raise RuntimeError("it is broken")

    monkeypatch.setattr(f"signalprop.watching.passes.{what}", fail)

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return F.scaled_dot_product_attention(F.relu(x @ self.q), x, x)

    model, x = Attending(), torch.randn(2, 5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, every=1, to=None) as run:
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert "it is broken" in run.failed
    assert "training goes on" in caplog.text
    nothing_left(model, optimizer)
