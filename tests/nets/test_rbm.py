"""The restricted Boltzmann machine against exact enumeration."""

import copy
import itertools
import math

import pytest
import torch

from signalprop.nets.rbm import RBM


def states(n):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)


def tiny(units="binary", visible=4, hidden=3, scale=1.0, seed=0):
    rbm = RBM(visible, hidden, units=units, seed=seed, dtype=torch.float64)
    g = torch.Generator().manual_seed(seed + 10)
    with torch.no_grad():
        for p in rbm.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return rbm


@torch.no_grad()
def test_energy_and_free_energy_are_the_formulas():
    for units in ("binary", "gaussian"):
        rbm = tiny(units)
        W, b, c = rbm.weight, rbm.visible_bias, rbm.hidden_bias
        v, h = states(4)[5], states(3)[6]
        own = v @ b if units == "binary" else -((v - b) ** 2).sum() / 2
        assert float(rbm.energy(v, h)) == pytest.approx(float(-own - h @ c - h @ W @ v))
        summed = -torch.logsumexp(torch.stack([-rbm.energy(v, h) for h in states(3)]), 0)
        assert float(rbm.free_energy(v)) == pytest.approx(float(summed))


@pytest.mark.parametrize(("visible", "hidden"), [(4, 3), (3, 5)])
def test_the_partition_function_is_the_sum_over_all_states(visible, hidden):
    rbm = tiny(visible=visible, hidden=hidden)
    pairs = [rbm.energy(v, h) for v in states(visible) for h in states(hidden)]
    exact = torch.logsumexp(-torch.stack(pairs), 0).detach()
    assert float(rbm.log_partition()) == pytest.approx(float(exact))
    assert float(rbm.log_likelihood(states(visible)).exp().sum()) == pytest.approx(1.0)


def test_the_gaussian_density_integrates_to_one():
    rbm = tiny("gaussian", visible=2, hidden=3)
    line = torch.linspace(-14, 14, 800, dtype=torch.float64)
    v = torch.cartesian_prod(line, line)
    area = float((line[1] - line[0]) ** 2)
    assert float(rbm.log_likelihood(v).exp().sum()) * area == pytest.approx(1.0, abs=1e-6)


def test_conditionals_follow_from_the_energy():
    rbm = tiny()
    v, h = states(4), states(3)
    joint = torch.exp(-torch.stack([torch.stack([rbm.energy(a, b) for b in h]) for a in v]))
    assert torch.allclose(rbm(v), joint / joint.sum(1, keepdim=True) @ h)
    assert torch.allclose(rbm.visible_mean(h), (joint / joint.sum(0)).T @ v)
    gaussian = tiny("gaussian")
    x = gaussian.sample_visible(h[3].expand(200_000, -1))
    assert torch.allclose(x.mean(0), gaussian.visible_mean(h[3]), atol=0.02)
    assert torch.allclose(x.T.cov(), torch.eye(4, dtype=x.dtype), atol=0.02)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("units", ["binary", "gaussian"])
def test_long_chains_give_the_gradient_of_the_likelihood(units, persistent):
    """CD-k for large k, in expectation, is d/dp of the mean exact ln p(v)."""
    rbm = tiny(units, scale=0.6)
    some = torch.Generator().manual_seed(3)
    data = (torch.rand(40_000, 4, generator=some, dtype=torch.float64) < 0.7).double()
    W, b, c = rbm.weight, rbm.visible_bias, rbm.hidden_bias
    h = states(3)
    if units == "binary":
        ln_z = torch.logsumexp(-torch.stack([rbm.free_energy(v) for v in states(4)]), 0)
    else:
        a = h @ W
        ln_z = torch.logsumexp(h @ c + a @ b + (a**2).sum(1) / 2, 0)
    exact = torch.autograd.grad((-rbm.free_energy(data)).mean() - ln_z, [W, b, c])
    got = rbm.contrastive_divergence(data, k=30, persistent=persistent)
    # standard error of a statistic of 40,000 chains is below 0.02; one step of CD is farther off
    for name, value in zip(("weight", "visible_bias", "hidden_bias"), exact, strict=True):
        assert torch.allclose(getattr(got, name), value, atol=0.05)


def test_one_step_is_what_the_kernel_says():
    """CD-1 in expectation, summed over all intermediate states."""
    rbm = tiny()
    v = states(4)[11]
    p_h = lambda x, h: (rbm(x) * h + (1 - rbm(x)) * (1 - h)).prod()  # noqa: E731
    p_v = lambda h, x: (  # noqa: E731
        rbm.visible_mean(h) * x + (1 - rbm.visible_mean(h)) * (1 - x)
    ).prod()
    with torch.no_grad():
        after = sum(
            p_h(v, h) * p_v(h, x) * torch.outer(rbm(x), x) for h in states(3) for x in states(4)
        )
        exact = torch.outer(rbm(v), v) - after
    got = rbm.contrastive_divergence(v.expand(200_000, -1)).weight
    assert torch.allclose(got, exact, atol=0.01)


@pytest.mark.parametrize("persistent", [False, True])
def test_learning_reaches_the_likelihood_of_the_teacher(persistent):
    teacher = tiny(scale=2.5, visible=6)
    with torch.no_grad():  # every unit is on half of the time
        teacher.visible_bias.copy_(-teacher.weight.sum(0) / 2)
        teacher.hidden_bias.copy_(-teacher.weight.sum(1) / 2)
    data = teacher.gibbs(torch.full((3000, 6), 0.5, dtype=torch.float64), 100)
    rbm = RBM(6, 5, seed=1, dtype=torch.float64).match_(data)
    best, before = (float(m.log_likelihood(data).mean()) for m in (teacher, rbm))
    k, lr = (5, 0.03) if persistent else (3, 0.1)
    rbm.fit(data, epochs=16, lr=lr, batch_size=50, persistent=persistent, k=k)
    after = float(rbm.log_likelihood(data).mean())
    assert best - before > 0.5  # what independent units miss
    assert best - after < 0.2


def test_learning_splits_two_patterns():
    data = torch.tensor([[1.0, 1, 0, 0, 1, 0], [0, 0, 1, 1, 0, 1]]).double().repeat(50, 1)
    rbm = RBM(6, 4, seed=1, dtype=torch.float64).match_(data)
    before = float(rbm.log_likelihood(data).mean())
    errors = rbm.fit(data, epochs=150, batch_size=20, k=2)
    assert before == pytest.approx(-6 * math.log(2), abs=0.1)
    assert float(rbm.log_likelihood(data).mean()) > -1.6  # ln 1/2 = -0.69 is the best possible
    assert errors[-1] < errors[0] / 2
    assert all(p.grad is None for p in rbm.parameters())


def test_gaussian_units_learn_two_clusters():
    g = torch.Generator().manual_seed(0)
    centre = torch.tensor([[2.0, -2, 2], [-2, 2, -2]])
    data = centre.repeat(150, 1) + torch.randn(300, 3, generator=g)
    rbm = RBM(3, 4, units="gaussian").match_(data)
    before = float(rbm.log_likelihood(data).mean())
    rbm.fit(data, epochs=60, lr=0.01, batch_size=20)
    assert float(rbm.log_likelihood(data).mean()) > before + 1


def test_match_gives_the_data_its_own_means():
    data = torch.tensor([[1.0, 0, 1, 0.5], [1, 0, 0, 0.5]])
    bias = RBM(4, 2).match_(data).visible_bias
    assert torch.allclose(torch.sigmoid(bias), torch.tensor([0.99, 0.01, 0.5, 0.5]))
    assert torch.equal(RBM(4, 2, units="gaussian").match_(data).visible_bias, data.mean(0))


def test_a_seed_decides_and_the_global_state_stays():
    data = torch.rand(60, 5)
    state = torch.get_rng_state()
    a, b, other = RBM(5, 3, seed=4), RBM(5, 3, seed=4), RBM(5, 3, seed=5)
    for rbm in (a, b, other):
        rbm.fit(data, epochs=3, batch_size=7, persistent=True)
    assert torch.equal(a.weight, b.weight)
    assert not torch.equal(a.weight, other.weight)
    assert torch.equal(torch.get_rng_state(), state)
    twin = copy.deepcopy(a)
    assert torch.equal(a.gibbs(data, 2), twin.gibbs(data, 2))


def test_momentum_and_decay_follow_the_guide():
    """One sample, no noise: Delta_t = m Delta_{t-1} + lr (direction - decay W), by hand."""
    data = torch.full((4, 3), 0.5)
    rbm = RBM(3, 2, seed=0)
    twin = copy.deepcopy(rbm)
    rbm.fit(data, epochs=7, lr=0.1, batch_size=4, momentum=0.9, weight_decay=0.01)
    velocity = torch.zeros_like(twin.weight)
    others = [torch.zeros(3), torch.zeros(2)]
    with torch.no_grad():
        for epoch in range(7):
            (v,) = twin.minibatches(data, 4)
            up = twin.contrastive_divergence(v)
            m = 0.5 if epoch < 5 else 0.9
            velocity = m * velocity + 0.1 * (up.weight - 0.01 * twin.weight)
            others = [
                m * o + 0.1 * d
                for o, d in zip(others, (up.visible_bias, up.hidden_bias), strict=True)
            ]
            twin.weight += velocity
            twin.visible_bias += others[0]
            twin.hidden_bias += others[1]
    assert torch.allclose(rbm.weight, twin.weight, atol=1e-6)
    assert torch.allclose(rbm.hidden_bias, twin.hidden_bias, atol=1e-6)


def test_frozen_parameters_stay_and_progress_is_told():
    rbm, told = RBM(5, 3), []
    rbm.hidden_bias.requires_grad_(False)
    errors = rbm.fit(torch.rand(20, 5), epochs=3, progress=lambda e, x: told.append((e, x)))
    assert not rbm.hidden_bias.any()
    assert told == list(enumerate(errors))


def test_bad_input_is_one_sentence():
    rbm = RBM(3, 2)
    with pytest.raises(ValueError, match=r"\[0, 1\], got -1 to 2"):
        rbm.fit(torch.tensor([[-1.0, 2, 0]]))
    with pytest.raises(ValueError, match=r"\(n, 3\), got \(2, 4\)"):
        rbm.contrastive_divergence(torch.rand(2, 4))
    with pytest.raises(TypeError, match="int64"):
        rbm.fit(torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="inf or nan"):
        rbm.fit(torch.full((2, 3), math.nan))
    with pytest.raises(ValueError, match="k=0"):
        rbm.contrastive_divergence(torch.rand(2, 3), k=0)
    with pytest.raises(ValueError, match="units"):
        RBM(3, 2, units="relu")
    with pytest.raises(ValueError, match="on either side"):
        RBM(0, 2)
    with pytest.raises(ValueError, match="batch_size"):
        rbm.fit(torch.rand(2, 3), batch_size=0)
    with pytest.raises(ValueError, match="2\\^30 states"):
        RBM(40, 30).log_partition()
    wild = RBM(30, 20, units="gaussian")
    with pytest.raises(ValueError, match=r"diverged in epoch .*; lower lr"):
        wild.fit(100 * torch.randn(200, 30), lr=1.0, epochs=50)
