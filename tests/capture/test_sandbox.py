"""What a forward function may do to its own model, and what of it is left: nothing."""

from __future__ import annotations

import collections
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.references.state import Snapshot
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import signalprop as sp

X, Y = torch.randn(8, 4), torch.randint(3, (8,))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        self.register_buffer("count", torch.zeros(3))
        self.plain = torch.zeros(3)
        self.nested = {"history": [1.0], "deep": {"deeper": [[0]]}}
        self.by_key = collections.defaultdict(list)
        self.counter = collections.Counter()
        self.queue = collections.deque([1, 2], maxlen=3)
        self.names = {"a"}
        self.cache = [torch.zeros(2), (torch.zeros(2), torch.zeros(2))]
        self.generator = torch.Generator().manual_seed(1)
        self.flag = False
        self.setup()

    def setup(self) -> None: ...

    def forward(self, x):
        self.change(x)
        return self.net(x)

    def change(self, x) -> None:
        raise NotImplementedError


class CountsInBuffer(Model):
    def change(self, x):
        self.count += 1


class NewBuffer(Model):
    def change(self, x):
        self.count = self.count + 1


class RegistersBuffer(Model):
    def change(self, x):
        self.register_buffer("extra", torch.ones(2))


class NanIntoBuffer(Model):
    def change(self, x):
        self.count.fill_(torch.nan)


class InfiniteIntoBuffer(Model):
    def setup(self):
        self.count.fill_(torch.finfo(torch.float32).max)

    def change(self, x):
        self.count.fill_(torch.inf)


class SignOfZero(Model):
    def change(self, x):
        self.count.neg_()


class PlainTensor(Model):
    def change(self, x):
        self.plain[1] = 3.0


class NestedContainers(Model):
    def change(self, x):
        self.nested["history"].append(2.0)
        self.nested["deep"]["deeper"][0].append(1)
        self.nested["new"] = 1


class DefaultDict(Model):
    def change(self, x):
        self.by_key["loss"].append(1.0)


class Counting(Model):
    def change(self, x):
        self.counter["calls"] += 1


class Queue(Model):
    def change(self, x):
        self.queue.append(len(self.queue))


class SetOfNames(Model):
    def change(self, x):
        self.names.add("b")


class CachedTensors(Model):
    def change(self, x):
        self.cache[0].add_(1)
        self.cache[1][0].add_(1)


class OwnGenerator(Model):
    def change(self, x):
        self.mask = torch.rand(4, generator=self.generator)


class Attributes(Model):
    def change(self, x):
        self.flag = True
        self.last = x
        del self.names


class SwitchesModes(Model):
    def change(self, x):
        self.net.eval()
        self.net[0].requires_grad_(False)


class NewModule(Model):
    def change(self, x):
        self.late = nn.Linear(4, 4)
        self.net.append(nn.Identity())


class Hooks(Model):
    def change(self, x):
        self.net[0].register_forward_hook(lambda *_: None)


class WritesWeight(Model):
    def change(self, x):
        with torch.no_grad():
            self.net[0].weight.mul_(0.5)
            self.net[0].bias[:2] = 0.0


class WritesWeightThroughData(Model):
    def change(self, x):
        self.net[0].weight.data.mul_(0.5)
        self.net[0].bias.data = torch.zeros(6)


class WritesWeightThroughOut(Model):
    def change(self, x):
        with torch.no_grad():
            torch.mul(self.net[0].weight, 0.5, out=self.net[0].weight)


class WritesManyWeights(Model):
    def change(self, x):
        with torch.no_grad():
            torch._foreach_mul_(list(self.net.parameters()), 0.5)


class WritesFrozenWeight(WritesWeight):
    def setup(self):
        self.net[0].requires_grad_(False)


class WritesFrozenWeightThroughView(Model):
    def setup(self):
        self.net[0].requires_grad_(False)

    def change(self, x):
        self.net[0].weight.view(-1)[3:].zero_()


class ReplacesWeight(Model):
    def change(self, x):
        self.net[0].weight = nn.Parameter(torch.ones(6, 4))


class DropsGradients(Model):
    def change(self, x):
        self.zero_grad()


class Randomness(Model):
    def change(self, x):
        torch.manual_seed(random.randint(0, 9))
        np.random.rand()


CHANGES = [*Model.__subclasses__(), WritesFrozenWeight]


@pytest.mark.parametrize("look", [sp.trace, sp.diagnose], ids=["trace", "diagnose"])
@pytest.mark.parametrize("kind", CHANGES, ids=lambda kind: kind.__name__)
def test_what_a_model_does_to_itself_is_undone(kind, look):
    model = kind()
    model.net[2].weight.grad = torch.ones(3, 6)
    if model.net[0].weight.requires_grad:
        model.net[0].weight.grad = torch.ones(6, 4)
    before = Snapshot(model, (X, Y))
    look(model, (X, Y), F.cross_entropy)
    assert before.changed() == []


@pytest.mark.parametrize("look", [sp.trace, sp.diagnose], ids=["trace", "diagnose"])
@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_with_a_maximal_norm_is_seen_and_brought_back(make, look):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = make(5, 4, max_norm=0.5), nn.Linear(4, 3)

        def forward(self, x):
            x = self.words(x)
            return self.head(x if x.ndim == 2 else x.mean(1))

    model = Words()
    words = torch.randint(5, (8, 3))
    before = Snapshot(model, (words, Y))
    look(model, (words, Y), F.cross_entropy)
    assert before.changed() == []


@pytest.mark.parametrize("look", [sp.trace, sp.diagnose], ids=["trace", "diagnose"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_running_statistics_survive_data_that_are_not_finite(value, look):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    x = X.clone()
    x[0, 0] = value
    before = Snapshot(model, (x, Y))
    look(model, (x, Y), F.cross_entropy)
    assert before.changed() == []
    assert model[0].running_mean.isfinite().all()


@pytest.mark.parametrize("look", [sp.trace, sp.diagnose], ids=["trace", "diagnose"])
def test_the_generator_of_a_data_loader_is_where_it_was(look):
    generator = torch.Generator().manual_seed(7)
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True, generator=generator)
    state = generator.get_state()
    look(nn.Linear(4, 3), loader, F.cross_entropy)
    assert torch.equal(generator.get_state(), state)
