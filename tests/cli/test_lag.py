"""`signalprop diagnose --lag --clip`: what a user knows of a task over time."""

import pytest

TRAIN = """
import torch, torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])

def build():
    return Net(), (torch.randn(16, 40, 4), torch.randint(3, (16,))), F.cross_entropy
"""


def test_a_lag_is_handed_on(write, run):
    write(TRAIN)
    plain = run("diagnose", "train.py:build", "--quiet")
    assert plain.status == 0
    assert "SP303" not in plain.out
    told = run("diagnose", "train.py:build", "--quiet", "--lag", "39", "--clip", "1")
    assert "issue SP303 Horizon shorter than the lag" in told.out
    assert "the task needs 39 steps" in told.out


@pytest.mark.parametrize(
    ("words", "told"),
    [(("--lag", "0"), "whole number from 1 up"), (("--clip", "-1"), "a number above 0")],
)
def test_what_is_out_of_range(write, refused, words, told):
    write(TRAIN)
    assert told in refused("train.py:build", *words, command="diagnose")
