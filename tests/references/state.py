"""Everything a user could notice that a look at a model has changed."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch._dynamo  # loaded by the first look: it brings warning filters of its own
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils.data import DataLoader, TensorDataset

_GLOBAL_HOOKS = sorted(
    name
    for name, value in vars(nn.modules.module).items()
    if name.startswith("_global_") and isinstance(value, dict)
)


def bits(x: Tensor) -> Any:
    """The values of a tensor as bytes, and how they lie in memory."""
    if isinstance(x, UninitializedParameter):
        return "uninitialized"
    where = (tuple(x.shape), tuple(x.stride()), x.dtype, x.device.type)
    if x.device.type == "meta":
        return where
    flat = x.detach().contiguous().reshape(-1)
    return (*where, x.data_ptr(), flat.view(torch.uint8).numpy().tobytes())


def facts(x: Tensor) -> dict[str, Any]:
    """A tensor with all that hangs on it."""
    found = {
        "id": id(x),
        "class": type(x).__name__,
        "bits": bits(x),
        "requires_grad": x.requires_grad,
        "hooks": _ids(x._backward_hooks),
    }
    if x.is_leaf and not isinstance(x, UninitializedParameter):
        found["accumulate hooks"] = _ids(x._post_accumulate_grad_hooks)
        found["grad"] = None if x.grad is None else (id(x.grad), bits(x.grad))
    else:
        found["grad_fn"] = id(x.grad_fn)
    return found


def _ids(hooks: Mapping | None) -> list:
    return [(key, id(value)) for key, value in (hooks or {}).items()]


def deep(value: Any) -> Any:
    """A container, its own identity and its content, down to what is no container."""
    if isinstance(value, Tensor):
        return facts(value)
    if isinstance(value, Mapping):
        return (id(value), [(deep(k), deep(v)) for k, v in value.items()])
    if isinstance(value, (list, tuple, set, frozenset)):
        return (id(value), [deep(v) for v in value])
    if isinstance(value, (str, int, bool, type(None))):
        return value
    return id(value) if not isinstance(value, float) else repr(value)


def of_model(model: nn.Module) -> dict[str, Any]:
    """Parameters, buffers, flags, attributes and hooks of every module."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            found[f"{path}.{key}"] = deep(value)
        found[f"{path} attributes"] = list(vars(module))
    return found


def of_optimizer(optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Groups, state by parameter, and hooks."""
    if optimizer is None:
        return {}
    groups = [
        {k: [id(p) for p in v] if k == "params" else deep(v) for k, v in g.items()}
        for g in optimizer.param_groups
    ]
    found: dict[str, Any] = {f"optimizer group {i}": g for i, g in enumerate(groups)}
    for i, (p, state) in enumerate(optimizer.state.items()):
        found[f"optimizer state {i}"] = (id(p), deep(state))
    found["optimizer attributes"] = [
        (k, id(v)) for k, v in vars(optimizer).items() if k not in ("state", "param_groups")
    ]
    return found


def of_world() -> dict[str, Any]:
    """Random numbers, hooks on all modules, and the modes of torch."""
    found: dict[str, Any] = {
        "python random": random.getstate(),
        "numpy random": repr(np.random.get_state()),
        "torch random": torch.get_rng_state().numpy().tobytes(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "warning filters": list(warnings.filters),
        "numpy errors": np.geterr(),
        "threads": torch.get_num_threads(),
    }
    found["compiler stance"] = torch._dynamo.eval_frame._stance.stance
    for name in _GLOBAL_HOOKS:
        found[f"global {name}"] = _ids(getattr(nn.modules.module, name))
    return found


def of_batch(batch: Any) -> dict[str, Any]:
    """The batch's tensors; of a DataLoader those it draws from."""
    if isinstance(batch, DataLoader):
        assert isinstance(batch.dataset, TensorDataset)
        return {"dataset": deep(batch.dataset.tensors), "loader": deep(vars(batch))}
    return {"batch": deep(batch)}


class Snapshot:
    """What a model, its batch, its optimizer and the process looked like."""

    def __init__(self, model: nn.Module, batch: Any, optimizer: Any = None) -> None:
        self._of = (model, batch, optimizer)
        self._before = self._now()

    def _now(self) -> dict[str, Any]:
        model, batch, optimizer = self._of
        return of_model(model) | of_batch(batch) | of_optimizer(optimizer) | of_world()

    def changed(self) -> list[str]:
        """What is different now."""
        now = self._now()
        keys = [*self._before, *(key for key in now if key not in self._before)]
        missing = object()
        return [k for k in keys if self._before.get(k, missing) != now.get(k, missing)]
