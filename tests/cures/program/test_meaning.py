"""What a loss is, known by what it does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.cures.program.programs import by_hand, keras_binary, keras_categorical
from torch import nn

from signalprop.cures.program.meaning import meaning

ONE_HOT = F.one_hot(torch.arange(12) % 4, 4).float()


@pytest.mark.parametrize(
    ("loss", "target", "found"),
    [
        (keras_categorical, ONE_HOT, "probability_nll"),
        (keras_binary, ONE_HOT, "binary_cross_entropy"),
        (by_hand, torch.randn(12, 4), "mse_loss"),
        (by_hand, ONE_HOT, "mse_loss"),
        (nn.L1Loss(reduction="sum"), torch.randn(12, 4), "l1_loss"),
        (F.cross_entropy, torch.arange(12) % 4, "cross_entropy"),
        (nn.CrossEntropyLoss(), ONE_HOT, "cross_entropy"),
        (F.nll_loss, torch.arange(12) % 4, "nll_loss"),
        (nn.BCEWithLogitsLoss(), ONE_HOT, "binary_cross_entropy_with_logits"),
        (nn.BCELoss(), ONE_HOT, "binary_cross_entropy"),
        (nn.HuberLoss(delta=1.0), torch.randn(12, 4), "huber_loss"),
        (lambda output, target: output.exp().mean(), ONE_HOT, None),
        (None, ONE_HOT, None),
    ],
)
def test_a_loss_is_known_by_what_it_does(loss, target, found):
    state = torch.get_rng_state()
    assert meaning(loss, torch.zeros(12, 4), target) == found
    assert torch.equal(state, torch.get_rng_state())
