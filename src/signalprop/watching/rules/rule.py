"""A rule over time: a plain function from what is remembered of a run to alarms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, Protocol

from signalprop.diagnosis.finding import Severity
from signalprop.diagnosis.rule import RuleInfo, rule
from signalprop.watching.sample import Alarm

if TYPE_CHECKING:
    from signalprop.watching.rules.past import Past

#: when a rule is asked: at every step where something leaps to the eye (`Past.stirred`), at every
#: 32nd step, or at every closed block of samples
When = Literal["stir", "steps", "block"]


class RuleOverTime(Protocol):
    """A function from what is remembered of a run to alarms, with `rule` and `when` attached."""

    rule: RuleInfo
    when: When

    def __call__(self, past: Past, /, **thresholds: Any) -> Iterable[Alarm]:
        """Judge."""


def over_time(
    code: str,
    title: str,
    *,
    when: When = "block",
    severity: Severity = "issue",
    needs: tuple[str, ...] = (),
    wants: tuple[str, ...] = (),
    cures: tuple[str, ...] = (),
) -> Callable[[Callable[..., Iterable[Alarm]]], RuleOverTime]:
    """Attach what is known about a rule to a function `(past, *, thresholds) -> alarms`.

    Args:
        code: `SP4xx`.
        title: a short sentence.
        when: it is asked.
        severity: of its alarms, unless the alarm says otherwise.
        needs: statistics and scalars without which it is not asked.
        wants: those that it uses where they are there.
        cures: names of the cures that treat it, best first.

    Returns:
        The decorator.
    """
    attach = rule(code, title, severity=severity, needs=needs, wants=wants, cures=cures)

    def decorate(function: Callable[..., Iterable[Alarm]]) -> Any:
        made: Any = attach(function)  # type: ignore[arg-type]
        made.when = when
        return made

    return decorate


def alarm(
    judge: Any,
    past: Past,
    *,
    sites: Iterable[str] = (),
    value: float,
    unit: str,
    threshold: float,
    since: int,
    explanation: str,
    severity: Severity | None = None,
    cures: tuple[str, ...] | None = None,
) -> Alarm:
    """An alarm of the rule `judge`, which gives code, title, severity and cures."""
    info: RuleInfo = judge.rule
    return Alarm(
        step=past.step,
        code=info.code,
        title=info.title,
        severity=info.severity if severity is None else severity,
        sites=tuple(dict.fromkeys(sites)),
        value=min(max(float(value), -1e300), 1e300),  # JSON has no infinity
        unit=unit,
        threshold=float(threshold),
        since=int(since),
        explanation=explanation if explanation.endswith(".") else f"{explanation}.",
        cures=info.cures if cures is None else cures,
    )
