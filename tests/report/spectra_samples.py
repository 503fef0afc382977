"""Spectra to look at: made by hand from random matrices, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from signalprop.jacobian.bounds import certificate
from signalprop.jacobian.spectra import (
    BlockSpectrum,
    DeepSpectrum,
    Estimate,
    Spectra,
    Spectrum,
)

SAMPLES = 4


def spectrum(maps: np.ndarray, wrt: str, of: str, *, k: int | None = None) -> Spectrum:
    """The spectrum of matrices (samples, m, n); all of it, or the k largest values."""
    values = np.linalg.svd(maps, compute_uv=False)
    count = values.shape[1] if k is None else k
    squares = (values**2).sum(axis=1)
    exact = np.zeros(len(maps))
    return Spectrum(
        of=of,
        wrt=wrt,
        rows=maps.shape[1],
        columns=maps.shape[2],
        values=values[:, :count],
        errors=np.full_like(values[:, :count], 1e-16) * values[:, :1],
        smallest=np.empty((len(maps), 0)),
        whole=k is None,
        resolution=values[:, 0] * maps.shape[1] * np.finfo(float).eps,
        frobenius=Estimate(np.sqrt(squares), exact),
        fourth=Estimate((values**4).sum(axis=1), exact),
        method="exact, float64" if k is None else f"block Krylov, {k} largest",
    )


def _swept(maps: Sequence[np.ndarray], sites: Sequence[str], sweeps: int = 20) -> DeepSpectrum:
    """The log-spectrum of a product by QR; the last sweep goes from the input up."""
    samples, n = len(maps[0]), maps[0].shape[2]
    Q = np.broadcast_to(np.eye(n), (samples, n, n))
    profile = np.zeros((samples, len(maps) + 1, n))
    for _ in range(sweeps):
        profile = np.zeros((samples, len(maps) + 1, n))
        for i, J in enumerate(maps):
            Q, R = np.linalg.qr(J @ Q)
            with np.errstate(divide="ignore"):
                step = np.log(np.abs(np.diagonal(R, axis1=1, axis2=2)))
            profile[:, i + 1] = profile[:, i] + step
        for J in reversed(maps):
            Q, _ = np.linalg.qr(J.transpose(0, 2, 1) @ Q)
    order = np.argsort(-profile[:, -1], axis=1)
    profile = np.take_along_axis(profile, order[:, None, :], axis=2)
    last = profile[:, -1]
    return DeepSpectrum(tuple(sites), last, np.full_like(last, 1e-3), profile, True, sweeps)


def _whole(
    blocks: Sequence[BlockSpectrum], maps: Sequence[np.ndarray], names: Sequence[str], model: str
) -> Spectra:
    product = maps[0]
    for J in maps[1:]:
        product = J @ product
    return Spectra(
        model=model,
        samples=len(product),
        between=spectrum(product, names[0], names[-1]),
        blocks=tuple(blocks),
        deep=_swept(maps, names),
        certificate=None,
        skipped={},
        notes=(),
    )


def deep_mlp(layers: int = 30, width: int = 24, gain: float = 1.0) -> Spectra:
    """Linear layers and tanh in turns, `2 * layers` blocks."""
    random = np.random.default_rng(0)
    names, blocks, maps = ["input"], [], []
    for i in range(2 * layers):
        if i % 2:
            slopes = 1 - np.tanh(random.normal(size=(SAMPLES, width)) * 0.7) ** 2
            J = slopes[:, :, None] * np.eye(width)
        else:
            weight = random.normal(size=(width, width)) * gain / np.sqrt(width)
            J = np.broadcast_to(weight, (SAMPLES, width, width))
        names.append(str(i))
        maps.append(J)
        blocks.append(BlockSpectrum(names[-2], names[-1], False, spectrum(J, *names[-2:]), None))
    return _whole(blocks, maps, names, "Sequential")


def residual(layers: int = 12, width: int = 16, strength: float = 0.4) -> Spectra:
    """Blocks I + X; a strength below 1/2 lets the certificate promise something from below."""
    random = np.random.default_rng(1)
    names, blocks, maps = ["embed"], [], []
    for i in range(layers):
        X = random.normal(size=(SAMPLES, width, width)) * strength / (2 * np.sqrt(width))
        J = np.eye(width) + X
        names.append(f"h.{i}.add")
        branch = spectrum(X, *names[-2:])
        maps.append(J)
        blocks.append(BlockSpectrum(names[-2], names[-1], True, spectrum(J, *names[-2:]), branch))
    made = _whole(blocks, maps, names, "Residual")
    return dataclasses.replace(made, certificate=certificate(blocks))


def conv(blocks: int = 8) -> Spectra:
    """A convolutional net of which the four largest values are known, and no log-spectrum."""
    made = deep_mlp(layers=blocks // 2, width=32)
    few = [
        dataclasses.replace(
            block,
            end=f"layer{1 + i // 4}.{i % 4}.conv",
            spectrum=dataclasses.replace(
                block.spectrum,
                values=block.spectrum.values[:, :4],
                errors=block.spectrum.values[:, :4] * 0.005,
                whole=False,
                rows=3136,
                columns=3136,
                method="block Krylov, 4 largest",
            ),
        )
        for i, block in enumerate(made.blocks)
    ]
    s = made.between
    between = dataclasses.replace(
        s, values=s.values[:, :4], errors=s.values[:, :4] * 0.005, whole=False, rows=10,
        columns=3072, method="block Krylov, 4 largest",
    )  # fmt: skip
    return dataclasses.replace(
        made, model="ConvNet", between=between, blocks=tuple(few), deep=None,
        notes=("BatchNorm uses its running statistics.",),
    )  # fmt: skip


def broken() -> Spectra:
    """Directions that are exactly zero, blocks that could not be measured, a hostile name."""
    made = deep_mlp(layers=4, width=8)
    deep = made.deep
    assert deep is not None
    log_values, profile = deep.log_values.copy(), deep.profile.copy()
    log_values[:, 5:] = -np.inf
    profile[:, 4:, 5:] = -np.inf
    first = made.blocks[0]
    values = first.spectrum.values.copy()
    values[:, 5:] = 0.0
    zero = dataclasses.replace(first.spectrum, values=values)
    evil = "</script><img src=x onerror=alert(1)>\x1b[2J"
    return dataclasses.replace(
        made,
        model=evil,
        blocks=(dataclasses.replace(first, spectrum=zero, end=evil), *made.blocks[1:-1]),
        deep=dataclasses.replace(deep, log_values=log_values, profile=profile),
        skipped={"7": "argmax is not differentiable", "8": "argmax is not differentiable"},
        notes=(f"[bold]{evil}[/bold]",),
    )


def isometry() -> Spectra:
    """One orthogonal map."""
    Q, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(SAMPLES, 12, 12)))
    return Spectra("Linear", SAMPLES, spectrum(Q, "input", "output"), (), None, None, {}, ())
