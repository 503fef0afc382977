"""Where a deep network loses its signal, and why."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from signalprop import cures as cures
    from signalprop import nets as nets
    from signalprop import theory as theory
    from signalprop.capture.trace import Block as Block
    from signalprop.capture.trace import Site as Site
    from signalprop.capture.trace import Trace as Trace
    from signalprop.config import show_config as show_config
    from signalprop.cures.trials.prove import cure as cure
    from signalprop.cures.trials.result import Trial as Trial
    from signalprop.cures.trials.result import Trials as Trials
    from signalprop.diagnosis.engine import DEFAULT_RULES as DEFAULT_RULES
    from signalprop.diagnosis.engine import diagnose as diagnose
    from signalprop.diagnosis.evidence import Evidence as Evidence
    from signalprop.diagnosis.finding import Diagnosis as Diagnosis
    from signalprop.diagnosis.finding import Finding as Finding
    from signalprop.diagnosis.finding import Learning as Learning
    from signalprop.diagnosis.finding import Result as Result
    from signalprop.diagnosis.rule import NotApplicable as NotApplicable
    from signalprop.diagnosis.rule import finding as finding
    from signalprop.diagnosis.rule import rule as rule
    from signalprop.errors import SignalpropError as SignalpropError
    from signalprop.jacobian.spectra import Spectra as Spectra
    from signalprop.jacobian.spectra import Spectrum as Spectrum
    from signalprop.jacobian.spectrum import spectrum as spectrum
    from signalprop.memory import keep_memory as keep_memory
    from signalprop.recurrent.horizon.measure import horizon as horizon
    from signalprop.recurrent.horizon.result import Horizons as Horizons
    from signalprop.recurrent.observe import trace as trace
    from signalprop.watching.actions import StopTraining as StopTraining
    from signalprop.watching.file.reader import Run as Run
    from signalprop.watching.sample import Alarm as Alarm
    from signalprop.watching.watch import Watch as Watch
    from signalprop.watching.watch import watch as watch

__version__ = "0.1.0"

# resolved on first use, so that importing the package and `signalprop --help` stay quick
_HOMES = {
    "trace": "signalprop.recurrent.observe",
    "diagnose": "signalprop.diagnosis.engine",
    "Trace": "signalprop.capture.trace",
    "Site": "signalprop.capture.trace",
    "Block": "signalprop.capture.trace",
    "Diagnosis": "signalprop.diagnosis.finding",
    "Finding": "signalprop.diagnosis.finding",
    "Learning": "signalprop.diagnosis.finding",
    "Result": "signalprop.diagnosis.finding",
    "Evidence": "signalprop.diagnosis.evidence",
    "DEFAULT_RULES": "signalprop.diagnosis.engine",
    "rule": "signalprop.diagnosis.rule",
    "finding": "signalprop.diagnosis.rule",
    "NotApplicable": "signalprop.diagnosis.rule",
    "SignalpropError": "signalprop.errors",
    "spectrum": "signalprop.jacobian.spectrum",
    "Spectra": "signalprop.jacobian.spectra",
    "Spectrum": "signalprop.jacobian.spectra",
    "horizon": "signalprop.recurrent.horizon.measure",
    "Horizons": "signalprop.recurrent.horizon.result",
    "cure": "signalprop.cures.trials.prove",
    "Trials": "signalprop.cures.trials.result",
    "Trial": "signalprop.cures.trials.result",
    "watch": "signalprop.watching.watch",
    "Watch": "signalprop.watching.watch",
    "Alarm": "signalprop.watching.sample",
    "StopTraining": "signalprop.watching.actions",
    "Run": "signalprop.watching.file.reader",
    "keep_memory": "signalprop.memory",
    "show_config": "signalprop.config",
}
_ROOMS = ("cures", "nets", "theory")

__all__ = ["__version__", *_ROOMS, *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"signalprop.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
