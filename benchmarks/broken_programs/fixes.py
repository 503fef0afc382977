"""The solutions AutoTrainer tries, as changes of a description.

AutoTrainer (Zhang et al., ICSE 2021) mends a vanishing or exploding gradient and a dying ReLU by
trying, one after the other: another activation with its initialisation (SELU with lecun_uniform,
then ReLU with he_uniform), then batch normalisation. Which of them mended which model was not
published, so the first stands for the fix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from benchmarks.broken_programs.spec import Spec

WEIGHTED = ("Dense", "Conv2D")
INITIAL = {"selu": "lecun_uniform", "relu": "he_uniform"}


def derive(spec: Spec, solution: str) -> Spec:
    """The same program with one of AutoTrainer's solutions.

    Args:
        spec: the sick program.
        solution: `selu`, `relu` or `batch-norm`.

    Returns:
        The changed program; its head stays as it is.
    """
    last = max(i for i, layer in enumerate(spec.layers) if layer["type"] in WEIGHTED)
    return replace(spec, layers=tuple(_changed(spec.layers, last, solution)))


def _changed(
    layers: tuple[Mapping[str, Any], ...], last: int, solution: str
) -> Iterator[Mapping[str, Any]]:
    for i, layer in enumerate(layers):
        if i >= last:
            yield layer
        elif solution == "batch-norm":
            yield layer
            if layer["type"] in WEIGHTED:
                yield {"type": "BatchNormalization"}
        elif layer["type"] in WEIGHTED:
            changed = dict(layer) | {"kernel_initializer": INITIAL[solution]}
            yield changed | ({"activation": solution} if "activation" in layer else {})
        elif layer["type"] == "Activation":
            yield {"type": "Activation", "activation": solution}
        else:
            yield layer
