"""Inputs in every form that a recurrent layer takes, and what has to agree."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

FORMS = ["batched", "unbatched", "packed"]


def options(**axes: list[Any]) -> Iterator[dict[str, Any]]:
    """All combinations of layers, directions, batch_first and of what else is given."""
    axes = {
        "num_layers": [1, 2],
        "bidirectional": [False, True],
        "batch_first": [False, True],
        **axes,
    }
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def sequences(
    form: str, features: int, *, batch_first: bool, length: int, dtype: torch.dtype
) -> Tensor | PackedSequence:
    """Three random sequences, or one; packed ones in no order of length, two as long."""
    if form == "packed":
        lengths = [length, 2 * length, length]
        return pack_sequence(
            [torch.randn(n, features, dtype=dtype) for n in lengths], enforce_sorted=False
        )
    shape = (length,) if form == "unbatched" else (3, length) if batch_first else (length, 3)
    return torch.randn(*shape, features, dtype=dtype)


def flat(value: Any) -> list[Tensor]:
    """The tensors of what a layer returns; of a packed sequence its data."""
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value for t in flat(part)]


def leaf(x: Tensor | PackedSequence) -> tuple[Any, Tensor]:
    """The same input, and the tensor in it that gradients are asked for."""
    data = flat(x)[0].detach().requires_grad_()
    return (x._replace(data=data) if isinstance(x, PackedSequence) else data), data


def gradients(results: Any, wrt: list[Tensor]) -> list[Tensor]:
    """Of a fixed random sum of all results."""
    g = torch.Generator().manual_seed(5)
    total = sum(
        (r * torch.randn(r.shape, generator=g, dtype=torch.float64).to(r)).sum()
        for r in flat(results)
    )
    return list(torch.autograd.grad(total, wrt))


def compiles(layer: nn.Module, x: Tensor) -> None:
    """Compiled, results and gradients are the same; skipped where there is no working compiler."""
    want = layer(x)
    try:
        got = torch.compile(layer)(x)
    except torch._dynamo.exc.BackendCompilerFailed as failed:
        pytest.skip(f"the compiler's backend does not work here: {failed}"[:200])
    wrt = list(layer.parameters())
    for a, b in zip(flat(got), flat(want), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(gradients(got, wrt), gradients(want, wrt), strict=True):
        torch.testing.assert_close(a, b)
