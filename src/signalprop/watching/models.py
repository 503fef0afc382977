"""A watched model: its sites in the run, and the parameters that belong to them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from signalprop.capture.observe import check, unwrapped
from signalprop.errors import SignalpropError
from signalprop.watching.file.schema import RunSite
from signalprop.watching.passes.light import LightRecorder
from signalprop.watching.passes.spots import Spots
from signalprop.watching.passes.tally import Tally
from signalprop.watching.updates.parameter import Held

_LOG = logging.getLogger("signalprop")
_UNSEEN = (
    "no forward pass of the model%s is seen: it runs inside a compiled function, or in another "
    "thread; only weights, gradients and updates are recorded; compile the module itself"
)


class Sites:
    """All sites of a run, in the order in which they were first seen.

    Attributes:
        all: the sites.
        model_of: index of each site's model.
    """

    def __init__(self) -> None:
        self.all: list[RunSite] = []
        self.model_of: list[int] = []

    def add(self, site: RunSite, model: int) -> int:
        """A new site; its index."""
        self.all.append(site)
        self.model_of.append(model)
        return len(self.all) - 1


@dataclass(eq=False)
class Watched:
    """One model.

    Attributes:
        name: `""` where there is only one.
        index: among the models.
        module: the user's module, without wrappers.
        wrappers: `torch.compile`'s wrappers of it.
        joined: sites whose many calls in one pass are joined.
        spots: its modules, as they were at the last sampled step.
    """

    name: str
    index: int
    module: torch.nn.Module
    sites: Sites
    wrappers: list[torch.nn.Module] = field(default_factory=list)
    joined: set[str] = field(default_factory=set)
    spots: Spots | None = None
    _known: dict[str, int] = field(default_factory=dict)
    _owners: dict[str, int] = field(default_factory=dict)
    _whole: int | None = None  # the site of a model that is one operation
    _patience: int = 1

    def place(self, name: str, op: str, kind: str) -> int:
        """Index of a site, which is new if it is not known."""
        found = self._known.get(name)
        if found is None:
            full = f"{self.name}.{name}" if self.name else name
            found = self.sites.add(RunSite(full, op, kind, self.name), self.index)
            self._known[name] = found
        return found

    def tallies(self, passes: Iterable[LightRecorder]) -> dict[int, Tally]:
        """What passes have seen, joined, by index of the site."""
        found: dict[int, Tally] = {}
        for recorder in passes:
            for name, tally in recorder.named(self.joined).items():
                place = self.place(name, tally.op, tally.kind)
                if tally.module == "" and tally.kind == "weights" and self._whole is None:
                    self._whole = place
                if place in found:
                    found[place].add(tally)
                else:
                    found[place] = tally
        return found

    def held(self, named: Mapping[str, Tensor], parameters: Iterable[Tensor]) -> list[Held]:
        """Those of some parameters that are this model's, with their sites.

        Args:
            named: the model's parameters by name.
            parameters: of an optimizer.

        Returns:
            In the model's order; at first nothing where no pass was seen, so that the sites come
            in the order in which they are executed.
        """
        if not self._known:
            self._patience -= 1
            if self._patience >= 0:
                return []
            if self._patience == -1:
                _LOG.warning(_UNSEEN, f" {self.name!r}" if self.name else "")
        wanted = {id(p) for p in parameters if p.requires_grad}
        return [Held(self._owner(name), p) for name, p in named.items() if id(p) in wanted]

    def _owner(self, parameter: str) -> int:
        """The site of a parameter: its module's, or one of its own where that is no site."""
        found = self._owners.get(parameter)
        if found is None:
            module, _, own = parameter.rpartition(".")
            module = module.replace("_orig_mod.", "").removesuffix("._orig_mod")
            name = module if module != "_orig_mod" else ""
            if name or self._whole is None:
                found = self.place(name or own, "", "weights")
            else:
                found = self._whole
            self._owners[parameter] = found
        return found


def named(models: Any) -> list[tuple[str, torch.nn.Module]]:
    """What was given as models, by name.

    Args:
        models: a module, or several: a mapping by name, or a sequence.

    Returns:
        Name and module; the name is `""` where a single module was given.

    Raises:
        SignalpropError: it is nothing of the kind, or a model that cannot be watched.
    """
    if isinstance(models, Mapping) and not isinstance(models, torch.nn.Module):
        found = [(str(name), model) for name, model in models.items()]
    elif isinstance(models, (list, tuple)):
        found = [(f"model{i + 1}", model) for i, model in enumerate(models)]
    else:
        found = [("", models)]
    if not found:
        raise SignalpropError("there is no model to watch; give a torch.nn.Module")
    for _, model in found:
        check(unwrapped(model) if isinstance(model, torch.nn.Module) else model)
    if len({id(unwrapped(model)) for _, model in found}) < len(found):
        raise SignalpropError("the same model was given twice; give each once")
    return found


def wrappers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """`torch.compile`'s wrappers around a module, from the outermost in."""
    found = []
    inner = unwrapped(model)
    while model is not inner:
        if hasattr(model, "_orig_mod"):
            found.append(model)
        following = getattr(model, "_orig_mod", None)
        model = following if following is not None else model.module  # type: ignore[assignment]
    return found[:1]
