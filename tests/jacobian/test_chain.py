"""Chains of blocks, and their branches."""

import pytest
import torch
from tests.jacobian.products import layers, operators

from signalprop.errors import SignalpropError
from signalprop.jacobian.chain import Chain, MinusIdentity
from signalprop.jacobian.operator import Dense


def test_chain_is_the_product():
    blocks = layers([5, 4, 6, 3], batch=2)
    chain = Chain(operators(blocks))
    J = blocks[2].double() @ blocks[1].double() @ blocks[0].double()
    v, u = torch.randn(2, 5, 7).double(), torch.randn(2, 3, 7).double()
    assert torch.allclose(chain.apply(v), J @ v)
    assert torch.allclose(chain.adjoint(u), J.mT @ u)
    assert (chain.rows, chain.columns, chain.widths) == (3, 5, (5, 4, 6, 3))


def test_minus_identity_is_the_branch():
    (J,) = layers([6, 6], batch=2)
    X = MinusIdentity(Dense(J.double()))
    v = torch.randn(2, 6, 3).double()
    assert torch.allclose(X.apply(v), J.double() @ v - v)
    assert torch.allclose(X.adjoint(v), J.double().mT @ v - v)
    with pytest.raises(SignalpropError, match="4 x 6"):
        MinusIdentity(Dense(torch.zeros(1, 4, 6)))
