"""Leaves the user's model as it was: buffers, attributes, parameters, modes, random numbers."""

from __future__ import annotations

import copy
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from signalprop.errors import ModelError

_ATOMS = frozenset({bool, int, float, str})
_CONTAINERS = (list, dict, set, tuple, deque, OrderedDict, defaultdict, Counter)


class Sandbox:
    """What a model looked like, and how to bring that back.

    Buffers and tensors kept as attributes are copied when the sandbox is made, since native
    kernels (BatchNorm) write to them unseen. Parameters, which may be large, are copied only when
    `before_write` is told that something is about to write to them.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())
        self._parameters = [_Parameter.of(name, p) for name, p in self.parameters.items()]
        self._storages: dict[int, Tensor] = {}
        for kept in self._parameters:
            self._storages[kept.storage] = kept.value
            if kept.grad is not None:  # a forward may zero its gradients in place
                self._storages[_storage(kept.grad)] = kept.grad.detach()
        self._storages.pop(0, None)
        self._copied: dict[int, tuple[Tensor, Tensor]] = {}
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._attributes: list[tuple[dict[str, Any], dict[str, Any], list[int]]] = []
        self._contents: list[tuple[Any, Any]] = []
        self._generators: list[tuple[torch.Generator, Tensor]] = []
        seen: set[int] = set()
        for module in model.modules():
            now = module.__dict__
            self._attributes.append((now, now.copy(), [id(v) for v in now.values()]))
            for key, value in now.items():
                if key == "_parameters" or key == "_modules":
                    self._contents.append((value, value.copy()))
                elif value is not None and type(value) not in _ATOMS:
                    self._walk(value, seen)
            for buffer in module._buffers.values():
                if buffer is not None:
                    self._keep(buffer, seen)

    def _walk(self, value: Any, seen: set[int]) -> None:
        """Remember a value that can change in place, and what it holds."""
        if type(value) in _CONTAINERS:
            if not value and not isinstance(value, tuple):
                self._contents.append((value, ()))
            elif id(value) not in seen:
                seen.add(id(value))
                if not isinstance(value, tuple):
                    self._contents.append((value, copy.copy(value)))
                for item in value.values() if isinstance(value, dict) else value:
                    if type(item) not in _ATOMS:
                        self._walk(item, seen)
        elif isinstance(value, Tensor):
            self._keep(value, seen)
        elif isinstance(value, torch.Generator):
            self._generators.append((value, value.get_state()))

    def _keep(self, tensor: Tensor, seen: set[int]) -> None:
        if id(tensor) not in seen and not isinstance(tensor, torch.nn.Parameter):
            seen.add(id(tensor))
            self._tensors.append((tensor, tensor.detach().clone()))

    def before_write(self, tensor: Tensor) -> None:
        """Copy a parameter that is about to be written to, once."""
        key = _storage(tensor)
        if key in self._storages and key not in self._copied:
            value = self._storages[key]
            self._copied[key] = (value, value.clone())

    def originals(self) -> dict[str, Tensor]:
        """The user's values of every parameter, copied or untouched."""
        return {
            kept.name: self._copied.get(kept.storage, (kept.value, kept.value))[1]
            for kept in self._parameters
        }

    def restore(self) -> None:
        """Bring everything back, and raise where that is not possible."""
        for now, state, ids in self._attributes:
            if [id(v) for v in now.values()] != ids or list(now) != list(state):
                now.clear()
                now.update(state)
        for container, content in self._contents:
            if (container or content) and not _same(container, content):
                container.clear()
                refill = container.extend if hasattr(container, "extend") else container.update
                refill(content)
        for generator, before in self._generators:
            generator.set_state(before)
        with torch.no_grad():
            for tensor, value in self._tensors:
                if not _equal(tensor, value):
                    overwrite(tensor, value)
            for value, copied in self._copied.values():
                overwrite(value, copied)
        for kept in self._parameters:
            kept.restore()
            if kept.tensor._version != kept.version and kept.storage not in self._copied:
                raise ModelError(
                    f"the model wrote to its own parameter {kept.name!r} in a way that could not "
                    "be seen, so it could not be brought back; make that change outside forward()"
                )


@dataclass(frozen=True)
class _Parameter:
    """A parameter as it was; `value` shares its storage."""

    name: str
    tensor: Tensor
    value: Tensor
    storage: int
    version: int
    grad: Tensor | None
    requires_grad: bool
    hooks: frozenset[int]

    @classmethod
    def of(cls, name: str, p: Tensor) -> _Parameter:
        value = p.detach()
        hooks = frozenset(p._backward_hooks or ())
        return cls(name, p, value, _storage(value), p._version, p.grad, p.requires_grad, hooks)

    def restore(self) -> None:
        """Bring back all but the values."""
        p = self.tensor
        if p._backward_hooks and len(p._backward_hooks) != len(self.hooks):
            for key in set(p._backward_hooks) - self.hooks:
                del p._backward_hooks[key]
        if _storage(p) != self.storage:
            p.data = self.value
        if p.requires_grad != self.requires_grad:
            p.requires_grad_(self.requires_grad)
        if p.grad is not self.grad:
            p.grad = self.grad


def overwrite(tensor: Tensor, value: Tensor) -> None:
    """Write values without a mark: a graph the user holds may still go back through them."""
    tensor.data.copy_(value)


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a tensor subclass without a storage of its own
        return 0


def _equal(a: Tensor, b: Tensor) -> bool:
    """Bit for bit."""
    return a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def _bits(x: Tensor) -> Tensor:
    return x.detach().contiguous().reshape(-1).view(torch.uint8)


def _same(a: Any, b: Any) -> bool:
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(k in b and b[k] is v for k, v in a.items()) and list(a) == list(b)
    if isinstance(a, set):
        return a == b
    return all(x is y for x, y in zip(a, b, strict=True))


@contextmanager
def generators_kept(data: Any) -> Iterator[None]:
    """A loader's own generator is the user's: reading batches must not move it on.

    Args:
        data: a DataLoader or another iterable of batches.
    """
    holders = (data, getattr(data, "sampler", None))
    found = {getattr(holder, "generator", None) for holder in holders}
    before = [(g, g.get_state()) for g in found if isinstance(g, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in before:
            generator.set_state(state)


@contextmanager
def random_state() -> Iterator[None]:
    """Random number generators of torch, numpy and Python are afterwards as they were before."""
    python = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        if numpy is not None and numpy_state is not None:
            numpy.random.set_state(numpy_state)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


@contextmanager
def untouched(model: torch.nn.Module) -> Iterator[Sandbox]:
    """Inside, the model may be run; afterwards it is what it was, bit for bit, after errors too."""
    with random_state():
        sandbox = Sandbox(model)
        try:
            yield sandbox
        finally:
            sandbox.restore()
