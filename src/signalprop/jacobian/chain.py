"""Operators made of operators: the product of blocks, and a residual block's branch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor

from signalprop.errors import SignalpropError
from signalprop.jacobian.operator import Operator


class Chain:
    """J = J_L ... J_1 of blocks given from the input end up, as one operator.

    `apply` goes up through all blocks, `adjoint` down; cost per vector: one of each block's own.

    Args:
        blocks: operators on the same samples; each takes what the one before it gives.

    Raises:
        SignalpropError: where there are none, or two neighbours do not fit.
    """

    def __init__(self, blocks: Sequence[Operator]) -> None:
        if not blocks:
            raise SignalpropError("a product of Jacobians needs at least one block")
        for i, (below, above) in enumerate(itertools.pairwise(blocks), start=1):
            if below.rows != above.columns or below.batch != above.batch:
                raise SignalpropError(
                    f"block {i} gives {below.rows} elements of {below.batch} samples, "
                    f"block {i + 1} takes {above.columns} of {above.batch}"
                )
            if below.device != above.device:
                raise SignalpropError(
                    f"block {i} is on {below.device}, block {i + 1} on {above.device}"
                )
        self.blocks = tuple(blocks)
        self.batch, self.device = blocks[0].batch, blocks[0].device
        self.rows, self.columns = blocks[-1].rows, blocks[0].columns
        self.dtype = min((b.dtype for b in blocks), key=lambda dtype: dtype.itemsize)

    @property
    def widths(self) -> tuple[int, ...]:
        """Elements per sample at the input, after every block, and so at the output."""
        return (self.columns, *(block.rows for block in self.blocks))

    def apply(self, vectors: Tensor) -> Tensor:
        """J v: (batch, columns, r) -> (batch, rows, r)."""
        for block in self.blocks:
            vectors = block.apply(vectors)
        return vectors

    def adjoint(self, vectors: Tensor) -> Tensor:
        """J^T u: (batch, rows, r) -> (batch, columns, r)."""
        for block in reversed(self.blocks):
            vectors = block.adjoint(vectors)
        return vectors


class MinusIdentity:
    """X = J - I of a square J: the branch of a residual block, without its skip.

    Where the branch is far smaller than 1, X carries J's rounding, eps absolute.

    Args:
        block: J, with as many rows as columns.

    Raises:
        SignalpropError: where J is not square.
    """

    def __init__(self, block: Operator) -> None:
        if block.rows != block.columns:
            raise SignalpropError(
                f"a {block.rows} x {block.columns} Jacobian has no identity to take away"
            )
        self.block = block
        self.batch, self.rows, self.columns = block.batch, block.rows, block.columns
        self.dtype, self.device = block.dtype, block.device

    def apply(self, vectors: Tensor) -> Tensor:
        """X v = J v - v."""
        out = self.block.apply(vectors)
        return out - vectors.to(out.dtype)

    def adjoint(self, vectors: Tensor) -> Tensor:
        """X^T u = J^T u - u."""
        out = self.block.adjoint(vectors)
        return out - vectors.to(out.dtype)
