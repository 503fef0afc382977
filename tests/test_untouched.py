"""Looking at a model changes nothing: not the model, the batch, the optimizer, nor the process."""

from __future__ import annotations

import contextlib
import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from tests.cases import CASES, by_name, plain_loss
from tests.cases.base import first_batch
from tests.references.state import Snapshot
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.utils._pytree import tree_map

import signalprop as sp

# What a plain pass of these cases warns of as well; what the tool alone causes is an error.
EXPECTED = ("Using a target size",)
NAMED = {"ids": lambda case: case.name}
SEVERAL = ("mlp-relu-he-10", "resnet-a", "dropout-mlp", "in-place", "checkpoint-reentrant", "gpt2")


def trace(model, batch, loss, optimizer):
    return sp.trace(model, batch, loss)


def diagnose(model, batch, loss, optimizer):
    return sp.diagnose(model, batch, loss, optimizer)


BOTH = pytest.mark.parametrize("look", [trace, diagnose], ids=lambda look: look.__name__)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        for text in EXPECTED:
            warnings.filterwarnings("ignore", text, UserWarning)
        yield


def lived_in(case, *, stateful: bool = True):
    """A case in the middle of training: gradients on some parameters, an optimizer with state."""
    model, batch, loss = case.build()
    optimizer = case.optimizer(model) if case.optimizer else None
    real = [
        p
        for p in model.parameters()
        if not isinstance(p, UninitializedParameter) and p.device.type != "meta"
    ]
    generator = torch.Generator().manual_seed(3)
    for p in real if stateful else ():
        p.grad = (1e-4 * torch.randn(p.shape, generator=generator)).to(p.dtype)
    if optimizer is not None and stateful:
        optimizer.step()
    for p in real[1::2]:
        p.grad = None
    return model, batch, loss, optimizer


def look_at(look, parts, case):
    refused = case.error is not None or case.name == "labels-from-one"
    with contextlib.suppress(*[sp.SignalpropError] * refused):
        return look(*parts)


@BOTH
@pytest.mark.parametrize("case", CASES, **NAMED)
def test_nothing_changes(case, look):
    parts = model, batch, _, optimizer = lived_in(case)
    before = Snapshot(model, batch, optimizer)
    look_at(look, parts, case)
    assert before.changed() == []


def steps(case, look=None):
    """Two training steps, with or without a look before each; losses and final weights."""
    model, batch, loss = case.build()
    optimizer = case.optimizer(model)
    torch.manual_seed(5)
    losses = []
    for _ in range(2):
        if look:
            for each in (trace, diagnose):
                look_at(each, (model, batch, loss, optimizer), case)
        optimizer.zero_grad()
        value = plain_loss(model, batch, loss)
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    return torch.stack(losses), model.state_dict()


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.optimizer and not c.error and c.name != "labels-from-one"],
    **NAMED,
)
def test_training_goes_on_as_if_nobody_had_looked(case):
    plain, weights = steps(case)
    seen, seen_weights = steps(case, look=True)
    assert torch.equal(plain, seen) or (plain.isnan() == seen.isnan()).all()
    assert weights.keys() == seen_weights.keys()
    for name, value in weights.items():
        assert torch.equal(value.nan_to_num(), seen_weights[name].nan_to_num()), name


# ---- the modes the user is in ------------------------------------------------------------------

MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no_grad in autocast": lambda: _both(
        torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad()
    ),
    "detect_anomaly": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
}


@contextlib.contextmanager
def _both(first, second):
    with first, second:
        yield


@BOTH
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SEVERAL)
def test_nothing_changes_in_a_mode(name, mode, look):
    parts = model, batch, _, optimizer = lived_in(by_name(name))
    with MODES[mode](), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Anomaly Detection has been enabled", UserWarning)
        before = Snapshot(model, batch, optimizer)
        look(*parts)
        assert before.changed() == []


@BOTH
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
@pytest.mark.parametrize("name", SEVERAL)
def test_the_numbers_do_not_depend_on_the_mode(name, mode, look):
    torch.manual_seed(4)
    outside = look(*lived_in(by_name(name)))
    torch.manual_seed(4)
    parts = lived_in(by_name(name))
    with MODES[mode]():
        inside = look(*parts)
    assert inside.to_dict() == outside.to_dict()


def test_float64_as_the_default_dtype():
    parts = model, batch, _, optimizer = lived_in(by_name("mlp-relu-he-10"))
    torch.set_default_dtype(torch.float64)
    try:
        before = Snapshot(model, batch, optimizer)
        diagnose(*parts)
        assert before.changed() == []
    finally:
        torch.set_default_dtype(torch.float32)


def test_weights_tried_out_in_autocast_are_not_the_cached_ones():
    """Autocast keeps its bf16 copies of the weights until the user's `with` ends."""
    case = by_name("mlp-relu-he-10")
    model, batch, loss = case.build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sp.diagnose(model, batch, loss, torch.optim.SGD(model.parameters(), lr=0.05))
    after = inside.learning.after
    assert after[0] > after[1] > after[-1]


def test_a_step_in_autocast_after_a_look_has_the_same_gradients():
    gradients = []
    for look in (False, True):
        model, batch, loss = by_name("mlp-relu-he-10").build()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if look:
                sp.diagnose(model, batch, loss, torch.optim.SGD(model.parameters(), lr=0.05))
            value = plain_loss(model, batch, loss)
        value.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@BOTH
@pytest.mark.parametrize(
    "name", [*SEVERAL, "resnet-b", "batchnorm-mlp", "spectral-norm", "weight-norm", "rnn", "llama"]
)
def test_a_loss_that_waits_for_its_backward_pass_can_still_go_back(name, look):
    """Looking between the user's forward and backward pass leaves the saved tensors valid."""
    gradients = []
    for looks in (False, True):
        model, batch, loss = by_name(name).build()
        torch.manual_seed(6)
        value = plain_loss(model, batch, loss)
        if looks:
            look(model, batch, loss, by_name(name).optimizer(model))
        value.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, seen in zip(*gradients, strict=True):
        assert (plain is None and seen is None) or torch.equal(plain, seen)


# ---- batches that belong to somebody -----------------------------------------------------------


@BOTH
def test_a_batch_that_requires_a_gradient_keeps_its_own(look):
    model, (x, y), loss = by_name("mlp-relu-he-10").build()
    x = x.clone().requires_grad_()
    x.grad = torch.ones_like(x)
    part = (2 * x).tanh()  # not a leaf: it belongs to a graph of the user's
    for batch in ((x, y), (part, y)):
        before = Snapshot(model, batch)
        look(model, batch, loss, None)
        assert before.changed() == []
    part.sum().backward()


@BOTH
def test_hooks_of_the_user_stay(look):
    model, batch, loss = by_name("mlp-two-layer-default").build()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    model[2].register_full_backward_hook(lambda *_: calls.append("backward"))
    model[2].register_full_backward_pre_hook(lambda *_: calls.append("before backward"))
    model.register_state_dict_post_hook(lambda *_: calls.append("state"))
    model[0].weight.register_hook(lambda g: calls.append("gradient"))
    model[0].weight.register_post_accumulate_grad_hook(lambda p: calls.append("accumulated"))
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        before = Snapshot(model, batch)
        look(model, batch, loss, None)
        assert before.changed() == []
    finally:
        everywhere.remove()
    assert "accumulated" not in calls
    assert "state" not in calls


# ---- interrupted -------------------------------------------------------------------------------


class Interrupted(nn.Module):
    """Stopped by the user in the n-th forward pass, or in the backward pass of it."""

    def __init__(self, where: str, on: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Dropout(0.1)
        )
        self.head = nn.Linear(16, 3)
        self.where, self.left = where, [on]
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        x = self.body(x)
        # kept outside the sandbox on purpose: the user's fingers do not go back in time
        COUNT[0] -= 1
        if COUNT[0] == 0 and self.where == "forward":
            raise KeyboardInterrupt
        if COUNT[0] == 0 and self.where == "backward" and x.requires_grad:
            x.register_hook(stop)
        return self.head(x)


COUNT = [0]


def stop(*_):
    raise KeyboardInterrupt


def stopping_loss(output, target):
    if COUNT[0] == 0:
        raise KeyboardInterrupt
    return F.cross_entropy(output, target)


@BOTH
@pytest.mark.parametrize("on", [1, 2, 4, 7])
@pytest.mark.parametrize("where", ["forward", "loss", "backward"])
def test_nothing_changes_when_the_user_interrupts(where, on, look):
    if look is trace and on > 1:
        pytest.skip("a trace runs the model once")
    model = Interrupted(where, on)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    optimizer.step()
    batch = torch.randn(16, 8), torch.randint(3, (16,))
    COUNT[0] = on
    before = Snapshot(model, batch, optimizer)
    with pytest.raises(KeyboardInterrupt):
        look(model, batch, stopping_loss if where == "loss" else F.cross_entropy, optimizer)
    assert before.changed() == []


@BOTH
@pytest.mark.parametrize("where", ["checkpoint", "checkpoint-reentrant"])
def test_nothing_changes_when_a_recomputation_is_interrupted(where, look):
    model, batch, loss, optimizer = lived_in(by_name(where))
    seen = [0]

    def third(*_):
        seen[0] += 1
        if seen[0] == 4:  # three blocks forward, the first again in the backward pass
            raise KeyboardInterrupt

    for block in model.blocks:
        block.register_forward_pre_hook(third)
    before = Snapshot(model, batch, optimizer)
    with pytest.raises(KeyboardInterrupt):
        look(model, batch, loss, optimizer)
    assert before.changed() == []


# ---- the snapshot itself -----------------------------------------------------------------------


def _flip_flag(model, batch, optimizer):
    model[0].training = False


def _nudge_weight(model, batch, optimizer):
    model[0].weight.data[0, 0] += 1e-7


def _sign_of_zero(model, batch, optimizer):
    model[1].running_mean[0] = -0.0


def _new_grad(model, batch, optimizer):
    model[0].bias.grad = torch.zeros_like(model[0].bias)


def _leave_hook(model, batch, optimizer):
    model[0].register_forward_hook(stop)


def _draw(model, batch, optimizer):
    torch.rand(1)


def _change_batch(model, batch, optimizer):
    batch[0][0, 0] = 3.0


def _step_count(model, batch, optimizer):
    next(iter(optimizer.state.values()))["step"] += 1


@pytest.mark.parametrize(
    "change",
    [
        _flip_flag,
        _nudge_weight,
        _sign_of_zero,
        _new_grad,
        _leave_hook,
        _draw,
        _change_batch,
        _step_count,
    ],
)
def test_the_snapshot_sees(change):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    batch = torch.randn(5, 4), torch.randint(4, (5,))
    optimizer = torch.optim.Adam(model.parameters())
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()
    optimizer.zero_grad()
    model[1].running_mean[0] = 0.0
    same = Snapshot(model, batch, optimizer)
    copy.deepcopy(tree_map(lambda x: x, first_batch(batch)))
    assert same.changed() == []
    change(model, batch, optimizer)
    assert len(same.changed()) >= 1
