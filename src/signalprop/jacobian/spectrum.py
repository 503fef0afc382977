"""`spectrum`: the singular values of a network's Jacobians, end to end and block by block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from signalprop.capture.batch import Loss
from signalprop.capture.trace import Block
from signalprop.errors import SignalpropError
from signalprop.jacobian import exact, krylov, norms
from signalprop.jacobian.between import Between, between
from signalprop.jacobian.bounds import certificate
from signalprop.jacobian.chain import MinusIdentity
from signalprop.jacobian.density import density
from signalprop.jacobian.diagonal import diagonal_of
from signalprop.jacobian.operator import Jacobian, Operator, working
from signalprop.jacobian.product import log_spectrum
from signalprop.jacobian.spectra import (
    BlockSpectrum,
    DeepSpectrum,
    Distribution,
    Estimate,
    Spectra,
    Spectrum,
)
from signalprop.jacobian.values import Values

#: up to this many singular values all of them are measured, from the matrix
WIDE = 512
#: bytes that the matrices of one Jacobian may take before the whole is no longer the default
ROOM = 1 << 28
#: a matrix with so few rows is formed without a look at whether it is diagonal
NARROW = 64
#: relative error of the largest singular values of a block that is good enough
BLOCK_TOLERANCE = 1e-2
#: vectors at a time, and in all for each value that is asked for, to find those of a wide block:
#: within 2% for the largest and 7% for the last where they lie close together, as measured
BLOCK_AT_ONCE, BLOCK_VECTORS = 2, 9
#: shares at which a distribution is kept
SHARES = np.array([0.01, 0.05, *np.arange(0.1, 1.0, 0.1), 0.95, 0.99])

Progress = Callable[[str], None]


def spectrum(
    model: nn.Module,
    batch: Any,
    loss: Loss = None,
    *,
    of: str | None = None,
    wrt: str | None = None,
    k: int = 8,
    smallest: int = 0,
    whole: bool | None = None,
    blocks: bool = True,
    profile: bool = True,
    distribution: bool = False,
    samples: int | None = 8,
    batch_norm: str = "frozen",
    batch_dim: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Spectra:
    """Measure the singular values of J = d of / d wrt, and of every block of the spine between.

    An error signal passes a block as J^T, a small change of the input as J. Singular values near
    one hand both on unchanged in length; equal ones keep angles too (dynamical isometry: Saxe et
    al. 2014; Pennington, Schoenholz & Ganguli 2017).

    Args:
        model: any module; afterwards bit for bit what it was.
        batch: as for `trace`; a target is not needed.
        loss: as for `trace`; not needed.
        of: name of the site nearer to the output; the last of the spine unless given.
        wrt: name of the site nearer to the input; the first of the spine unless given.
        k: how many of the largest, where not all are measured.
        smallest: how many of the smallest; they need the whole matrix.
        whole: whether to measure all of them; None does where there are at most 512 and the
            matrices take less than 256 MiB.
        blocks: whether to measure every block, and their product by sweeps.
        profile: whether to follow every direction of that product over depth; one more sweep,
            beyond 256 directions several times as dear as the others.
        distribution: whether to estimate how all values are distributed where `whole` is not given.
        samples: of how many samples of the batch, spread over it; None takes all.
        batch_norm: `frozen` holds BatchNorm at the statistics of this batch, `eval` at the running
            ones.
        batch_dim: dimension of the samples, as for `trace`.
        seed: of the random vectors.
        progress: called with what is being measured.

    Returns:
        The spectra; every estimate carries its error.

    Raises:
        SignalpropError: a site does not exist, no gradient runs between the two, samples look at
            each other, or the matrices do not fit into memory.

    Note:
        Cost: all values of one Jacobian take min(m, n) backward passes, in batches; the k largest
        about 6 k to 20 k; the sweeps r passes each way, where r is the narrowest width or k.

    Examples:
        >>> import torch, signalprop as sp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
        >>> seen = sp.spectrum(net, torch.randn(16, 4))
        >>> seen.between.values.shape
        (8, 4)
        >>> [block.end for block in seen.blocks]
        ['0', '1', '2']
    """
    if k < 1:
        raise SignalpropError(f"k={k}; ask for one singular value at least")
    if smallest < 0 or (samples is not None and samples < 1):
        raise SignalpropError("smallest and samples are counts; give whole numbers from 0 and 1 up")
    say = progress or (lambda phase: None)
    plan = _Plan(k, smallest, whole, distribution, torch.Generator().manual_seed(seed))
    say("one pass, seen")
    with between(
        model, batch, loss, samples=samples, batch_norm=batch_norm, batch_dim=batch_dim
    ) as live:
        spine = live.trace.spine
        if (of is None or wrt is None) and len(spine) < 2:
            raise SignalpropError(
                "the network has no chain of layers that every path runs through; name two sites "
                "with of= and wrt="
            )
        of, wrt = of or spine[-1], wrt or spine[0]
        say(f"{wrt} to {of}")
        end = plan.measure(live.jacobian(of, wrt))
        found: list[BlockSpectrum] = []
        skipped: dict[str, str] = {}
        deep = promise = None
        inside = _blocks_between(live, of, wrt) if blocks else ()
        for block in inside:
            say(f"{block.start} to {block.end}")
            try:
                adds = block.residual and live.adds_as_it_is(block.end, block.start)
                found.append(plan.block(live.jacobian(block.end, block.start), block, adds))
            except SignalpropError as error:
                skipped[block.end] = str(error)
        if len(inside) > 1 and not skipped:
            say("the product of all blocks, in sweeps")
            deep = _deep(live, inside, plan, profile)
            promise = certificate(found)
        return Spectra(
            model=live.trace.model,
            samples=live.batch,
            between=end,
            blocks=tuple(found),
            deep=deep,
            certificate=promise,
            skipped=skipped,
            notes=live.notes,
        )


def _blocks_between(live: Between, of: str, wrt: str) -> tuple[Block, ...]:
    """The blocks of the spine from one of its sites to another; none where one is not on it."""
    spine = live.trace.spine
    if of not in spine or wrt not in spine:
        return ()
    return live.trace.blocks[spine.index(wrt) : spine.index(of)]


@dataclass(frozen=True)
class _Plan:
    """What is wanted of every Jacobian."""

    k: int
    smallest: int
    whole: bool | None
    distribution: bool
    generator: torch.Generator

    def measure(self, op: Jacobian) -> Spectrum:
        """One Jacobian."""
        return self._of(op, op.of.name, op.wrt.name, 1e-4)

    def block(self, op: Jacobian, block: Block, adds: bool) -> BlockSpectrum:
        """One block; where it adds its input as it is, also without the identity."""
        branch = None
        if adds and op.rows == op.columns:
            branch = self._of(MinusIdentity(op), op.of.name, op.wrt.name, BLOCK_TOLERANCE)
        found = self._of(op, op.of.name, op.wrt.name, BLOCK_TOLERANCE)
        return BlockSpectrum(block.start, block.end, block.residual, found, branch)

    def _diagonal(self, op: Operator, of: str, wrt: str, diagonal: Tensor) -> Spectrum:
        """Of an operation element by element: the sizes of its slopes."""
        s = diagonal.abs().sort(dim=1, descending=True).values
        eps = torch.finfo(op.dtype).eps
        kept = s if s.shape[1] <= WIDE else s[:, : self.k]
        none = np.zeros(op.batch)
        found = Values(
            kept,
            eps * kept,
            torch.ones_like(kept, dtype=torch.bool),
            "its diagonal",
            torch.ones(op.batch, dtype=torch.bool),
            3,
        )
        least = _np(s.flip(1)[:, : max(self.smallest, 1)])
        frobenius = Estimate(_np(s.square().sum(1).sqrt()), none)
        fourth = Estimate(_np(s.square().square().sum(1)), none)
        return self._made(op, of, wrt, found, least, frobenius, fourth, None)

    def _of(self, op: Operator, of: str, wrt: str, tol: float) -> Spectrum:
        diagonal = diagonal_of(op, self.generator) if op.rows > NARROW else None
        if diagonal is not None:
            return self._diagonal(op, of, wrt, diagonal)
        if _all(op, self.whole):
            found = exact.singular_values(op)
            squares = found.values.square()
            none = torch.zeros(op.batch, dtype=torch.float64)
            frobenius = Estimate(_np(squares.sum(1).sqrt()), _np(none))
            fourth = Estimate(_np(squares.square().sum(1)), _np(none))
            least = _np(found.values.flip(1)[:, : self.smallest])
            return self._made(op, of, wrt, found, least, frobenius, fourth, None)
        few = BLOCK_AT_ONCE if tol == BLOCK_TOLERANCE else None
        found = krylov.spectrum_top(
            op, self.k, tol=tol, block=few, vectors=few and BLOCK_VECTORS * self.k,
            generator=self.generator,
        )  # fmt: skip
        sums = norms.moments(op, tol=max(tol, 0.01), generator=self.generator)
        value, error = sums.frobenius
        assert sums.fourths is not None
        assert sums.fourths_error is not None
        least = np.zeros((op.batch, 0))
        if self.smallest:
            least = _np(exact.bottom(op, self.smallest).values.flip(1))
        return self._made(
            op,
            of,
            wrt,
            found,
            least,
            Estimate(_np(value), _np(error)),
            Estimate(_np(sums.fourths), _np(sums.fourths_error)),
            self._distribution(op),
        )

    def _made(
        self,
        op: Operator,
        of: str,
        wrt: str,
        found: Values,
        least: np.ndarray,
        frobenius: Estimate,
        fourth: Estimate,
        distribution: Distribution | None,
    ) -> Spectrum:
        side = min(op.rows, op.columns)
        whole = found.values.shape[1] == side
        diagonal = found.method == "its diagonal"
        words = {"exact": "all of them, from the matrix", "krylov": "block Krylov"}
        eps = torch.finfo(op.dtype).eps
        return Spectrum(
            of=of,
            wrt=wrt,
            rows=op.rows,
            columns=op.columns,
            values=_np(found.values),
            errors=_np(found.errors),
            smallest=least,
            whole=whole,
            # of a diagonal each value is known by itself
            resolution=_np(found.values[:, 0])
            * (0 if diagonal else eps * max(op.rows, op.columns)),
            frobenius=frobenius,
            fourth=fourth,
            method=words.get(found.method, found.method),
            distribution=distribution,
        )

    def _distribution(self, op: Operator) -> Distribution | None:
        if not self.distribution:
            return None
        found = density(op, generator=self.generator)
        quantiles, errors = found.quantiles(tuple(SHARES))
        return Distribution(SHARES, _np(quantiles), _np(errors), _np(found.zero[0]))


def _all(op: Operator, whole: bool | None) -> bool:
    side = min(op.rows, op.columns)
    needed = op.batch * op.rows * op.columns * working(op.dtype).itemsize
    return bool(whole) if whole is not None else side <= WIDE and needed <= ROOM


def _deep(live: Between, inside: tuple[Block, ...], plan: _Plan, profile: bool) -> DeepSpectrum:
    operators = [live.jacobian(block.end, block.start) for block in inside]
    narrow = min(operators[0].columns, *(op.rows for op in operators))
    every = narrow <= WIDE if plan.whole is None else plan.whole
    r = narrow if every else min(plan.k, narrow)
    # where not all are asked for, the errors say what a few sweeps have left unfinished
    most = 8 if r == narrow else 3
    found = log_spectrum(operators, r, max_sweeps=most, profile=profile, generator=plan.generator)
    return DeepSpectrum(
        sites=(inside[0].start, *(block.end for block in inside)),
        log_values=_np(found.log_values),
        errors=_np(found.errors),
        profile=None if found.profile is None else _np(found.profile),
        whole=r == min(operators[0].columns, operators[-1].rows),
        sweeps=found.sweeps,
    )


def _np(x: Tensor) -> np.ndarray:
    return x.detach().to("cpu", torch.float64).numpy()
