"""What rules may look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from signalprop.capture.time import Horizon
from signalprop.capture.trace import Site, Trace
from signalprop.diagnosis.finding import Learning
from signalprop.diagnosis.samples import SampleFacts
from signalprop.diagnosis.time.facts import TimeFacts
from signalprop.diagnosis.time.lag import Lag


@dataclass(frozen=True)
class WeightFacts:
    """Facts about one parameter that a trace does not hold.

    Attributes:
        identical_rows: share of rows (output units) that equal the first row, incoming weights
            and all; 1 for a constant matrix.
        constant: whether all its values are the same.
    """

    identical_rows: float
    constant: bool


@dataclass(frozen=True)
class Leading:
    """The leading singular values of the Jacobian between two sites of the spine.

    Attributes:
        of: the site nearer to the output.
        wrt: the site nearer to the input.
        largest: s_1, median over the samples.
        ratios: s_i / s_1, largest first, median over the samples.
        narrowest: directions per sample that the narrowest spine site below `of` can hold.
        learned: the loss over what it is with the targets of other samples, near 1 before anything
            is learned; None without a target, and where it decides nothing.
    """

    of: str
    wrt: str
    largest: float
    ratios: tuple[float, ...]
    narrowest: int
    learned: float | None


@dataclass(frozen=True)
class OptimizerFacts:
    """Facts about the optimizer that was given.

    Attributes:
        name: class name.
        rate: largest learning rate of its groups; the largest `initial_lr` where a schedule warms
            it up.
        held: names of the model's parameters that it holds.
        foreign: number of parameters it holds that are not the model's.
        momentum: largest momentum of its groups (0 where it has none).
        fresh: whether it has never been stepped.
    """

    name: str
    rate: float
    held: frozenset[str]
    foreign: int
    momentum: float
    fresh: bool = True

    @property
    def plain(self) -> bool:
        """Whether its update is the gradient times the rate, so that sharpness bounds the rate."""
        return self.name in ("SGD", "ASGD")


@dataclass(frozen=True)
class Evidence:
    """What was measured of one network, for the rules.

    Attributes:
        trace: the pass; its `failure` is set where the pass stopped early, and then sites have no
            delta.
        model: the module itself, for its structure (classes, settings), never to be changed.
        loss: the loss as given.
        later: the pass seen again after the rehearsed updates, where that decides: delta was
            exactly zero somewhere on the spine (a weight that starts at zero lets it through
            then), or the samples had come close to each other; else None.
        learning: what the optimizer's next update does; None where it was not measured.
        noise: gradient signal-to-noise by module path; None where it was not measured.
        sharpness: largest eigenvalue of the Hessian; None where it was not measured, as where the
            rehearsed updates lower the loss and the learning rate is in no doubt.
        leading: leading singular values from the input to the output; of a narrow output, to the
            last wide layer as well; and where the output does not show two directions, to the
            last hidden layer.
        optimizer: facts of the optimizer; None where none was given.
        weights: facts by parameter name.
        missing: what could not be measured -> why.
        samples: what the losses of single samples tell; None where no rule asks, as hardly a unit
            is dead or saturated, delta reaches every sample and updates lower the loss, or where
            it cannot be known.
        horizons: how far back in time credit reaches, of every recurrent layer and direction; none
            where nothing recurs.
        time: what one more pass tells of recurrent modules; None where nothing recurs.
        lag: over how many steps the task needs memory, as given, or as the data show; None where
            neither says so, or nothing recurs.
        clip: the norm that the gradient is clipped to, as given.
    """

    trace: Trace
    model: torch.nn.Module
    loss: object
    later: Trace | None
    learning: Learning | None
    noise: Mapping[str, float] | None
    sharpness: float | None
    leading: tuple[Leading, ...]
    optimizer: OptimizerFacts | None
    weights: Mapping[str, WeightFacts]
    missing: Mapping[str, str]
    samples: SampleFacts | None = None
    horizons: tuple[Horizon, ...] = ()
    time: TimeFacts | None = None
    lag: Lag | None = None
    clip: float | None = None

    def site_of_module(self, path: str) -> Site | None:
        """The first site of a module."""
        return next((s for s in self.trace.sites.values() if s.module == path), None)

    def module_of(self, site: Site) -> torch.nn.Module | None:
        """The module a site belongs to."""
        try:
            return self.model.get_submodule(site.module)
        except AttributeError:
            return None
