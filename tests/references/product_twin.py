"""Log-spectra of products from an arithmetic that loses nothing: mpmath, 30 digits beyond need."""

from __future__ import annotations

import math

import mpmath
import torch
from torch import Tensor


def log_singular_values(blocks: list[Tensor], digits: int = 120) -> list[float]:
    """ln s_i of J_L ... J_1 of matrices (m, n) given from the input end up; -inf for zeros.

    A zero of a rank-deficient product comes out as rounding, about 10^-digits of the largest.
    """
    with mpmath.workdps(digits):
        product = mpmath.matrix(blocks[0].double().tolist())
        for block in blocks[1:]:
            product = mpmath.matrix(block.double().tolist()) * product
        s = mpmath.svd_r(product, compute_uv=False)
        smallest = s[0] * mpmath.mpf(10) ** (10 - digits)
        return [float(mpmath.log(v)) if v > smallest else -math.inf for v in s]


def log_values(blocks: list[Tensor], digits: int = 120) -> Tensor:
    """The same of matrices (batch, m, n): (batch, the narrowest width)."""
    narrow = min(min(block.shape[1:]) for block in blocks)
    rows = [
        log_singular_values([block[i] for block in blocks], digits)[:narrow]
        for i in range(len(blocks[0]))
    ]
    return torch.tensor(rows, dtype=torch.float64)


def profile(blocks: list[Tensor], digits: int = 120) -> Tensor:
    """(L + 1, n): ln |R_ii| of J_l ... J_1 V at every depth, V the right singular vectors."""
    with mpmath.workdps(digits):
        matrices = [mpmath.matrix(block.double().tolist()) for block in blocks]
        product = matrices[0]
        for matrix in matrices[1:]:
            product = matrix * product
        _, _, Vh = mpmath.svd_r(product)
        here = Vh.T
        rows = [[0.0] * here.cols]
        for matrix in matrices:
            here = matrix * here
            R = mpmath.qr(here)[1]
            rows.append([float(mpmath.log(abs(R[i, i]))) for i in range(here.cols)])
        return torch.tensor(rows, dtype=torch.float64)
