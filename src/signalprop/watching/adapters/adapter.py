"""What all dashboards share: which numbers they are told, and when."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TypeVar

from signalprop.errors import SignalpropError
from signalprop.watching.adapters.summary import Sites, Summary, Told
from signalprop.watching.sample import Alarm, Sample

#: steps whose numbers are kept until it is known whether the step was sampled
KEPT = 1024

_T = TypeVar("_T")


class Adapter(ABC):
    """A listener of a watched run that hands on what it is told to another tool.

    Args:
        prefix: of all names there.
        sites: see `Summary`.
        statistics: see `Summary`.
        scalars: numbers that the loop logs: `sampled` hands on those of sampled steps, `all` those
            of every step, `none` leaves them out, where the tool gets them otherwise.

    Raises:
        SignalpropError: an argument is not what it should be.
    """

    def __init__(
        self,
        *,
        prefix: str = "signalprop",
        sites: Sites = False,
        statistics: Iterable[str] | None = None,
        scalars: str = "sampled",
    ) -> None:
        if scalars not in ("sampled", "all", "none"):
            raise SignalpropError(f"scalars={scalars!r} is none of 'sampled', 'all', 'none'")
        self.summary = Summary(prefix, sites, statistics)
        self._scalars = scalars
        # numbers of a step come after its sample, on an accelerator also before it
        self._sampled: dict[int, None] = {}
        self._early: dict[int, dict[str, float]] = {}

    # ---- a listener --------------------------------------------------------------------------

    def sample(self, sample: Sample) -> None:
        """A sampled step."""
        told = self.summary.of(sample)
        early = self._early.pop(sample.step, None)
        if early:
            told.numbers.update(early)
        elif self._scalars == "sampled":
            _bounded(self._sampled)[sample.step] = None
        self.put(told)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step."""
        if self._scalars == "none":
            return
        numbers = self.summary.scalars(values.items())
        if self._scalars == "sampled" and step not in self._sampled:
            _bounded(self._early).setdefault(step, {}).update(numbers)
        elif numbers:
            self.put(Told(step, numbers))

    def alarm(self, alarm: Alarm) -> None:
        """An alert."""
        self.say(alarm)

    @abstractmethod
    def close(self) -> None:
        """The run is over."""

    # ---- for each tool -----------------------------------------------------------------------

    @abstractmethod
    def put(self, told: Told) -> None:
        """Hand numbers of a step on."""

    @abstractmethod
    def say(self, alarm: Alarm) -> None:
        """Hand an alert on."""


def _bounded(kept: dict[int, _T]) -> dict[int, _T]:
    while len(kept) >= KEPT:
        del kept[next(iter(kept))]
    return kept
