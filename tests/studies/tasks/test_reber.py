"""Embedded Reber strings against a regular expression and a walk over a table of edges."""

from __future__ import annotations

import re

import pytest
import torch

from signalprop.errors import SignalpropError
from signalprop.studies.tasks import continual_reber, embedded_reber, reber_sets
from signalprop.studies.tasks.reber import LETTERS

# the same grammar twice more: as an expression, and as edges (node, letter, node)
TAIL = "(?:XT*VP)*(?:S|XT*VV)"
INNER = f"B(?:TS*X{TAIL}|PT*V(?:V|P{TAIL}))E"
EMBEDDED = re.compile(f"B(?:T{INNER}T|P{INNER}P)E")
EDGES = "0B1 1T2 2S2 2X4 1P3 3T3 3V5 4X3 4S6 5P4 5V6 6E7".split()


def legal_after(prefix: str) -> set[str]:
    """Letters that may follow a prefix of one embedded string, by a walk over the edges."""
    if prefix in {"", "B"}:
        return {"T", "P"} if prefix else {"B"}
    node = 0
    for i, letter in enumerate(prefix[2:]):
        node = {e[1]: int(e[2]) for e in EDGES if int(e[0]) == node}[letter]
        if node == 7:
            rest = prefix[3 + i :]
            return {"": {prefix[1]}, prefix[1]: {"E"}}[rest]
    return {e[1] for e in EDGES if int(e[0]) == node}


def as_letters(symbols: torch.Tensor) -> str:
    return "".join(LETTERS[s] for s in symbols.tolist())


def named(legal: torch.Tensor) -> set[str]:
    return {LETTERS[i] for i in legal.nonzero().flatten().tolist()}


def strings(batch):
    for i, length in enumerate(batch.lengths.tolist()):
        yield i, as_letters(batch.elements[i, :length]) + LETTERS[batch.targets[i, length - 1]]


def test_strings_are_grammatical():
    batch = embedded_reber().sample(1_500)
    seen = set()
    for i, string in strings(batch):
        seen.add(string)
        assert EMBEDDED.fullmatch(string)
        length = int(batch.lengths[i])
        assert as_letters(batch.targets[i, :length]) == string[1:]
        for step in range(length):
            assert named(batch.truth[i, step]) == legal_after(string[: step + 1])
    assert min(map(len, seen)) == 9
    assert {"BTBTXSETE", "BPBTXSEPE", "BTBPVVETE", "BPBPVVEPE"} <= seen
    assert {s[1] for s in seen} == {"T", "P"}


def test_padding():
    batch = embedded_reber().sample(50)
    inside = torch.arange(batch.mask.shape[1]) < batch.lengths.unsqueeze(1)
    assert batch.mask.equal(inside)
    assert bool((batch.elements[~inside] == -1).all())
    assert not batch.truth[~inside].any()
    assert batch.inputs[inside].sum(-1).eq(1).all()
    assert batch.inputs[~inside].eq(0).all()
    assert batch.inputs.argmax(-1)[inside].equal(batch.elements[inside])
    assert int(batch.lengths.max()) == batch.mask.shape[1]


def test_forks_are_even_and_mean_length_is_12():
    batch = embedded_reber().sample(20_000)
    assert float(batch.lengths.float().mean()) + 1 == pytest.approx(12, abs=0.12)
    fork = (batch.truth.sum(-1) == 2) & batch.mask
    first = batch.truth[fork].float().argmax(-1) == batch.targets[fork]
    assert float(first.float().mean()) == pytest.approx(0.5, abs=0.01)
    assert float((batch.elements[:, 1] == 1).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_lag_by_measure():
    task = embedded_reber()
    # the letter before the last is asked for where the inner E is read, and repeats the second
    distances = [(len(s) - 3) - 1 for _, s in strings(task.sample(500))]
    assert min(distances) == task.lag == task.nearest == 5


def test_score_of_hand_made_outputs():
    task = embedded_reber()
    batch = task.sample(200)
    right = batch.truth.float()
    assert task.evaluate(10 * right, batch).solved == 1
    assert task.criterion.met(task.evaluate(right, batch))
    # forgets the second letter: T and P are equally likely to come back
    blind = right.clone()
    for i, length in enumerate(batch.lengths.tolist()):
        blind[i, length - 2] = torch.tensor([0, 0.5, 0.5, 0, 0, 0, 0])
    score = task.evaluate(blind, batch)
    assert score.solved == 0
    assert score.error == pytest.approx(200 / int(batch.lengths.sum()))
    assert not task.criterion.met(score)
    assert task.evaluate(torch.zeros_like(right), batch).solved == 0
    assert task.evaluate(torch.full_like(right, torch.nan), batch).solved == 0
    # one of two legal letters only is not enough
    some = right.clone()
    some[7, 0] = torch.tensor([0, 1.0, 0, 0, 0, 0, 0])
    assert task.evaluate(some, batch).solved == pytest.approx(199 / 200)


def test_stream_is_strings_without_a_gap():
    batch = continual_reber(400).sample(6)
    assert batch.elements.shape == batch.mask.shape == (6, 400)
    assert batch.mask.all()
    assert batch.elements[:, 1:].equal(batch.targets[:, :-1])
    for row in range(6):
        stream = as_letters(batch.elements[row]) + LETTERS[batch.targets[row, -1]]
        start = 0
        ends = [m.end() for m in EMBEDDED.finditer(stream)]
        assert "".join(m.group() for m in EMBEDDED.finditer(stream)) == stream[: ends[-1]]
        for step in range(400):
            if step in ends:
                start = step
            prefix = stream[start : step + 1]
            expected = {"B"} if step + 1 in ends else legal_after(prefix)
            assert named(batch.truth[row, step]) == expected


@pytest.mark.parametrize("length", [9, 10, 77])
def test_streams_of_any_length(length):
    batch = continual_reber(length).sample(300)
    assert batch.elements.shape == (300, length)
    assert batch.lengths.tolist() == [length] * 300
    assert batch.elements[:, 0].eq(0).all()  # each begins with a string
    assert len({as_letters(row) for row in batch.elements}) > 1


def test_sets_of_the_paper():
    train, test = reber_sets(generator=torch.Generator().manual_seed(3))
    known = {s for _, s in strings(train)}
    found = [s for _, s in strings(test)]
    assert len(train) == len(test) == len(found) == 256
    assert not known & set(found)
    assert all(EMBEDDED.fullmatch(s) for s in found)
    assert int(test.lengths.max()) == test.elements.shape[1]


def test_bad_parameters():
    with pytest.raises(SignalpropError, match="length has to be a whole number of at least 9"):
        continual_reber(8)
    with pytest.raises(SignalpropError, match="test has to be a whole number of at least 1"):
        reber_sets(3, 0)
