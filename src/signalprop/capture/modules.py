"""What a module and its output are to the recorder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from signalprop.capture import kinds
from signalprop.capture.kinds import Kind
from signalprop.nets.recurrent import LSTM, MinGRU, MinLSTM

_ONE, _TWO = {".output1": ".h_n"}, {".output1": ".h_n", ".output1.output1": ".c_n"}
#: what torch calls the states that a recurrent module returns beside its output
_STATES: dict[type[torch.nn.Module], dict[str, str]] = {
    torch.nn.RNN: _ONE,
    torch.nn.GRU: _ONE,
    MinGRU: _ONE,
    MinLSTM: _ONE,
    torch.nn.LSTM: _TWO,
    LSTM: _TWO,
    torch.nn.LSTMCell: {".output1": ".c"},
}


class Tree:
    """The modules of a model.

    Args:
        model: whose modules are walked.

    Attributes:
        modules: by path.
        paths: of the modules, by their id; the wrapper of a compiled part and the part itself are
            one place.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.paths = {id(m): path.replace("._orig_mod", "") for path, m in self.modules.items()}


def state_labels(module: torch.nn.Module) -> dict[str, str]:
    """The labels of a recurrent module's states, by the names that its docs give them."""
    return next((_STATES[c] for c in type(module).__mro__ if c in _STATES), {})


def tensors_in(value: Any) -> Iterator[tuple[str, Tensor]]:
    """(label, tensor) of a module's output: tensor, sequence, mapping or dataclass."""
    if isinstance(value, Tensor):
        yield "", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            for label, tensor in tensors_in(item):
                yield f".{key}{label}", tensor
    elif isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", None)
        for i, item in enumerate(value):
            for label, tensor in tensors_in(item):
                key = names[i] if names else ("" if i == 0 else f"output{i}")
                yield (f".{key}{label}" if key else label), tensor
    elif hasattr(value, "__dataclass_fields__"):
        yield from tensors_in({name: getattr(value, name) for name in value.__dataclass_fields__})


def measurable(x: Any) -> bool:
    """Whether statistics of it make sense: a floating or complex tensor with elements."""
    return (
        isinstance(x, Tensor)
        and (x.is_floating_point() or x.is_complex())
        and x.numel() > 0
        and x.layout is torch.strided
        # what `torch.func` hands to a function has no values of its own
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def is_atomic(module: torch.nn.Module, path: str) -> bool:
    """Whether a module is one site, so that what it does inside is not looked at."""
    if isinstance(module, torch.nn.MultiheadAttention):
        return True
    if not path or module._modules:
        return False
    if kinds.class_of(module).__module__.startswith("torch.nn.modules"):
        return True
    if kinds.kind_of_module(module) == "normalisation":
        return True
    return not module._parameters


def torch_name(module: torch.nn.Module) -> str:
    """`ReLU` -> `relu`, `LeakyReLU` -> `leaky_relu`, `BatchNorm2d` -> `batch_norm`."""
    name = kinds.class_of(module).__name__
    special = {
        "LeakyReLU": "leaky_relu",
        "RReLU": "rrelu",
        "PReLU": "prelu",
        "ReLU6": "relu6",
        "LogSoftmax": "log_softmax",
        "LayerNorm": "layer_norm",
        "RMSNorm": "rms_norm",
        "GroupNorm": "group_norm",
        "BatchNorm1d": "batch_norm",
        "BatchNorm2d": "batch_norm",
        "BatchNorm3d": "batch_norm",
        "MultiheadAttention": "multi_head_attention_forward",
        "Softmax2d": "softmax",
        "EmbeddingBag": "embedding_bag",
        "AlphaDropout": "alpha_dropout",
        "Dropout2d": "dropout2d",
    }
    return special.get(name, name.lower())


def kind_by_parts(module: torch.nn.Module, entry: Any, x: Tensor) -> Kind:
    """The kind of a leaf module that no table names, from what it is made of."""
    own = kinds.kind_of_node(x.grad_fn.name()) if x.grad_fn is not None else "other"
    if own != "other":
        return own
    if module._parameters:
        return "weights"
    shape = getattr(entry, "_input_metadata", None)
    elementwise = bool(shape) and tuple(shape[0].shape) == tuple(x.shape)
    return "slope" if elementwise else "other"
