"""Jacobians between the sites of real networks, against torch.func and against refusal."""

import copy
import warnings
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from tests.cases import by_name, cases
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from signalprop.capture.batch import first_of
from signalprop.errors import SignalpropError
from signalprop.jacobian.between import between

#: no Jacobian per sample, and why
REFUSED = {
    "graph-net": "samples=None",
    "embedding-bag": "samples=None",
    "complex-weights": "complex",
    "checkpoint-reentrant": "use_reentrant",
}
HEALTHY = [c for c in cases("healthy") if c.name not in REFUSED]


def formed(J):
    """The matrices, row by row through `adjoint` and, of small ones, also by `apply`."""
    eye = lambda n: torch.eye(n, dtype=J.dtype).expand(J.batch, n, n)  # noqa: E731
    down = J.adjoint(eye(J.rows)).mT
    return down, J.apply(eye(J.columns)) if J.columns <= 400 else down


def wide(model):
    return copy.deepcopy(model).double().eval()


def twin(model, x):
    """d output / d input of every sample, whole batch at once, by torch.func."""
    with sdpa_kernel(SDPBackend.MATH):
        whole = torch.func.jacrev(lambda x: model(x))(x)
    m, n = whole.shape[1 : whole.ndim - x.ndim], x.shape[1:]
    rows = [whole[i].select(len(m), i).reshape(m.numel(), n.numel()) for i in range(len(x))]
    return torch.stack(rows)


def simple(case):
    model, batch, _ = case.build()
    data = first_of(batch)
    if not (isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], torch.Tensor)):
        return None
    x = data[0]
    if not x.is_floating_point() or x.shape[0] != data[1].shape[0] or "compiled" in case.name:
        return None
    return model, x


TWINNED = [c for c in HEALTHY if simple(c) is not None]


@pytest.mark.parametrize("case", TWINNED, ids=lambda c: c.name)
def test_agrees_with_jacrev(case):
    model, x = simple(case)
    model, x = wide(model), x[:2].double()
    try:
        expected = twin(copy.deepcopy(model), x)
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        pytest.skip(f"torch.func cannot: {str(error)[:60]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with between(model, x, samples=None) as live:
            found = formed(live.jacobian(live.trace.spine[-1], "input"))
    if found[0].shape != expected.shape:
        pytest.skip("the spine ends below the output")
    for J in found:
        s = torch.linalg.svdvals(J)
        torch.testing.assert_close(J, expected, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(s, torch.linalg.svdvals(expected), rtol=1e-8, atol=1e-8)


def test_most_cases_have_a_twin():
    assert len(TWINNED) >= 40


@pytest.mark.parametrize("case", HEALTHY, ids=lambda c: c.name)
def test_apply_and_adjoint_are_each_others_transpose(case):
    model, batch, loss = case.build()
    generator = torch.Generator().manual_seed(0)
    with between(model, batch, loss, samples=3) as live:
        spine = live.trace.spine
        for wrt, of in [(spine[0], spine[-1]), *pairwise(spine[:5])]:
            J = live.jacobian(of, wrt)
            u = torch.randn(J.batch, J.rows, 2, generator=generator)
            v = torch.randn(J.batch, J.columns, 2, generator=generator)
            up, down = J.apply(v).double(), J.adjoint(u).double()
            size = float(up.norm() * u.norm())
            room = 1e-2 if J.dtype is torch.bfloat16 or "bf16" in case.name else 1e-5
            assert float(((up * u).sum(1) - (down * v).sum(1)).abs().max()) <= room * size + 1e-30


@pytest.mark.parametrize("name", REFUSED)
def test_no_jacobian_per_sample(name):
    model, batch, loss = by_name(name).build()

    def ask():
        with between(model, batch, loss, samples=3) as live:
            J = live.jacobian(live.trace.spine[-1], live.trace.spine[0])
            J.adjoint(torch.ones(J.batch, J.rows, 2))

    with pytest.raises(SignalpropError, match=REFUSED[name]):
        ask()


@pytest.mark.parametrize("name", ["resnet-20", "gpt2", "dropout-mlp", "in-place", "lstm"])
def test_the_model_is_left_alone(name):
    model, batch, loss = by_name(name).build()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    random = torch.get_rng_state()
    with between(model, batch, loss, samples=2) as live:
        live.jacobian(live.trace.spine[-1], live.trace.spine[0])
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


# ---- BatchNorm -----------------------------------------------------------------------------------


def test_batch_norm_is_frozen_at_the_statistics_of_the_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)).double()
    x = 3 * torch.randn(64, 6).double() + 1
    z = model[0](x)
    slope = 1 / (z.var(0) + model[1].eps).sqrt()  # as running statistics are kept: unbiased
    expected = model[2].weight @ torch.diag(slope) @ model[0].weight
    with between(model, x) as live:
        J, _ = formed(live.jacobian("2", "input"))
        assert any("BatchNorm" in note for note in live.notes)
    torch.testing.assert_close(J, expected.expand_as(J), rtol=1e-9, atol=1e-12)
    with between(model, x, batch_norm="eval") as live:
        J, _ = formed(live.jacobian("2", "input"))
    slope = 1 / (torch.ones(6).double() + model[1].eps).sqrt()
    torch.testing.assert_close(
        J, (model[2].weight @ torch.diag(slope) @ model[0].weight).expand_as(J)
    )


def test_coupled_samples_are_refused():
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, track_running_stats=False))
    x = torch.randn(16, 6)
    with between(model, x) as live, pytest.raises(SignalpropError, match="look at each other"):
        live.jacobian("1", "0")


# ---- sites and paths -----------------------------------------------------------------------------


class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = (nn.Linear(4, 4) for _ in range(3))
        self.cut = nn.Linear(4, 4)

    def forward(self, x):
        x = self.stem(x)
        hidden = self.left(x)
        return F.relu(hidden) + self.right(x) + self.cut(x.detach())


def test_sites_and_paths_that_there_are_not():
    with between(Parallel(), torch.randn(8, 4)) as live:
        ask = live.jacobian
        with pytest.raises(SignalpropError, match="no site 'lefty'; did you mean 'left'"):
            ask("lefty", "stem")
        with pytest.raises(SignalpropError, match=r"no site 'x'; the \d+ sites begin with input"):
            ask("x", "stem")
        with pytest.raises(SignalpropError, match="stem comes before left; exchange"):
            ask("stem", "left")
        with pytest.raises(SignalpropError, match="no gradient runs from left back to right"):
            ask("left", "right")
        with pytest.raises(SignalpropError, match="no gradient runs from cut back to stem"):
            ask("cut", "stem")
        with pytest.raises(SignalpropError, match="both stem"):
            ask("stem", "stem")


def test_whole_numbers_have_no_gradient():
    model, batch, loss = by_name("gpt2").build()
    with between(model, batch, loss, samples=2) as live:
        inputs = [n for n in live.trace.sites if n.startswith("input")]
        assert not inputs
        with pytest.raises(SignalpropError, match="no site 'input'"):
            live.jacobian(live.trace.spine[-1], "input")


def test_a_site_changed_in_place_later_is_the_tensor_that_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)).double()
    x = torch.randn(4, 5).double()
    with between(net, x) as live:
        J, _ = formed(live.jacobian("2", "0"))
    mask = (net[0](x) > 0).double()
    torch.testing.assert_close(J, net[2].weight[None] * mask[:, None, :])


class Damaged(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.a(x)
        y = x.exp()
        z = self.b(y)
        y.data.add_(0)  # unseen by autograd
        with torch.no_grad():
            y.add_(1)  # what exp saved is gone
        return z


def test_in_place_damage_is_told():
    with (
        pytest.raises(SignalpropError, match=r"changed in place after it was used .* \[4, 4\]"),
        between(Damaged(), torch.randn(4, 4)),
    ):
        pass


def test_a_loss_that_fails_does_not_matter():
    model, batch, _ = by_name("mlp-relu-he-10").build()

    def fails(output, target):
        raise ValueError("labels out of range")

    with between(model, batch, fails) as live:
        assert live.jacobian(live.trace.spine[-1], "input").rows == 10


def test_words():
    with (
        pytest.raises(SignalpropError, match="'frozen' or 'eval'"),
        between(nn.Linear(2, 2), torch.randn(2, 2), batch_norm="no"),
    ):
        pass
