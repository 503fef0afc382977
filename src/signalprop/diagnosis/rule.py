"""A rule is a plain function; the decorator only attaches what is known about it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from signalprop.diagnosis.finding import Finding, Severity


@dataclass(frozen=True)
class RuleInfo:
    """What is known about a rule.

    Attributes:
        code: `SP1xx` for depth and units, `SP2xx` for the program, `SP3xx` for time.
        title: a short sentence.
        severity: of its findings, unless the finding says otherwise.
        needs: what it needs besides the trace's forward half: any of `deltas`, `learning`,
            `noise`, `sharpness`, `leading`, `optimizer`, `horizon`, `clip`; without them it is
            skipped.
        wants: what is measured for it where it can be, and missed without harm.
        cures: names of the cures that treat it, best first.
        thresholds: names and defaults of its keyword arguments.
    """

    code: str
    title: str
    severity: Severity
    needs: tuple[str, ...]
    wants: tuple[str, ...]
    cures: tuple[str, ...]
    thresholds: Mapping[str, Any]


class NotApplicable(Exception):  # noqa: N818 - an outcome, not an error
    """Raised by a rule that has nothing to say about this network; the message says why."""


class Rule(Protocol):
    """A function from evidence to findings, with `rule` attached."""

    rule: RuleInfo

    def __call__(self, evidence: Any, /, **thresholds: Any) -> Iterable[Finding]:
        """Judge."""


def rule(
    code: str,
    title: str,
    *,
    severity: Severity = "issue",
    needs: tuple[str, ...] = (),
    wants: tuple[str, ...] = (),
    cures: tuple[str, ...] = (),
) -> Callable[[Callable[..., Iterable[Finding]]], Rule]:
    """Attach code, title, needs and cures to a function `(evidence, *, thresholds) -> findings`."""

    def attach(function: Callable[..., Iterable[Finding]]) -> Any:
        thresholds = {
            name: p.default
            for name, p in inspect.signature(function).parameters.items()
            if p.kind is p.KEYWORD_ONLY
        }
        function.rule = RuleInfo(code, title, severity, needs, wants, cures, thresholds)  # type: ignore[attr-defined]
        return function

    return attach


def finding(
    judge: Any,
    *,
    sites: Iterable[str] = (),
    value: float,
    unit: str,
    threshold: float,
    explanation: str,
    severity: Severity | None = None,
    cures: tuple[str, ...] | None = None,
) -> Finding:
    """A finding of the rule `judge`, which gives code, title, severity and cures."""
    info: RuleInfo = judge.rule
    made = Finding(
        code=info.code,
        title=info.title,
        severity=info.severity,
        sites=tuple(dict.fromkeys(sites)),
        value=float(value),
        unit=unit,
        threshold=float(threshold),
        explanation=explanation if explanation.endswith(".") else f"{explanation}.",
        cures=info.cures,
    )
    if severity is not None:
        made = replace(made, severity=severity)
    return made if cures is None else replace(made, cures=cures)
