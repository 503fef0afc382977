"""Recurrent networks for the rules over time, sick and healthy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.cases.base import tokens
from torch import nn

from signalprop.cures.structure.recurrent import chrono
from signalprop.nets.recurrent import identity_rnn_, orthogonal_recurrent_

WIDTH, HIDDEN, CLASSES = 8, 32, 4
CE = F.cross_entropy


class Last(nn.Module):
    """A recurrent layer, read at its last step, at every step, or by its final states."""

    def __init__(self, kind, *, read="last", hidden=HIDDEN, **options):
        super().__init__()
        self.rnn = getattr(nn, kind)(WIDTH, hidden, batch_first=True, **options)
        both = 2 if options.get("bidirectional") else 1
        self.head, self.read = nn.Linear(both * hidden, CLASSES), read

    def forward(self, x):
        out, state = self.rnn(x)
        if self.read == "every":
            return self.head(out).transpose(1, 2)
        if self.read == "mean":
            return self.head(out.mean(1))
        if self.read == "last":
            return self.head(out[:, -1])
        state = state[0] if isinstance(state, tuple) else state
        both = 2 if self.rnn.bidirectional else 1
        return self.head(state[-both:].transpose(0, 1).flatten(1))


class Loop(nn.Module):
    """A loop over a cell, whose state is detached every so many steps."""

    def __init__(self, cell, cut=0, read="last"):
        super().__init__()
        self.cell, self.head = cell, nn.Linear(HIDDEN, CLASSES)
        self.cut, self.read = cut, read

    def forward(self, x):
        state = x.new_zeros(len(x), HIDDEN)
        if isinstance(self.cell, nn.LSTMCell):
            state = (state, state)
        outputs = []
        for t, step in enumerate(x.unbind(1)):
            if self.cut and t and t % self.cut == 0:
                pair = isinstance(state, tuple)
                state = tuple(s.detach() for s in state) if pair else state.detach()
            state = self.cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        if self.read == "every":
            return self.head(torch.stack(outputs, 1)).transpose(1, 2)
        return self.head(outputs[-1])


class Chunks(nn.Module):
    """A layer that is called part by part."""

    def __init__(self, part, detach, kind="LSTM"):
        super().__init__()
        self.rnn = getattr(nn, kind)(WIDTH, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, CLASSES)
        self.part, self.detach = part, detach

    def forward(self, x):
        state = None
        for part in x.split(self.part, 1):
            if state is not None and self.detach:
                state = tuple(s.detach() for s in state)
            out, state = self.rnn(part, state)
        return self.head(out[:, -1])


class OwnCell(nn.Module):
    def __init__(self):
        super().__init__()
        self.both = nn.Linear(WIDTH + HIDDEN, HIDDEN)

    def forward(self, x, h):
        return torch.tanh(self.both(torch.cat([x, h], -1)))


class Language(nn.Module):
    def __init__(self, kind, vocabulary=24):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, HIDDEN)
        self.rnn = getattr(nn, kind)(HIDDEN, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, vocabulary)

    def forward(self, x):
        return self.head(self.rnn(self.embedding(x))[0]).transpose(1, 2)


class Translation(nn.Module):
    def __init__(self, vocabulary=20):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, HIDDEN)
        self.encoder = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
        self.decoder = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, vocabulary)

    def forward(self, source, before):
        _, state = self.encoder(self.embedding(source))
        return self.head(self.decoder(self.embedding(before), state)[0]).transpose(1, 2)


def orthogonal(model, gain=1.0):
    return orthogonal_recurrent_(model, gain)


def forget(model, value):
    """With that forget bias."""
    for name, p in model.named_parameters():
        if name.startswith("rnn.bias"):
            with torch.no_grad():
                p[HIDDEN : 2 * HIDDEN] = value if "ih" in name else 0.0
    return model


def one(steps, samples=32):
    """Noise and one class a sequence: no rule can know what the task needs."""
    return torch.randn(samples, steps, WIDTH), torch.arange(samples) % CLASSES


def many(steps, samples=32):
    """A class at every step."""
    return torch.randn(samples, steps, WIDTH), torch.randint(CLASSES, (samples, steps))


def told_first(steps, samples=64):
    """The class is what the first step says."""
    x, y = one(steps, samples)
    x[:, 0, :CLASSES] = 3.0 * F.one_hot(y, CLASSES)
    return x, y


def words(steps):
    x = tokens(32, steps + 1, 24)
    return x[:, :-1], x[:, 1:]


def pairs(steps):
    source = torch.randint(20, (32, steps))
    return (source, source.flip(1).roll(1, 1)), source.flip(1)


def everywhere(steps, samples=64):
    """The class shows faintly at every step, as in what sensors tell."""
    x, y = one(steps, samples)
    x[..., 1] += 0.5 * y[:, None]
    return (x - x.mean((0, 1))) / x.std((0, 1)), y


def trained():
    """An LSTM that has learned what the first of 20 steps says."""
    model, (x, y) = Last("LSTM"), told_first(20)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        CE(model(x), y).backward()
        optimizer.step()
    return model, (x, y)


HEALTHY = {
    "lstm-forget-1-every-step": lambda: (forget(Last("LSTM", read="every"), 1.0), many(50)),
    "gru-language": lambda: (Language("GRU"), words(60)),
    "lstm-language-200": lambda: (Language("LSTM"), words(200)),
    "bidirectional-tagger": lambda: (
        Last("LSTM", read="every", bidirectional=True, num_layers=2),
        many(50),
    ),
    "bidirectional-finals": lambda: (Last("LSTM", read="final", bidirectional=True), one(100)),
    "tanh-orthogonal-20": lambda: (orthogonal(Last("RNN")), one(20)),
    "tanh-20": lambda: (Last("RNN"), one(20)),
    "trained": trained,
    "seq2seq": lambda: (Translation(), pairs(20)),
    "lstm-30": lambda: (Last("LSTM"), one(30)),
    "lstm-30-three-layers": lambda: (Last("LSTM", num_layers=3), one(30)),
    "lstm-64": lambda: (Last("LSTM"), one(64)),
    "gru-64": lambda: (Last("GRU"), one(64)),
    "lstm-mean-200": lambda: (Last("LSTM", read="mean"), one(200)),
    "lstm-chrono-200": lambda: (chrono(Last("LSTM"), None, longest=200), one(200)),
    "lstm-forget-3-100": lambda: (forget(Last("LSTM"), 3.0), one(100)),
    "lstm-forget-5-200": lambda: (forget(Last("LSTM"), 5.0), one(200)),
    "identity-100": lambda: (identity_rnn_(Last("RNN", nonlinearity="relu")), one(100)),
    "sensors-200": lambda: (Last("LSTM"), everywhere(200)),
    "loop": lambda: (Loop(nn.LSTMCell(WIDTH, HIDDEN)), one(30)),
    "own-loop": lambda: (Loop(OwnCell()), one(20)),
    "parts": lambda: (Chunks(10, detach=False), one(40)),
}
