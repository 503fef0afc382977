"""A small recorder, slow and obvious: it trains a network and shows every step to a judge."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from signalprop.watching.file.schema import RunSite
from signalprop.watching.rules.judge import Judge
from signalprop.watching.sample import Sample


class Attention(nn.Module):
    """One layer of attention, plainly written, that remembers its entropy and largest logit."""

    def __init__(self, width, heads=2, causal=True):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.seen = None

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.mix(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(d / self.heads)
        most = np.full(t, math.log(t))
        if self.causal:
            mask = torch.ones(t, t, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(mask, -math.inf)
            most = np.log(np.arange(1, t + 1))
        p = scores.softmax(-1)
        with torch.no_grad():
            entropy = torch.special.entr(p).sum(-1).mean((0, 2))
            self.seen = float(entropy.mean()), most.mean(), float(scores.max())
        return self.out((p @ v).transpose(1, 2).reshape(b, t, d))


def leaves(model):
    return {
        name: m
        for name, m in model.named_modules()
        if not list(m.children()) or isinstance(m, Attention)
    }


def norm(x):
    """L2 norm; inf where something is not finite."""
    found = float(x.norm())
    return found if math.isfinite(found) else math.inf


def rms(x):
    return norm(x) / math.sqrt(x.numel())


class Recorder:
    """Computes what the real one does, from the definitions."""

    def __init__(self, models, every=5, judge=None):
        self.judge = judge or Judge()
        self.every, self.alarms = every, []
        self.modules = {}
        order = []
        for name, model in models.items():
            for path, module in leaves(model).items():
                self.modules[f"{name}.{path}".strip(".")] = module
                order.append(RunSite(f"{name}.{path}".strip("."), model=name))
        self.sites = tuple(order)
        self.judge.sites = self.sites

    def own(self, module):
        if isinstance(module, Attention):
            return []
        return [p for p in module.parameters(recurse=False) if p.requires_grad]

    def gradients(self):
        found = []
        for module in self.modules.values():
            grads = [p.grad for p in self.own(module) if p.grad is not None]
            if not grads:
                found.append(math.nan)
                continue
            flat = torch.cat([g.flatten() for g in grads])
            found.append(rms(flat))
        return np.array(found)

    def watch(self, step, forward, update, scalars):
        """Run a step: `forward` gives the loss, `update` steps the optimizer."""
        if step % self.every:
            loss = forward()
            loss.backward()
            gradients = self.gradients()
            update()
            scalars = {"loss": float(loss.detach()), **scalars}
            self.alarms += self.judge.step(step, scalars, gradients)
            return
        n = len(self.sites)
        names = (
            "activation_rms delta_rms dead weight_norm gradient_norm update_norm update_ratio "
            "learning_share gradient_rms attention_entropy attention_entropy_most attention_logit"
        ).split()
        values = {name: np.full(n, np.nan) for name in names}
        handles = []

        def seen(k, module, out):
            if not torch.is_tensor(out):
                return
            a = out.detach()
            values["activation_rms"][k] = rms(a)
            if isinstance(module, nn.ReLU):
                units = a.flatten(2).transpose(1, 2) if a.ndim == 4 else a
                units = units.reshape(-1, units.shape[-1])
                values["dead"][k] = float((units == 0).all(0).float().mean())
            if out.requires_grad:
                out.register_hook(lambda d: values["delta_rms"].__setitem__(k, rms(d)))

        for k, module in enumerate(self.modules.values()):
            handles.append(module.register_forward_hook(lambda m, _, out, k=k: seen(k, m, out)))
        loss = forward()
        loss.backward()
        for handle in handles:
            handle.remove()
        gradients = self.gradients()
        before = [[p.detach().clone() for p in self.own(m)] for m in self.modules.values()]
        grads = [
            [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.own(m)]
            for m in self.modules.values()
        ]
        update()
        share = np.full(n, np.nan)
        for k, module in enumerate(self.modules.values()):
            own = self.own(module)
            if isinstance(module, Attention) and module.seen:
                entropy, most, logit = module.seen
                values["attention_entropy"][k], values["attention_entropy_most"][k] = entropy, most
                values["attention_logit"][k] = logit
            if not own or math.isnan(gradients[k]):
                continue
            flat = [torch.cat([x.flatten() for x in xs]) for xs in (before[k], grads[k])]
            moved = torch.cat([p.detach().flatten() for p in own]) - flat[0]
            w, g, dw = (norm(x) for x in (*flat, moved))
            values["weight_norm"][k], values["gradient_norm"][k] = w, g
            values["update_norm"][k] = dw
            values["update_ratio"][k] = dw / w if w else math.inf
            share[k] = -float(flat[1] @ moved)
        values["gradient_rms"] = gradients
        total = np.nansum(share)
        values["learning_share"] = share / total if total else share
        scalars = {"loss": float(loss.detach()), **scalars}
        self.alarms += self.judge.see(Sample(step, self.sites, values, scalars))
        self.alarms += self.judge.step(step, scalars, gradients)


def train(
    model, optimizer, batch, loss, steps=1500, every=5, schedule=None, before=None, judge=None
):
    """Train and return the alarms; `before(step)` may do what makes the network sick."""
    recorder = Recorder({"": model}, every, judge)
    for step in range(steps):
        if before:
            before(step)
        x, y = batch(step)

        def forward(x=x, y=y):
            optimizer.zero_grad(set_to_none=True)
            return loss(model(x), y)

        rate = optimizer.param_groups[0]["lr"]
        recorder.watch(step, forward, optimizer.step, {"learning_rate": rate})
        if schedule:
            schedule.step()
    return recorder


def blobs(features=16, classes=10, samples=2000, batch=64, noise=1.0, seed=0):
    """A task of Gaussian clouds, several per class."""
    made = torch.Generator().manual_seed(seed)
    centers = torch.randn(4 * classes, features, generator=made)
    which = torch.randint(4 * classes, (samples,), generator=made)
    x = centers[which] + noise * torch.randn(samples, features, generator=made)
    y = which % classes

    def batches(step):
        rows = torch.randint(samples, (batch,), generator=made)
        return x[rows], y[rows]

    return batches


def mlp(features=16, width=48, depth=5, classes=10, activation=nn.ReLU, norm=None, init=None):
    layers, size = [], features
    for _ in range(depth):
        layers += [nn.Linear(size, width), *([norm(width)] if norm else []), activation()]
        size = width
    model = nn.Sequential(*layers, nn.Linear(size, classes))
    for m in model.modules():
        if isinstance(m, nn.Linear) and init:
            init(m.weight)
            nn.init.zeros_(m.bias)
    return model


class Block(nn.Module):
    def __init__(self, width, norm=True, zero=False):
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.one, self.relu, self.two = nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        if zero:
            nn.init.zeros_(self.two.weight)
            nn.init.zeros_(self.two.bias)

    def forward(self, x):
        return x + self.two(self.relu(self.one(self.norm(x))))


def residual(features=16, width=48, depth=5, classes=10, **options):
    blocks = [Block(width, **options) for _ in range(depth)]
    return nn.Sequential(nn.Linear(features, width), *blocks, nn.Linear(width, classes))


class Transformer(nn.Module):
    def __init__(self, vocabulary=16, length=16, width=32, depth=2):
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.attention = nn.ModuleList(Attention(width) for _ in range(depth))
        self.mlps = nn.ModuleList(Block(width) for _ in range(depth))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, x):
        x = self.embed(x) + self.place(torch.arange(x.shape[1]))
        for norm, attention, block in zip(self.norms, self.attention, self.mlps, strict=True):
            x = block(x + attention(norm(x)))
        return self.head(self.last(x))


def copying(vocabulary=16, length=16, batch=16, seed=0):
    """The second half repeats the first: attention becomes sharp, quite suddenly."""
    made = torch.Generator().manual_seed(seed)

    def batches(step):
        half = torch.randint(vocabulary, (batch, length // 2), generator=made)
        x = torch.cat([half, half], 1)
        return x, torch.roll(x, -1, 1)

    return batches


def next_token(out, y):
    return F.cross_entropy(out[:, :-1].flatten(0, 1), y[:, :-1].flatten())
