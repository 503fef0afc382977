"""The end of a program: the activation that makes its output, and its loss.

An activation that is a module of its own is replaced by `Identity`. One that `forward` applies by a
function cannot be taken off from outside: the loss is then changed to one that takes what the
model puts out. What is taken off is added to the readout, so that a metric of the user's sees the
same kind of numbers as before.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from signalprop.capture.observe import unwrapped
from signalprop.cures.program.seen import Look
from signalprop.cures.surgery import copied, operate
from signalprop.cures.training import Training
from signalprop.diagnosis.program.output import RANGES

SIGMOIDS = frozenset({"sigmoid", "hardsigmoid", "logsigmoid"})
SOFTMAXES = frozenset({"softmax", "log_softmax"})
#: losses of classes
CLASSED = frozenset({"cross_entropy", "nll_loss", "probability_nll", "kl_div"})


@dataclass(frozen=True)
class End:
    """The activation that makes the output.

    Attributes:
        op: its name; "" where there is none.
        path: of its module, where it can be taken off; None for a function in `forward`, a module
            that is used several times, or one in the loss.
        why: why it cannot be taken off.
        in_loss: whether the user's loss function applies it.
    """

    op: str
    path: str | None
    why: str = ""
    in_loss: bool = False


def end_of(training: Training, seen: Look) -> End:
    """The activation that makes the output of a network."""
    site = seen.end
    if site is None or not (site.op in RANGES or site.op == "exponential"):
        return End("", None)
    if site.module == "loss":
        return End(site.op, None, "the loss function applies it", in_loss=True)
    module = unwrapped(training.model).get_submodule(site.module)
    if site.module == "" or any(True for _ in module.children()) or any(module.parameters()):
        where = f"module {site.module!r}" if site.module else type(module).__name__
        return End(site.op, None, f"forward() of {where} applies {site.op}; return its argument")
    calls = sum(s.module == site.module for s in seen.trace.sites.values())
    if calls > 1:
        why = f"{site.module!r} is used {calls} times; give the output one of its own"
        return End(site.op, None, why)
    return End(site.op, site.module)


def without(training: Training, path: str) -> tuple[str, nn.Module, nn.Module]:
    """The line to paste, the model without the activation at a path, and the activation."""
    model = copied(training.model)
    gone = unwrapped(model).get_submodule(path)
    operate(model, lambda _, module: nn.Identity() if module is gone else None, inplace=True)
    return f"model.set_submodule({path!r}, torch.nn.Identity())", model, gone


def appended(training: Training, last: nn.Module) -> tuple[str, nn.Module]:
    """The line to paste, and the model with an activation after its output; names stay."""
    model = copied(training.model)
    inner = unwrapped(model)
    told = f"torch.nn.{last!r}"
    if type(inner) is nn.Sequential:
        inner.append(last.train(inner.training))
        return f"model.append({told})", model
    inner.register_forward_hook(Then(last))
    return f"model.register_forward_hook(lambda module, args, output: {told}(output))", model


@dataclass(frozen=True)
class Then:
    """A forward hook that applies an activation to the output."""

    last: nn.Module

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Apply it."""
        return self.last(output)


class Exp(nn.Module):
    """Probabilities of their logarithms."""

    def forward(self, x: Tensor) -> Tensor:
        """exp(x)."""
        return x.exp()


class OfLog(nn.Module):
    """A loss of log-probabilities or logits, given the logarithm of probabilities."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss; a probability of zero counts as the smallest number there is."""
        return self.loss(output.clamp(min=torch.finfo(output.dtype).tiny).log(), target)


def on(line: str, given: str) -> str:
    """The line `loss = ...` with something else in place of the output."""
    made = line.removeprefix("loss = ")
    return f"loss = lambda output, target, loss={made}: loss({given}, target)"


def of_log(training: Training) -> Training:
    """The program with its loss on the logarithm of the output."""
    line = on("loss = loss", "output.clamp(min=torch.finfo(output.dtype).tiny).log()")
    return training.changed(line, loss=OfLog(training.loss))


def instead(kind: type[nn.Module], loss: Any) -> tuple[str, nn.Module]:
    """The line to paste, and a loss of torch with the options it shares with the user's own."""
    options: dict[str, Any] = {}
    if isinstance(loss, nn.Module):
        weighted = (nn.NLLLoss, nn.CrossEntropyLoss)
        same = isinstance(loss, weighted) == issubclass(kind, weighted)
        known = inspect.signature(kind).parameters
        for name in ("weight", "reduction", "ignore_index", "label_smoothing", "pos_weight"):
            value = getattr(loss, name, None)
            usual = known[name].default if name in known else value
            weight = isinstance(value, Tensor)
            if value is not None and name in known and (same if weight else value != usual):
                options[name] = value
    told = ", ".join(
        f"{k}=loss.{k}" if isinstance(v, Tensor) else f"{k}={v!r}" for k, v in options.items()
    )
    return f"loss = torch.nn.{kind.__name__}({told})", kind(**options)
