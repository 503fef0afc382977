"""`sp.spectrum` on networks: against dense matrices of the same pass, and against refusal."""

import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.cases import by_name
from torch import nn

import signalprop as sp
from signalprop.errors import SignalpropError
from signalprop.jacobian import spectrum as module
from signalprop.jacobian.between import between


def dense(model, batch, of=None, wrt=None, **options):
    """The matrices of a pass, row by row."""
    with between(model, batch, **options) as live:
        spine = live.trace.spine
        J = live.jacobian(of or spine[-1], wrt or spine[0])
        eye = torch.eye(J.rows, dtype=J.dtype).expand(J.batch, -1, -1)
        return J.adjoint(eye).mT.double()


def tanh_net(depth=6, width=20):
    torch.manual_seed(0)
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*layers).double(), torch.randn(32, width, dtype=torch.float64)


class Branch(nn.Module):
    def __init__(self, width, scale):
        super().__init__()
        self.linear, self.scale = nn.Linear(width, width), scale

    def forward(self, x):
        return x + self.scale * torch.tanh(self.linear(x))


def residual_net(depth=6, width=12, scale=0.2):
    torch.manual_seed(0)
    model = nn.Sequential(*[Branch(width, scale) for _ in range(depth)]).double()
    return model, torch.randn(32, width, dtype=torch.float64)


# ---- the numbers ---------------------------------------------------------------------------------


def test_end_to_end_is_the_svd_of_the_matrix():
    model, x = tanh_net()
    J = dense(model, x)
    s = torch.linalg.svdvals(J).numpy()
    found = sp.spectrum(model, x).between
    assert found.whole
    assert (found.of, found.wrt) == ("11", "input")
    np.testing.assert_allclose(found.values, s, rtol=1e-10)
    np.testing.assert_allclose(found.frobenius.value, J.norm(dim=(1, 2)).numpy(), rtol=1e-10)
    np.testing.assert_allclose(found.mean_square, (s**2).mean(1), rtol=1e-10)
    np.testing.assert_allclose(found.log_volume, torch.linalg.slogdet(J)[1].numpy(), rtol=1e-8)
    np.testing.assert_allclose(found.condition, s[:, 0] / s[:, -1], rtol=1e-8)
    gram = J.mT @ J
    scale = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    off = (gram / scale - torch.eye(20)).norm(dim=(1, 2)).numpy() / math.sqrt(20)
    np.testing.assert_allclose(found.distortion, off, rtol=1e-8)


def test_the_worst_angle_is_reached():
    model, x = tanh_net(2, 3)
    found = sp.spectrum(model, x, samples=1).between
    J = dense(model, x, samples=1)[0]
    _, _, Vh = torch.linalg.svd(J)
    a, b = J @ (Vh[0] + Vh[2]), J @ (Vh[0] - Vh[2])  # orthogonal before
    cosine = float(a @ b / a.norm() / b.norm())
    assert found.angle[0] == pytest.approx(math.degrees(math.asin(cosine)), rel=1e-8)


def test_blocks_multiply_to_the_whole():
    model, x = tanh_net()
    found = sp.spectrum(model, x)
    assert [b.end for b in found.blocks] == [str(i) for i in range(12)]
    for block in found.blocks:
        s = torch.linalg.svdvals(dense(model, x, block.end, block.start)).numpy()
        np.testing.assert_allclose(block.spectrum.values, s, rtol=1e-9)
    volume = sum(b.spectrum.log_volume for b in found.blocks)
    np.testing.assert_allclose(volume, found.between.log_volume, rtol=1e-8)
    assert found.deep.whole
    np.testing.assert_allclose(
        found.deep.log_values, np.log(found.between.values), atol=1e-6 + found.deep.errors.max()
    )
    profile = found.deep.profile
    assert profile.shape == (8, 13, 20)
    np.testing.assert_allclose(profile[:, 0], 0, atol=1e-12)
    np.testing.assert_allclose(profile[:, -1], found.deep.log_values, atol=0.2)
    values = sp.spectrum(model, x, profile=False).deep
    assert values.profile is None
    np.testing.assert_allclose(values.log_values, found.deep.log_values, atol=1e-6)


def test_the_sweeps_know_what_one_matrix_loses():
    model, x = tanh_net(40, 16)
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(0.5)
    found = sp.spectrum(model.float(), x.float(), samples=2)
    lost = found.between.values <= found.between.resolution[:, None]
    assert lost.any()
    exact = sp.spectrum(model.double(), x, samples=2).deep.log_values
    assert np.abs(found.deep.log_values - exact).max() < 0.23  # a tenth of a decade
    assert exact.min() < -60


def test_between_any_two_sites():
    model, x = tanh_net()
    found = sp.spectrum(model, x, of="7", wrt="2")
    assert [b.end for b in found.blocks] == ["3", "4", "5", "6", "7"]
    s = torch.linalg.svdvals(dense(model, x, "7", "2")).numpy()
    np.testing.assert_allclose(found.between.values, s, rtol=1e-9)


def test_the_largest_of_a_wide_map(monkeypatch):
    model, batch, _ = by_name("convnet").build()
    truth = sp.spectrum(model, batch, of="3", wrt="input", whole=True, blocks=False, samples=2)
    found = sp.spectrum(
        model, batch, of="3", wrt="input", whole=False, blocks=False, samples=2, k=4
    ).between
    assert not found.whole
    assert found.values.shape == (2, 4)
    gap = np.abs(found.values - truth.between.values[:, :4])
    assert (gap <= np.maximum(3 * found.errors, 1e-4 * found.values)).all()
    off = np.abs(found.frobenius.value / truth.between.frobenius.value - 1)
    assert (off < 0.05).all()
    assert found.log_volume is None
    assert found.condition is None


def test_the_smallest_need_the_matrix():
    model, x = tanh_net()
    found = sp.spectrum(model, x, whole=False, smallest=3, blocks=False).between
    s = torch.linalg.svdvals(dense(model, x)).numpy()
    np.testing.assert_allclose(found.smallest, s[:, ::-1][:, :3], rtol=1e-9)
    np.testing.assert_allclose(found.condition, s[:, 0] / s[:, -1], rtol=1e-4)


def test_a_distribution():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(100, 100), nn.Tanh()).double(), torch.randn(32, 100).double()
    found = sp.spectrum(model, x, whole=False, distribution=True, blocks=False).between
    s = torch.linalg.svdvals(dense(model, x)).numpy()
    for share in (0.5, 0.9):
        told = found.distribution.quantiles[:, list(found.distribution.shares).index(share)]
        np.testing.assert_allclose(told, np.quantile(s, share, axis=1), rtol=0.1)
    assert (found.distribution.zero == 0).all()


# ---- element by element --------------------------------------------------------------------------


def test_an_activation_is_its_slopes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 4))
    x = torch.randn(16, 100)
    found = {b.end: b.spectrum for b in sp.spectrum(model, x).blocks}["1"]
    assert found.method == "its diagonal"
    assert set(np.unique(found.values)) == {0.0, 1.0}
    assert (found.condition == np.inf).all()


def test_a_permutation_is_no_diagonal():
    class Roll(nn.Module):
        def forward(self, x):
            return x.roll(1, dims=1)

    model = nn.Sequential(nn.Linear(100, 100), Roll(), nn.Linear(100, 4))
    found = {b.end: b.spectrum for b in sp.spectrum(model, torch.randn(16, 100)).blocks}["1"]
    assert found.method != "its diagonal"
    np.testing.assert_allclose(found.values, 1, rtol=1e-5)


# ---- residual blocks -----------------------------------------------------------------------------


def test_branches_and_what_they_promise():
    model, x = residual_net()
    found = sp.spectrum(model, x)
    assert all(block.residual for block in found.blocks)
    for block in found.blocks:
        J = dense(model, x, block.end, block.start)
        s = torch.linalg.svdvals(J - torch.eye(12)).numpy()
        np.testing.assert_allclose(block.branch.values, s, rtol=1e-8, atol=1e-12)
        ours = block.spectrum.values
        assert (1 - s[:, ::-1] <= ours + 1e-9).all()  # Ky Fan, with the right index
        assert (ours <= 1 + s + 1e-9).all()
    promise, end = found.certificate, found.between
    assert promise.blocks == 6
    assert (promise.log_low <= np.log(end.values[:, -1])).all()
    assert (np.log(end.values[:, 0]) <= promise.log_high).all()
    norms = np.stack([b.branch.largest for b in found.blocks], axis=1)
    np.testing.assert_allclose(promise.log_high, np.log1p(norms).sum(1))


def test_the_promise_holds_for_stem_and_head_too():
    torch.manual_seed(0)
    model, _ = residual_net()
    whole = nn.Sequential(nn.Linear(15, 12), *model, nn.Tanh(), nn.Linear(12, 4)).double()
    found = sp.spectrum(whole, torch.randn(16, 15).double())
    promise, end = found.certificate, found.between
    assert np.isfinite(promise.log_low).all()
    assert (promise.log_low <= np.log(end.values[:, -1])).all()
    assert (np.log(end.values[:, 0]) <= promise.log_high).all()
    for wide in (
        [nn.Linear(5, 2), nn.Linear(2, 12), *model],
        [nn.Linear(5, 12), *model, nn.Linear(12, 4)],
    ):
        found = sp.spectrum(nn.Sequential(*wide).double(), torch.randn(16, 5).double())
        assert (found.certificate.log_low == -np.inf).all()


class Turned(nn.Module):
    """A branch that is zero, after its input has been turned."""

    def forward(self, x):
        x = x.movedim(-1, 1)
        return x + 0 * torch.tanh(x)


def test_an_input_that_is_turned_on_its_way_is_no_identity():
    model = nn.Sequential(nn.Linear(4, 4), Turned(), nn.Flatten(), nn.Linear(12, 3))
    found = sp.spectrum(model, torch.randn(8, 3, 4))
    (turned,) = [b for b in found.blocks if b.end.startswith("1")]
    assert turned.branch is None
    np.testing.assert_allclose(turned.spectrum.values, 1, rtol=1e-6)


def test_no_promise_from_a_branch_stronger_than_the_skip():
    found = sp.spectrum(*residual_net(scale=5.0))
    assert (found.certificate.log_low == -np.inf).all()


# ---- as a tool -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet-a", "gpt2", "bert", "lstm", "dropout-mlp", "unet"])
def test_real_architectures_and_nothing_left_behind(name):
    model, batch, loss = by_name(name).build()
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    found = sp.spectrum(model, batch, loss, samples=2, k=2, whole=None)
    assert found.samples == 2
    assert not found.skipped
    assert np.isfinite(found.between.values).all()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    json.dumps(found.to_dict(), allow_nan=False)
    frame = found.frame()
    assert list(frame.index) == [b.end for b in found.blocks]


def test_twice_the_same():
    model, batch, _ = by_name("convnet").build()
    first, second = (sp.spectrum(model, batch, samples=2).to_dict() for _ in range(2))
    assert first == second


def test_scaling_the_last_layer_scales_the_spectrum():
    model, x = tanh_net()
    model = nn.Sequential(*model, nn.Linear(20, 20).double())
    one = sp.spectrum(model, x, blocks=False).between
    with torch.no_grad():
        model[-1].weight.mul_(3)
    three = sp.spectrum(model, x, blocks=False).between
    np.testing.assert_allclose(three.values, 3 * one.values, rtol=1e-9, atol=1e-16)
    np.testing.assert_allclose(three.distortion, one.distortion, rtol=1e-6)


def test_a_batch_with_a_target_and_a_loss_are_welcome_and_not_needed():
    model, (x, y), loss = by_name("mlp-relu-he-10").build()
    with_loss = sp.spectrum(model, (x, y), loss, blocks=False).between
    without = sp.spectrum(model, x, blocks=False).between
    np.testing.assert_allclose(with_loss.values, without.values)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"of": "21"}, "no site '21'"),
        ({"of": "0", "wrt": "11"}, "exchange"),
        ({"k": 0}, "k=0"),
        ({"samples": 0}, "counts"),
        ({"smallest": -1}, "counts"),
        ({"batch_norm": "train"}, "'frozen' or 'eval'"),
    ],
)
def test_refusals(options, said):
    model, x = tanh_net()
    with pytest.raises(SignalpropError, match=said):
        sp.spectrum(model, x, **options)


def test_no_spine():
    model, batch, loss = by_name("detached-encoder").build()
    with pytest.raises(SignalpropError, match="name two sites"):
        sp.spectrum(model, batch, loss)


def test_a_block_that_cannot_be_measured_is_told(monkeypatch):
    model, x = tanh_net()
    whole = module._Plan.block

    def picky(self, op, block, adds):
        if block.end == "4":
            raise SignalpropError("not this one")
        return whole(self, op, block, adds)

    monkeypatch.setattr(module._Plan, "block", picky)
    found = sp.spectrum(model, x)
    assert found.skipped == {"4": "not this one"}
    assert len(found.blocks) == 11
    assert found.deep is None


def test_progress():
    said = []
    sp.spectrum(*residual_net(2), progress=said.append)
    assert said[0] == "one pass, seen"
    assert said[-1] == "the product of all blocks, in sweeps"


def test_a_zero_network():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.zeros_(model[1].weight)
    found = sp.spectrum(model, torch.randn(8, 4))
    assert (found.between.values == 0).all()
    assert (found.deep.log_values == -np.inf).all()
    assert F.relu(torch.tensor(found.between.frobenius.value)).sum() == 0
