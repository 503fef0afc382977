"""The denoising autoencoder: what it damages, what it is judged by, what it learns."""

import copy
import math

import pytest
import torch
from torch import nn

from signalprop.nets.autoencoder import DenoisingAutoencoder

CORRUPTIONS = ["masking", "gaussian", "salt_and_pepper", "none"]


def curve(n=300, width=12):
    """Samples near a one-dimensional curve in (0, 1)^width."""
    g = torch.Generator().manual_seed(2)
    t = torch.rand(n, 1, generator=g)
    return 0.5 + 0.45 * torch.sin(6 * t + torch.linspace(0, 3, width))


def test_masking_zeroes_its_share_and_no_more():
    net = DenoisingAutoencoder(50, 3, corruption="masking", amount=0.25)
    x = torch.rand(2000, 50) + 0.1
    damaged = net.corrupt(x)
    gone = damaged == 0
    assert float(gone.float().mean()) == pytest.approx(0.25, abs=0.01)
    assert torch.equal(damaged[~gone], x[~gone])


def test_gaussian_adds_noise_of_its_deviation():
    net = DenoisingAutoencoder(50, 3, corruption="gaussian", amount=0.4, inputs="real")
    noise = net.corrupt(torch.ones(2000, 50)) - 1
    assert float(noise.std()) == pytest.approx(0.4, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize(("inputs", "low", "high"), [("binary", 0.0, 1.0), ("real", -3.0, 5.0)])
def test_salt_and_pepper_take_the_extremes(inputs, low, high):
    net = DenoisingAutoencoder(50, 3, corruption="salt_and_pepper", amount=0.2, inputs=inputs)
    x = 0.4 + 0.2 * torch.rand(2000, 50)
    if inputs == "real":
        x[0, :2] = torch.tensor([low, high])
    damaged = net.corrupt(x)
    changed = damaged != x
    assert float(changed.float().mean()) == pytest.approx(0.2, abs=0.01)
    assert set(damaged[changed].tolist()) == {low, high}
    assert float((damaged[changed] == high).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_none_and_zero_leave_all():
    x = torch.rand(9, 4)
    assert torch.equal(DenoisingAutoencoder(4, 3, corruption="none").corrupt(x), x)
    for corruption in CORRUPTIONS[:3]:
        net = DenoisingAutoencoder(4, 3, corruption=corruption, amount=0.0)
        assert torch.equal(net.corrupt(x), x)


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_is_the_formula(tied):
    x = torch.rand(6, 5, dtype=torch.float64)
    for inputs in ("binary", "real"):
        net = DenoisingAutoencoder(
            5, 3, inputs=inputs, corruption="none", tied=tied, dtype=torch.float64
        )
        with torch.no_grad():
            for p in net.parameters():
                p.normal_()
        back = net.weight.T if tied else net.decoder_weight
        h = 1 / (1 + torch.exp(-(x @ net.weight.T + net.hidden_bias)))
        z = h @ back.T + net.visible_bias
        if inputs == "binary":
            p = 1 / (1 + torch.exp(-z))
            loss = -(x * p.log() + (1 - x) * (1 - p).log()).sum(1).mean()
        else:
            p, loss = z, ((z - x) ** 2).sum(1).mean() / 2
        assert float(net.loss(x).detach()) == pytest.approx(float(loss.detach()))
        assert torch.allclose(net.decode(net(x)), p)
        assert len(list(net.parameters())) == (3 if tied else 4)


@pytest.mark.parametrize("inputs", ["binary", "real"])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_it_learns_to_undo_the_damage(corruption, inputs):
    x = curve()
    amount = 0.0 if corruption == "none" else 0.2
    net = DenoisingAutoencoder(12, 24, corruption=corruption, amount=amount, inputs=inputs)
    losses = net.fit(x, epochs=100, batch_size=30)
    assert losses[-1] < losses[0]
    damaged = net.corrupt(x)
    with torch.no_grad():
        rebuilt = net.decode(net(damaged))
    error = float((rebuilt - x).square().mean())
    assert error < 0.03  # variance of the data: 0.1
    if corruption in ("masking", "salt_and_pepper"):
        assert error < 0.5 * float((damaged - x).square().mean())


def test_activation_of_ones_own_and_the_start():
    net = DenoisingAutoencoder(30, 20, activation=nn.Tanh())
    x = torch.randn(3, 30)
    assert torch.allclose(net(x), torch.tanh(x @ net.weight.T))
    bound = math.sqrt(6 / 50)
    assert 0.95 * bound < float(net.weight.detach().abs().max()) <= bound
    assert float(DenoisingAutoencoder(30, 20).weight.detach().abs().max()) > 3.8 * bound


def test_a_seed_decides_and_the_global_state_stays():
    x, state = curve(), torch.get_rng_state()
    a, b, other = (DenoisingAutoencoder(12, 4, seed=s) for s in (1, 1, 2))
    losses = [net.fit(x, epochs=3) for net in (a, b, other)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(a.weight, b.weight)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(copy.deepcopy(a).corrupt(x), a.corrupt(x))


def test_frozen_parameters_decay_and_progress():
    net, told = DenoisingAutoencoder(12, 4, tied=False), []
    net.hidden_bias.requires_grad_(False)
    losses = net.fit(curve(), epochs=3, progress=lambda e, x: told.append((e, x)))
    assert not net.hidden_bias.any()
    assert told == list(enumerate(losses))
    small, large = (DenoisingAutoencoder(12, 4) for _ in range(2))
    small.fit(curve(), epochs=20, weight_decay=10.0)
    large.fit(curve(), epochs=20)
    assert float(small.weight.detach().norm()) < 0.5 * float(large.weight.detach().norm())


def test_it_learns_inside_no_grad():
    with torch.no_grad():
        losses = DenoisingAutoencoder(12, 4).fit(curve(), epochs=5)
    assert losses[-1] < losses[0]


def test_bad_input_is_one_sentence():
    net = DenoisingAutoencoder(3, 2)
    with pytest.raises(ValueError, match=r"\[0, 1\], got -1 to 2"):
        net.fit(torch.tensor([[-1.0, 2, 0]]))
    with pytest.raises(ValueError, match=r"\(n, 3\), got \(2, 4\)"):
        net.loss(torch.rand(2, 4))
    with pytest.raises(TypeError, match="list"):
        net.fit([[0.0, 1.0, 0.0]])
    with pytest.raises(ValueError, match="masking, gaussian"):
        DenoisingAutoencoder(3, 2, corruption="blur")
    with pytest.raises(ValueError, match=r"1.5 is no amount of masking"):
        DenoisingAutoencoder(3, 2, amount=1.5)
    with pytest.raises(ValueError, match='"binary" or "real"'):
        DenoisingAutoencoder(3, 2, inputs="counts")
    with pytest.raises(ValueError, match="on either side"):
        DenoisingAutoencoder(3, 0)
    with pytest.raises(ValueError, match="epochs"):
        net.fit(torch.rand(2, 3), epochs=-1)
    with pytest.raises(ValueError, match="diverged"):
        DenoisingAutoencoder(3, 2, activation=torch.exp, inputs="real").fit(
            1e3 * torch.randn(50, 3), lr=1e3, epochs=20
        )
