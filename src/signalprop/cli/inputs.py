"""Random data of a given shape, for a target that makes a model only: `--input 32x3x32x32`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from signalprop.capture import batch as batches
from signalprop.capture.observe import eager, unwrapped
from signalprop.capture.sandbox import untouched
from signalprop.cli import blame
from signalprop.cli.built import Built
from signalprop.errors import SignalpropError, TargetError

_DTYPES = {
    "int": torch.int64,
    "long": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
    "float": torch.float32,
    "float32": torch.float32,
    "float64": torch.float64,
    "double": torch.float64,
    "half": torch.float16,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_FORM = "write sizes joined by x, batch first, e.g. 32x3x32x32, or 8x128:int for whole numbers"


@dataclass(frozen=True)
class Shape:
    """One `--input`.

    Attributes:
        text: as written.
        sizes: the shape.
        dtype: the dtype; None takes the one of the model's parameters.
    """

    text: str
    sizes: tuple[int, ...]
    dtype: torch.dtype | None


def parse(text: str) -> Shape:
    """Read one `--input`.

    Args:
        text: e.g. `32x3x32x32` or `8x128:int`.

    Returns:
        Sizes and dtype.

    Raises:
        TargetError: it has another form.
    """
    sizes, _, name = text.strip().lower().partition(":")
    if not re.fullmatch(r"\d+([x×,]\d+)*", sizes):
        raise TargetError(f"--input {text!r} is not a shape; {_FORM}")
    if name and name not in _DTYPES:
        raise TargetError(f"--input {text!r}: {name!r} is none of {', '.join(_DTYPES)}")
    shape = tuple(int(size) for size in re.split("[x×,]", sizes))
    if 0 in shape:
        raise TargetError(f"--input {text!r} has a size of 0; every size must be at least 1")
    return Shape(text, shape, _DTYPES[name] if name else None)


def complete(
    made: Built,
    shapes: list[str],
    *,
    classes: int | None = None,
    vocab: int | None = None,
    batch_dim: int = 0,
    seed: int = 0,
    needs_loss: bool = True,
) -> Built:
    """Give a model without data random inputs, and labels where it has no loss of its own.

    Inputs are standard normal, so an untrained network sees what a normalised data set would give
    it; labels are drawn evenly from the classes.

    Args:
        made: what the user's code made.
        shapes: the `--input` options.
        classes: number of classes.
        vocab: integer inputs are below it; None looks at the model's embeddings.
        batch_dim: dimension of the samples.
        seed: seed of the data.
        needs_loss: whether nothing can be measured without one.

    Returns:
        The same with a batch and a loss.

    Raises:
        TargetError: what is asked for does not go together.
    """
    if made.batch is not None:
        if shapes:
            raise TargetError(f"{made.source} makes a batch already; leave out --input")
        if classes is not None or vocab is not None:
            option = "--classes" if classes is not None else "--vocab"
            raise TargetError(f"{made.source} makes a batch already; leave out {option}")
        return made
    if not shapes:
        raise TargetError(
            f"{made.source} gives no data; say what the model takes, e.g. --input 32x3x32x32 "
            "--classes 10, or return (model, batch, loss)"
        )
    if classes is not None and classes < 1:
        raise TargetError(f"--classes {classes} must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    inputs = _draw([parse(text) for text in shapes], made.model, vocab, generator)
    needs_target = batches.takes_target(made.loss)
    if classes is None:
        data = inputs[0] if len(inputs) == 1 else tuple(inputs)
        if not needs_loss:
            return replace(made, batch=data, loss=None)
        if needs_target:
            raise TargetError(
                f"the loss of {made.source} compares with a target; add --classes N for random "
                "labels, or return a batch (inputs, target)"
            )
        _check_own_loss(made, inputs, batch_dim)
        return replace(made, batch=data)
    if made.loss is not None and not needs_target:
        raise TargetError(f"the loss of {made.source} takes no target; leave out --classes")
    loss = made.loss or F.cross_entropy
    output = _probe(made, inputs, batch_dim)
    if output is None:  # the model raised; `diagnose` says where and why
        labels = torch.randint(classes, inputs[0].shape[:1], generator=generator)
        return replace(made, batch=(*inputs, labels), loss=loss)
    labels, last = _labels(output, classes, batch_dim, generator)
    if last and made.loss is None:
        loss = _last
    return replace(made, batch=(*inputs, labels), loss=loss)


def _draw(
    shapes: list[Shape], model: torch.nn.Module, vocab: int | None, generator: torch.Generator
) -> list[Tensor]:
    floating = [p.dtype for p in model.parameters() if p.is_floating_point()]
    default = floating[0] if floating else torch.float32
    whole = [s for s in shapes if s.dtype in (torch.int64, torch.int32)]
    limits = iter(_limits(model, len(whole), vocab))
    if vocab is not None and not whole:
        raise TargetError("--vocab is for integer inputs; mark one with :int, e.g. 8x128:int")
    inputs = []
    for shape in shapes:
        dtype = shape.dtype or default
        try:
            if dtype in (torch.int64, torch.int32):
                high = next(limits)
                x = torch.randint(high, shape.sizes, generator=generator, dtype=dtype)
            elif dtype == torch.bool:
                x = torch.randint(2, shape.sizes, generator=generator).bool()
            else:
                x = torch.randn(shape.sizes, generator=generator).to(dtype)
        except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
            raise TargetError(
                f"--input {shape.text} does not fit into memory; give a smaller batch, 32 samples "
                "are enough"
            ) from error
        inputs.append(x)
    return inputs


def _limits(model: torch.nn.Module, count: int, vocab: int | None) -> list[int]:
    """Upper limits of the integer inputs: `--vocab`, or sizes of the model's embeddings."""
    if not count:
        return []
    if vocab is not None:
        if vocab < 1:
            raise TargetError(f"--vocab {vocab} must be at least 1")
        return [vocab] * count
    tables = (torch.nn.Embedding, torch.nn.EmbeddingBag)
    sizes = [m.num_embeddings for m in model.modules() if isinstance(m, tables)]
    if not sizes:
        raise TargetError(
            "the model has no nn.Embedding to take the range of its integer input from; give it "
            "with --vocab N"
        )
    # one table per input: users and items; otherwise the largest holds the words, and the others
    # positions or segments
    return sizes if count == len(sizes) else [max(sizes)] * count


def _probe(made: Built, inputs: list[Tensor], batch_dim: int) -> Any:
    """The model's output, from one forward pass that leaves nothing behind; None if it raised."""
    model = unwrapped(made.model)
    try:
        with untouched(model), eager(), torch.no_grad():
            data = batches.read(
                inputs[0] if len(inputs) == 1 else tuple(inputs), model, None, batch_dim=batch_dim
            )
            args = (*data.args, data.target) if data.has_target else data.args
            return model(*args)
    except Exception as error:
        if blame.out_of_memory(error):
            raise
        return None


def _labels(
    output: Any, classes: int, batch_dim: int, generator: torch.Generator
) -> tuple[Tensor, bool]:
    """Random labels for an output, and whether its classes lie in the last of many dimensions."""
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise TargetError(
            f"the model returned {batches.describe(output)}, and --classes needs a tensor of "
            "logits; return (model, batch, loss) with a loss that takes this output"
        )
    shape = tuple(logits.shape)
    if len(shape) < 2 or classes not in shape[1:]:
        hint = f"; its last size is {shape[-1]}: --classes {shape[-1]}?" if len(shape) > 1 else ""
        raise TargetError(
            f"the model's output has shape {shape}, with no dimension of {classes} classes{hint}"
        )
    # images: (N, C, H, W); tokens: (N, T, C), where T may happen to be the same number
    last = len(shape) > 2 and shape[-1] == classes and (batch_dim == 1 or shape[1] != classes)
    sizes = shape[:-1] if last else (shape[0], *shape[2:])
    if not last and shape[1] != classes:
        raise TargetError(
            f"the model's output has shape {shape}; {classes} classes have to be its second or "
            "its last dimension"
        )
    return torch.randint(classes, sizes, generator=generator), last


def _last(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy over the last dimension."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def _check_own_loss(made: Built, inputs: list[Tensor], batch_dim: int) -> None:
    """See that a model without labels has a loss at all."""
    if made.loss is not None:
        return
    output = _probe(made, inputs, batch_dim)
    if output is None:
        return
    data = batches.Batch((), {}, None, False, 1, {}, {})
    try:
        batches.loss_of(output, data, None)
    except SignalpropError:
        raise TargetError(
            f"the model returned {batches.describe(output)}, which is no loss; add --classes N for "
            "random labels and cross entropy, or return (model, batch, loss)"
        ) from None


def check_finite(made: Built) -> None:
    """See that the data hold no NaN: everything measured on them would be NaN as well.

    Args:
        made: what the user's code made.

    Raises:
        TargetError: there is one; the message counts them.
    """
    for i, x in enumerate(t for t in tree_leaves(made.batch) if isinstance(t, Tensor)):
        if not (x.is_floating_point() or x.is_complex()):
            continue
        count = int(x.isnan().sum())
        if count:
            raise TargetError(
                f"the batch of {made.source} holds {count} NaN among {x.numel()} values (tensor "
                f"{i + 1}, shape {tuple(x.shape)}); drop or replace them first, e.g. with "
                "torch.nan_to_num"
            )
