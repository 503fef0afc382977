"""Greedy layer-wise pre-training of an ordinary network: the first cure of vanishing gradients.

Layer by layer from the input up, each linear layer learns without labels to model what comes into
it, as a restricted Boltzmann machine (Hinton, Osindero & Teh 2006) or a denoising autoencoder
(Bengio et al. 2007; Vincent et al. 2010), and hands its weights over; no gradient has to cross more
than one layer. What follows is ordinary training with labels ("fine-tuning").
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from signalprop.nets._following import Following, following
from signalprop.nets._seeded import random_state
from signalprop.nets._weights import LAYERS, check_weight, set_weight, weight_parameters
from signalprop.nets.autoencoder import AMOUNT, Corruption, DenoisingAutoencoder
from signalprop.nets.rbm import RBM

Model = TypeVar("Model", bound=nn.Module)
Method = Literal["rbm", "autoencoder"]
#: called after each epoch with the layer's path, the epoch from 0, and its loss
Progress = Callable[[str, int, float], None]

#: samples in the pass that finds out what is where
_PROBE = 8
#: samples sent through the model at once
_CHUNK = 1024


@dataclass(frozen=True)
class Pretrained(Generic[Model]):
    """A pre-trained network.

    Attributes:
        model: the network: a copy of what was given, or that itself with `inplace=True`.
        losses: of each pre-trained layer, in order of execution, the loss of each epoch: mean
            squared reconstruction error per unit (rbm), or the autoencoder's loss.
        skipped: layers left as they were, by path, and why.
    """

    model: Model
    losses: dict[str, tuple[float, ...]]
    skipped: dict[str, str]


def pretrain(
    model: Model,
    data: Tensor | Iterable[Any],
    method: Method = "autoencoder",
    *,
    epochs: int = 10,
    lr: float | None = None,
    batch_size: int = 100,
    layers: Collection[str] | None = None,
    inputs: Literal["auto", "binary", "real"] = "auto",
    corruption: Corruption = "masking",
    amount: float | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
    inplace: bool = False,
    progress: Progress | None = None,
) -> Pretrained[Model]:
    """Pre-train the linear layers of a network, one after the other, without labels.

    The network is any module called with one tensor, in which linear layers run one after another;
    what lies between them may be anything, and works as in evaluation (no dropout, BatchNorm by its
    running statistics). The activation of a layer is what the network itself applies to its output
    next; dropout, normalisation and reshaping on the way there are passed over. Inputs of a layer
    that all lie in [0, 1] are modelled as probabilities; others as real values, for which they are
    divided by one common standard deviation, and the weights learnt are divided by it again.

    It needs steps: an autoencoder of few hundred steps, or a low rate, may leave a deep sigmoid net
    worse than well scaled random weights do. Compare `losses`, which should have levelled off.

    Cost: epochs x layers passes through single layers, layers + 1 forward passes of the model, and
    the memory of one layer's inputs for all samples.

    Args:
        model: the network. It is not touched, unless `inplace`.
        data: all samples, as the model takes them; or batches of them, such as a `DataLoader`,
            the first entry of each where a batch is a tuple or list.
        method: `rbm` (contrastive divergence; for sigmoid layers only, whose outputs are the
            hidden probabilities) or `autoencoder` (denoising, tied weights; any activation).
        epochs: of each layer.
        lr: rate; where none is given, 0.1 for probabilities and 0.001 for real inputs (rbm), or
            0.01 (autoencoder, Adam).
        batch_size: samples a step.
        layers: paths of the linear layers to pre-train; all but the last one to run (the head),
            where nothing is said.
        inputs: what the first of them is given: probabilities in [0, 1] (`binary`), `real`
            values, or as its values say (`auto`).
        corruption: what the autoencoder has to undo, see `DenoisingAutoencoder`.
        amount: how much of it.
        seed: of all random numbers. Torch's global random state stays as it is.
        generator: draws the seed instead.
        inplace: whether the model given is changed; only once all layers are done.
        progress: told of every epoch.

    Returns:
        The network, in the modes and on the devices it was in, with the losses by layer. Frozen
        layers, ones that run several times or share their weight with something before, and
        convolutions are skipped, and reported.

    Raises:
        TypeError: the model is no module, or the samples are no floating tensors.
        ValueError: nothing to pre-train, unknown layers, an activation that is not understood or
            does not fit the method, samples that do not fit, or learning that diverges.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a module, got {type(model).__name__}")
    if method not in ("rbm", "autoencoder"):
        raise ValueError(f'method is "rbm" or "autoencoder", got {method!r}')
    if inputs not in ("auto", "binary", "real"):
        raise ValueError(f'inputs are "auto", "binary" or "real", got {inputs!r}')
    if corruption not in AMOUNT:
        raise ValueError(f"corruption is one of {', '.join(AMOUNT)}, got {corruption!r}")
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs >= 1 and batch_size >= 1, got {epochs} and {batch_size}")
    if torch.is_inference_mode_enabled():
        raise ValueError("nothing can be learnt inside torch.inference_mode; call this outside")
    if hasattr(model, "_orig_mod"):
        raise ValueError("the model is compiled; pre-train it first, and compile the result")
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        raise ValueError("a layer has no shape yet; send a batch through the model first")
    if generator is not None:
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    with random_state():
        samples = _samples(data)
        work = _copied(model)
        modes = {module: module.training for module in work.modules()}
        work.eval()
        seen = _look(work, samples[:_PROBE])
        chosen, skipped = _chosen(work, seen, layers)
        for name in chosen:
            _check_fit(name, seen[name], method)
        losses: dict[str, tuple[float, ...]] = {}
        for i, name in enumerate(chosen):
            x = _inputs_of(work, name, samples)
            learner = _Learner(
                name, method, inputs if i == 0 else "auto", corruption, amount, seed + i
            )
            losses[name] = learner.learn(
                work.get_submodule(name), seen[name], x, epochs, lr, batch_size, progress
            )
        for module, mode in modes.items():
            module.training = mode
        if inplace:
            _hand_over(work, model)
    return Pretrained(model if inplace else work, losses, skipped)


@dataclass(frozen=True)
class _Learner:
    """Teaches one layer."""

    name: str
    method: Method
    inputs: Literal["auto", "binary", "real"]
    corruption: Corruption
    amount: float | None
    seed: int

    def learn(
        self,
        layer: nn.Module,
        seen: Following,
        x: Tensor,
        epochs: int,
        lr: float | None,
        batch_size: int,
        progress: Progress | None,
    ) -> tuple[float, ...]:
        weight, bias = seen.weight, getattr(layer, "bias", None)
        x = x.to(torch.promote_types(weight.dtype, torch.float32))
        unit = float(x.min()) >= 0 and float(x.max()) <= 1
        binary = unit if self.inputs == "auto" else self.inputs == "binary"
        spread = 1.0 if binary else float(x.var(0, correction=0).mean().sqrt())
        if not spread > 0:
            raise ValueError(f"the inputs of layer {self.name!r} are the same for all samples")
        x = x / spread

        def report(epoch: int, loss: float) -> None:
            if progress is not None:
                progress(self.name, epoch, loss)

        places: dict[str, Any] = {"device": x.device, "dtype": x.dtype, "seed": self.seed}
        hidden, visible = weight.shape
        model: RBM | DenoisingAutoencoder
        try:
            if self.method == "rbm":
                units: Literal["binary", "gaussian"] = "binary" if binary else "gaussian"
                model = RBM(visible, hidden, units=units, **places).match_(x)
                _bias(model.hidden_bias, bias)
                losses = model.fit(
                    x, epochs=epochs, lr=lr, batch_size=batch_size, mean_field=True, progress=report
                )
            else:
                model = DenoisingAutoencoder(
                    visible,
                    hidden,
                    activation=torch.sigmoid if seen.name == "sigmoid" else seen.apply,
                    inputs="binary" if binary else "real",
                    corruption=self.corruption,
                    amount=self.amount,
                    **places,
                )
                _bias(model.hidden_bias, bias)
                rate = 1e-2 if lr is None else lr
                losses = model.fit(
                    x, epochs=epochs, lr=rate, batch_size=batch_size, progress=report
                )
        except ValueError as error:
            raise ValueError(f"layer {self.name!r}: {error}") from error
        set_weight(layer, self.name, (model.weight.detach() / spread).to(weight.dtype))
        if isinstance(bias, nn.Parameter) and bias.requires_grad:
            with torch.no_grad():
                bias.copy_(model.hidden_bias)
        return tuple(losses)


def _bias(hidden: nn.Parameter, bias: Tensor | None) -> None:
    """A bias that the layer does not have, or that is frozen, is not learnt."""
    if bias is None or not bias.requires_grad:
        hidden.requires_grad_(False)
        if bias is not None:
            hidden.data.copy_(bias.detach())


# ---- what is in the model ----------------------------------------------------------------------


def _samples(data: Tensor | Iterable[Any]) -> Tensor:
    """All samples in one tensor."""
    if not isinstance(data, Tensor):
        if not isinstance(data, Iterable):
            raise TypeError(f"expected a tensor or batches of samples, got {type(data).__name__}")
        parts = [part[0] if isinstance(part, (tuple, list)) else part for part in data]
        if not parts or not all(isinstance(part, Tensor) and part.dim() for part in parts):
            raise TypeError("expected batches that are tensors, or tuples that begin with one")
        data = torch.cat(parts)
    if not data.is_floating_point():
        raise TypeError(f"expected floating samples, got {data.dtype}; convert them first")
    if data.dim() < 2 or len(data) == 0:
        raise ValueError(f"expected samples of shape (n, ...), got {tuple(data.shape)}")
    if not bool(torch.isfinite(data).all()):
        raise ValueError("the samples hold inf or nan; remove or replace them")
    return data.detach()


def _copied(model: Model) -> Model:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ValueError(f"the model cannot be copied: {error}") from error


def _look(model: nn.Module, x: Tensor) -> dict[str, Following]:
    """The linear layers in order of execution, and what follows each."""
    modules = model.named_modules()
    names: dict[nn.Module, str] = {m: name for name, m in modules if isinstance(m, nn.Linear)}
    if not names:
        raise ValueError("the model holds no linear layer; there is nothing to pre-train")
    try:
        return following(model, names, _placed(x, model))
    except Exception as error:
        raise ValueError(f"the model cannot be called with these samples: {error}") from error


def _chosen(
    model: nn.Module, seen: dict[str, Following], layers: Collection[str] | None
) -> tuple[list[str], dict[str, str]]:
    """Layers to pre-train in order of execution, and why the others are not."""
    modules = dict(model.named_modules())
    known = {name for name, m in modules.items() if isinstance(m, LAYERS)}
    if isinstance(layers, str):
        layers = [layers]
    for name in layers or ():
        if name not in known:
            what = type(modules[name]).__name__ if name in modules else "not there"
            raise ValueError(f"there is no linear layer {name!r} in the model (it is {what})")
    held: dict[int, str] = {}
    skipped: dict[str, str] = {}
    for path, p in model.named_parameters(remove_duplicate=False):
        held.setdefault(id(p), path)
    chosen: list[str] = []
    last = list(seen)[-1] if seen else ""
    for name in [*seen, *(n for n in modules if n in known and n not in seen)]:
        layer, why = modules[name], ""
        parameters = weight_parameters(layer)
        if layers is not None and name not in layers:
            why = "not chosen"
        elif not isinstance(layer, nn.Linear):
            why = "a convolution; only linear layers are pre-trained"
        elif name not in seen:
            why = "the pass does not reach it"
        elif layers is None and name == last:
            why = "the last layer, left to fine-tuning"
        elif seen[name].calls > 1:
            why = f"it runs {seen[name].calls} times in one pass"
        elif parameters and not all(p.requires_grad for p in parameters):
            why = "its weight is frozen"
        elif parameters and _owner(held[id(parameters[0])]) != name:
            why = f"its weight is that of {held[id(parameters[0])]!r}"
        if why:
            skipped[name] = why
        else:
            check_weight(layer, name)
            chosen.append(name)
    if not chosen:
        reasons = "; ".join(f"{name!r}: {why}" for name, why in skipped.items())
        raise ValueError(f"there is no layer to pre-train ({reasons})")
    return chosen, skipped


def _owner(path: str) -> str:
    """`fc.weight` and `fc.parametrizations.weight.original` -> `fc`."""
    own, parametrised, _ = path.rpartition("parametrizations.weight.")
    return own.rstrip(".") if parametrised else path.rpartition(".")[0]


def _check_fit(name: str, seen: Following, method: Method) -> None:
    if not seen.known:
        raise ValueError(
            f"what follows layer {name!r} ({seen.name}) is no activation that is known; leave the "
            "layer out by naming the others in `layers`"
        )
    if method == "rbm" and seen.name != "sigmoid":
        raise ValueError(
            f'layer {name!r} is followed by {seen.name}, but method "rbm" needs a sigmoid, whose '
            'outputs are probabilities; use method="autoencoder"'
        )


def _placed(x: Tensor, model: nn.Module) -> Tensor:
    """Samples where the model's first parameter is, in its dtype."""
    return x.to(next(p for p in model.parameters() if p.is_floating_point()))


def _inputs_of(model: nn.Module, name: str, samples: Tensor) -> Tensor:
    """What comes into a layer for all samples, (rows, inputs)."""
    rows: list[Tensor] = []

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        rows.append(x.detach().reshape(-1, x.shape[-1]).clone())

    with _hooked(model.get_submodule(name), hook), torch.no_grad():
        for part in samples.split(_CHUNK):
            model(_placed(part, model))
    return torch.cat(rows)


@contextmanager
def _hooked(layer: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _hand_over(source: nn.Module, target: nn.Module) -> None:
    """Give the parameters of a copy to what it was copied from."""
    with torch.no_grad():
        for theirs, mine in zip(target.parameters(), source.parameters(), strict=True):
            if not torch.equal(theirs, mine):
                theirs.copy_(mine)
