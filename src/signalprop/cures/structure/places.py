"""Where a skip fits: hidden parts of a network that hand on the shape that they are given.

Inside a plain `nn.Sequential` these are runs of children, a layer and what follows it up to the
next layer. Elsewhere they are modules whose output every path from the input to the loss runs
through. What has a skip already is left alone: a block that adds its input, and its inside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from signalprop.capture import observe
from signalprop.capture.trace import Trace
from signalprop.cures.structure.flow import Call, Flow, flow, is_layer, spatial

#: names and modules
Children = list[tuple[str, nn.Module]]

#: a block that stands alone and has more layers is looked into, not skipped as a whole
PART = 3


@dataclass(frozen=True)
class Place:
    """A part of a network that a skip can go around.

    Attributes:
        path: of the Sequential, or of the module itself.
        first: name of the first child of the run; None where it is the module itself.
        last: name of the last child of the run.
        width: features of what goes in and comes out.
        dims: dimensions behind the features where they are channels; 0 where they come last.
    """

    path: str
    first: str | None
    last: str | None
    width: int
    dims: int


def places(model: nn.Module, data: Any, layers: int) -> list[Place]:
    """Where skips fit, in the order of the modules.

    Args:
        model: any module; not changed.
        data: a batch, as for `diagnose`.
        layers: layers of a run; elsewhere than in a Sequential a skip goes around one module.

    Returns:
        The places; they do not overlap.

    Raises:
        SignalpropError: the model cannot be run on the batch.
    """
    seen = flow(model, data)
    return list(
        _Search(model, seen, observe.trace(model, data, seen.loss), layers).visit("", model)
    )


class _Search:
    """One walk over the modules, from the root down."""

    def __init__(self, model: nn.Module, seen: Flow, trace: Trace, layers: int) -> None:
        self.seen, self.layers = seen, layers
        # places are told by the first name of a module, as `operate` does
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.skipped: set[str] = set()
        # where there are blocks, a single layer beside them is an embedding or a read-out
        self.plain = not any(block.residual for block in trace.blocks)
        for block in trace.blocks:
            if block.residual:
                for name in (*block.inner, block.end):
                    site = trace.sites[name]
                    self.skipped |= {p for p in (site.module, *site.aliases) if p}
        spine = list(trace.spine_sites())
        weighty = [i for i, s in enumerate(spine) if s.kind in ("weights", "attention", "other")]
        last = max(weighty, default=0)
        self.counts = Counter(p for s in spine for p in {s.module, *s.aliases})
        self.hidden = {p for s in spine[:last] for p in (s.module, *s.aliases)}

    def visit(self, path: str, module: nn.Module) -> Iterator[Place]:
        """The places in a module."""
        rest = set(module._modules)
        if type(module) is nn.Sequential and path in self.seen.calls:
            found = list(self.runs(path, module))
            yield from found
            names = list(module._modules)
            for place in found:
                assert place.first is not None
                assert place.last is not None
                rest -= set(names[names.index(place.first) : names.index(place.last) + 1])
        kinds = Counter(type(child) for child in module._modules.values())
        for key, child in module._modules.items():
            if child is None or key not in rest:
                continue
            below = f"{path}.{key}" if path else key
            if self.paths.get(id(child)) != below:
                continue
            place = None
            if self.plain and type(module) is not nn.Sequential:
                place = self.alone(below, child, kinds[type(child)] > 1)
            if place is None:
                yield from self.visit(below, child)
            else:
                yield place

    def alone(self, path: str, module: nn.Module, repeated: bool) -> Place | None:
        """A module of its own, where a skip fits around it."""
        block = repeated and _layers(module) and not isinstance(module, nn.ModuleList)
        if not (is_layer(module) or block) or not self.free(path) or not self.seen.fits(path):
            return None
        if type(module) is nn.Sequential and _layers(module) > self.layers:
            return None  # it has runs of its own
        calls = self.seen.calls[path]
        if path not in self.hidden or self.counts[path] < len(calls) or calls[0].final:
            return None
        return self.place(path, None, None, [module], calls[0].given)

    def runs(self, path: str, module: nn.Module) -> Iterator[Place]:
        """Runs of children that a skip fits around."""
        children = [(k, c) for k, c in module._modules.items() if c is not None]
        kinds = Counter(type(child) for _, child in children)
        starts = [i for i, (_, child) in enumerate(children) if _layers(child)]
        i = 0
        while i + self.layers <= len(starts):
            begin = starts[i]
            stop = starts[i + self.layers] if i + self.layers < len(starts) else len(children)
            run = children[begin:stop]
            place = None
            if all(self.whole(c, kinds[type(c)] > 1) for _, c in run):
                place = self.run(path, children, run, more=stop < len(children))
            if place is not None:
                yield place
            i += self.layers if place is not None else 1

    def whole(self, module: nn.Module, repeated: bool) -> bool:
        """Whether a skip may go around a child as a whole."""
        if type(module) is nn.Sequential:
            return _layers(module) <= self.layers
        return repeated or _layers(module) <= PART

    def turns(self, children: Children, child: nn.Module, key: str) -> list[Call]:
        """The calls of a child at its place; the same module may stand at several."""
        calls = self.seen.calls.get(self.paths.get(id(child), ""), [])
        places = [k for k, c in children if c is child]
        if len(calls) % len(places):
            return []
        return calls[places.index(key) :: len(places)]

    def run(self, path: str, children: Children, run: Children, more: bool) -> Place | None:
        """One run, cut at its end to what keeps the shape."""
        calls = [self.turns(children, child, key) for key, child in run]
        if not all(calls) or len({len(c) for c in calls}) > 1:
            return None
        if any(c.overwrites for c in calls[0]) or calls[0][0].given is None:
            return None
        least = max(i for i, (_, c) in enumerate(run) if _layers(c))
        if not more:  # the head has nothing behind it
            least = next((i for i in range(least + 1, len(run)) if _acts(run[i][1])), len(run))
            if least == len(run) and not _acts_inside(run[-1][1]):
                return None
            least = min(least, len(run) - 1)
        for end in range(len(run) - 1, least - 1, -1):
            same = all(a.given == b.made for a, b in zip(calls[0], calls[end], strict=True))
            if same and not any(c.final for c in calls[end]):
                parts = run[: end + 1]
                if not all(self.free(self.paths[id(c)]) for _, c in parts):
                    return None
                modules = [c for _, c in parts]
                return self.place(path, parts[0][0], parts[-1][0], modules, calls[0][0].given)
        return None

    def free(self, path: str) -> bool:
        """Whether neither a module nor anything in it belongs to a residual block."""
        return not any(p == path or p.startswith(f"{path}.") for p in self.skipped)

    def place(
        self,
        path: str,
        first: str | None,
        last: str | None,
        modules: list[nn.Module],
        shape: tuple[int, ...] | None,
    ) -> Place | None:
        """The place, with what a gate there has to be."""
        if not shape:
            return None
        layer = next((m for part in modules for m in part.modules() if is_layer(m)), None)
        dims = spatial(layer) if layer is not None else None
        dims = dims if dims is not None and len(shape) >= dims + 1 else 0
        return Place(path, first, last, shape[-1 - dims], dims)


def _layers(module: nn.Module) -> int:
    """Layers of weights in a module."""
    if is_layer(module):
        return 1
    return sum(is_layer(m) for m in module.modules())


def _acts(module: nn.Module) -> bool:
    """Whether it is an activation or a normalisation, with or without something around it."""
    return not is_layer(module) and not isinstance(
        module, (nn.Flatten, nn.Unflatten, nn.Dropout, nn.Identity)
    )


def _acts_inside(module: nn.Module) -> bool:
    return any(_acts(m) and not m._modules for m in module.modules())
