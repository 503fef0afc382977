"""An elementwise activation in float64: value, slope, curvature, and where it is not smooth."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signalprop.errors import SignalpropError
from signalprop.theory.kinks import Kink, TooManyKinksError, analyse

Elementwise = Callable[[Tensor], Tensor]


def _identity(x: Tensor) -> Tensor:
    return 1.0 * x


#: names that an activation may be asked for by; those of torch, and the field's own
NAMED: dict[str, Elementwise] = {
    "linear": _identity,
    "identity": _identity,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "tanhshrink": F.tanhshrink,
    "logsigmoid": F.logsigmoid,
}

#: a slope that jumps by more than this stands for one that is not bounded
_STEEPEST = 1e4


@dataclass(frozen=True)
class Activation:
    """An elementwise function, looked at in float64.

    Make one with `Activation.of("tanh")`, `Activation.of(torch.nn.LeakyReLU(0.1))` or
    `Activation.of(lambda x: x * torch.sigmoid(1.7 * x))`. It is looked at for |x| up to 256: kinks
    and rapid changes beyond that are not seen, which is where pre-activations have a variance of
    several hundred or more.

    Attributes:
        name: what it is called.
        function: the function, on float64 tensors.
        edges: edges of panels on which it is smooth, rising; every kink is one of them.
        kinks: where it, its slope or its curvature jumps.
    """

    name: str
    function: Elementwise = field(repr=False)
    edges: tuple[float, ...] = field(repr=False)
    kinks: tuple[Kink, ...]

    @staticmethod
    def of(activation: Activation | str | nn.Module | Elementwise) -> Activation:
        """The activation of a name, a module or a callable.

        Args:
            activation: a name (`tanh`, `relu`, `selu`, ...), a module such as
                `nn.LeakyReLU(0.1)`, or any callable on tensors that acts on every element alone.

        Returns:
            The activation, with its kinks found.

        Raises:
            SignalpropError: the name is unknown, the callable is not elementwise, not finite, or
                jumps too often.
        """
        if isinstance(activation, Activation):
            return activation
        if isinstance(activation, str):
            return _named(activation)
        if isinstance(activation, nn.Module):
            module = copy.deepcopy(activation).to(device="cpu", dtype=torch.float64).eval()
            for parameter in module.parameters():
                parameter.requires_grad_(False)
            return _examined(type(activation).__name__, module)
        if callable(activation):
            return _examined(getattr(activation, "__name__", type(activation).__name__), activation)
        raise SignalpropError(
            f"an activation is a name, a module or a callable on tensors, not "
            f"{type(activation).__name__}; give for example 'tanh' or torch.nn.SELU()"
        )

    @property
    def discontinuous(self) -> bool:
        """Whether the function itself jumps, as a step does.

        Backpropagation does not see such a jump: chi_1 is then the mean squared slope between the
        jumps, and the slope of the correlation map at c = 1 is infinite.
        """
        return any(abs(kink.value) > 1e-6 for kink in self.kinks)

    def value(self, x: np.ndarray) -> np.ndarray:
        """Values at points of any shape."""
        with torch.no_grad():
            return _called(self.function, torch.from_numpy(x)).numpy()

    def slope(self, x: np.ndarray) -> np.ndarray:
        """First derivative at points of any shape, as backpropagation has it."""
        return _derivatives(self.function, x, 1)[1]

    def both(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Value and first derivative at points of any shape."""
        value, slope = _derivatives(self.function, x, 1)
        return value, slope

    def curvature(self, x: np.ndarray) -> np.ndarray:
        """Second derivative at points of any shape, without the delta functions at kinks.

        The maps never use it: E[phi'' phi] is taken from phi' by Stein's identity, which has the
        delta functions in it.

        Args:
            x: points of any shape.

        Returns:
            The second derivative; zero where torch has none of the function (hardsigmoid).
        """
        return _twice(self.function, x)[2]


@functools.lru_cache(maxsize=64)
def _named(name: str) -> Activation:
    known = name.lower().replace("-", "_")
    function = NAMED.get(known)
    if function is None:
        raise SignalpropError(
            f"no activation is called {name!r}; known are {', '.join(sorted(NAMED))}, and any "
            f"callable on tensors can be given instead of a name"
        )
    return _examined(known, function)


def _called(function: Elementwise, x: Tensor) -> Tensor:
    """The function's answer as float64; it gets a copy, which it may change in place."""
    y = function(x.clone())
    if y.dtype in (torch.bool, torch.int64, torch.int32):
        return y.double()
    return y


def _derivatives(function: Elementwise, x: np.ndarray, order: int) -> list[np.ndarray]:
    """[phi, phi', ...] up to the order; 0 where autograd has no slope (a step)."""
    with torch.inference_mode(False), torch.enable_grad():
        point = torch.from_numpy(np.ascontiguousarray(x)).requires_grad_()
        current = _called(function, point)
        found = [current]
        for k in range(order):
            if current.requires_grad:
                (slope,) = torch.autograd.grad(
                    current.sum(), point, create_graph=k + 1 < order, allow_unused=True
                )
                current = torch.zeros_like(point) if slope is None else slope
            else:
                current = torch.zeros_like(point)
            found.append(current)
    return [f.detach().numpy() for f in found]


def _twice(function: Elementwise, x: np.ndarray) -> list[np.ndarray]:
    """[phi, phi', phi'']; the last is zero where torch cannot take it."""
    try:
        return _derivatives(function, x, 2)
    except (RuntimeError, NotImplementedError):
        return [*_derivatives(function, x, 1), np.zeros_like(x)]


def _examined(name: str, function: Elementwise) -> Activation:
    _check(name, function)

    def derivatives(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        value, slope, curvature = _twice(function, x)
        for label, found in (("value", value), ("slope", slope), ("curvature", curvature)):
            bad = ~np.isfinite(found)
            if bad.any():
                raise SignalpropError(
                    f"the {label} of activation {name} is not finite at {x[bad].flat[0]:.6g}; "
                    f"mean-field theory needs one that is finite everywhere"
                )
        return value, slope, curvature

    try:
        edges, kinks = analyse(derivatives)
    except TooManyKinksError as error:
        raise SignalpropError(
            f"activation {name} cannot be integrated: {error}; give one with few kinks"
        ) from error
    for kink in kinks:
        if abs(kink.slope) > _STEEPEST:
            raise SignalpropError(
                f"the slope of activation {name} is not bounded at {kink.at:.6g}, so E[phi'^2] "
                f"does not exist; give an activation of bounded slope"
            )
    return Activation(name, function, edges, kinks)


def _check(name: str, function: Elementwise) -> None:
    """Refuse what is not an elementwise function of float64 tensors."""
    x = torch.tensor([-2.3, -0.7, -0.1, 0.05, 0.4, 1.1, 3.7, -5.2], dtype=torch.float64)
    try:
        together = function(x)
        apart = [function(x[i : i + 1]) for i in range(len(x))]
        function(x.view(2, 4))
    except SignalpropError:
        raise
    except Exception as error:
        raise SignalpropError(
            f"activation {name} cannot be applied to a tensor of any shape: {error}; give an "
            f"elementwise function"
        ) from error
    if not isinstance(together, Tensor) or together.shape != x.shape:
        raise SignalpropError(
            f"activation {name} does not return a tensor of its input's shape; give an elementwise "
            f"function"
        )
    if together.is_floating_point() and together.dtype is not torch.float64:
        raise SignalpropError(
            f"activation {name} turns float64 into {str(together.dtype).removeprefix('torch.')}; "
            f"give one that keeps the dtype"
        )
    singles = torch.cat(apart)
    if not torch.equal(torch.isfinite(together), torch.isfinite(singles)) or not torch.allclose(
        together.double(), singles.double(), rtol=1e-12, atol=1e-14, equal_nan=True
    ):
        raise SignalpropError(
            f"activation {name} is not elementwise (softmax and normalisation are not), or it is "
            f"random; the maps of mean-field theory hold for one function of one number"
        )
