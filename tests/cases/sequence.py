"""Networks over time: torch's own recurrent layers and loops written by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.cases.base import Built, adam, classes, collect, healthy, rmsprop, series, sgd, tokens
from torch import nn

STEPS, WIDTH, HIDDEN = 12, 8, 32


class Recurrent(nn.Module):
    """A recurrent layer and a read-out of its last step."""

    def __init__(self, layer: type[nn.RNNBase], batch_first: bool, **options) -> None:
        super().__init__()
        self.rnn = layer(WIDTH, HIDDEN, batch_first=batch_first, **options)
        both = 2 if options.get("bidirectional") else 1
        self.head = nn.Linear(both * HIDDEN, 5)

    def forward(self, x):
        out, _ = self.rnn(x)
        return self.head(out[:, -1] if self.rnn.batch_first else out[-1])


def task(model: nn.Module, batch_first: bool = True) -> Built:
    x = series(16, STEPS, WIDTH)
    y = classes(x[:, -4:], 5)
    return model, (x if batch_first else x.transpose(0, 1).contiguous(), y), F.cross_entropy


@healthy("rnn", adam(2e-3))
def rnn() -> Built:
    return task(Recurrent(nn.RNN, True))


@healthy("rnn-time-first", sgd(0.05))
def rnn_time_first() -> Built:
    return task(Recurrent(nn.RNN, False), False)


@healthy("gru", adam(3e-3))
def gru() -> Built:
    return task(Recurrent(nn.GRU, True))


@healthy("gru-time-first", rmsprop(2e-3))
def gru_time_first() -> Built:
    return task(Recurrent(nn.GRU, False, bidirectional=True), False)


@healthy("lstm", adam(3e-3))
def lstm() -> Built:
    return task(Recurrent(nn.LSTM, True, num_layers=2, dropout=0.1))


@healthy("lstm-time-first", adam(3e-3))
def lstm_time_first() -> Built:
    return task(Recurrent(nn.LSTM, False), False)


class CellLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(WIDTH, HIDDEN), nn.Linear(HIDDEN, 5)
        nn.init.constant_(self.cell.bias_ih[HIDDEN : 2 * HIDDEN], 2.0)  # remember at first

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], HIDDEN)
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
        return self.head(h)


@healthy("lstm-cell-loop", adam(3e-3), note="one module called once per time step")
def lstm_cell_loop() -> Built:
    return task(CellLoop())


class OwnCell(nn.Module):
    """A gated cell as one would write it from a paper."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH + HIDDEN, HIDDEN)
        self.candidate = nn.Linear(WIDTH + HIDDEN, HIDDEN)
        nn.init.constant_(self.gate.bias, -2.0)  # remember at first

    def forward(self, x, h):
        both = torch.cat([x, h], -1)
        update = torch.sigmoid(self.gate(both))
        return (1 - update) * h + update * torch.tanh(self.candidate(both))


class OwnLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = OwnCell(), nn.Linear(HIDDEN, 5)

    def forward(self, x):
        h = torch.zeros(x.shape[0], HIDDEN)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)


@healthy("own-cell-loop", adam(5e-3))
def own_cell_loop() -> Built:
    return task(OwnLoop())


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(WIDTH, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 5)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        _, (h, _) = self.rnn(packed)
        return self.head(h[-1])


@healthy("lstm-packed", adam(5e-3), note="sequences of different length")
def lstm_packed() -> Built:
    model, (x, y), loss = task(Packed())
    return model, ((x, torch.randint(6, STEPS + 1, (16,))), y), loss


class CharacterModel(nn.Module):
    """Embedding and output head share one matrix."""

    def __init__(self, vocabulary: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, HIDDEN)
        nn.init.normal_(self.embedding.weight, std=0.2)
        self.rnn = nn.GRU(HIDDEN, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.rnn(self.embedding(x))[0]).transpose(1, 2)


@healthy("tied-weights", adam(5e-3))
def tied() -> Built:
    x = tokens(16, STEPS + 1, 24)
    return CharacterModel(), (x[:, :-1], x[:, 1:]), F.cross_entropy


CASES = collect(globals())
