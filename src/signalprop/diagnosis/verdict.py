"""The whole in one or two sentences: what is wrong first, and how far the signal gets."""

from __future__ import annotations

import math

from signalprop.capture.kinds import KIND_LABELS
from signalprop.capture.trace import Trace
from signalprop.diagnosis.depth.forward import cosine, ends
from signalprop.diagnosis.depth.leading import small
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.finding import Finding
from signalprop.diagnosis.rule import NotApplicable

#: causes before their consequences: a wrong program explains what it does to the signal
_ORDER = (
    "SP202 SP207 SP205 SP203 SP204 SP209 SP212 SP201 SP213 SP208 SP206 SP214 SP210 SP110 SP111 "
    "SP306 SP304 SP305 SP307 SP302 SP308 SP303 SP301 "
    "SP101 SP102 SP105 SP104 SP109 SP107 SP106 SP108 SP112 SP113 SP117 SP114 SP115 SP116 SP103 "
    "SP211 SP215"
).split()


def rank(finding: Finding) -> int:
    """Place of a finding's code in the order from cause to consequence."""
    return _ORDER.index(finding.code) if finding.code in _ORDER else len(_ORDER)


def split_sentence(trace: Trace) -> str:
    """`loses 38.2 nats from "60" to "0": activation slope -27.1, weights -11.1`, or `""`."""
    if not trace.blocks or math.isnan(trace.decay):
        return ""
    first, last = trace.spine[0], trace.spine[-1]
    if trace.decay == -math.inf:
        return f"the error signal becomes exactly zero at {trace.cut} on its way back from {last}"
    parts = sorted(trace.split.items(), key=lambda item: -abs(item[1]))
    told = ", ".join(f"{KIND_LABELS[k]} {v:+.1f}" for k, v in parts if abs(v) >= 0.05)
    verb = "loses" if trace.decay < 0 else "gains"
    return (
        f"the error signal {verb} {abs(trace.decay):.1f} nats on its way back from {last} to "
        f"{first}" + (f" ({told})" if told else "")
    )


def weighed(trace: Trace, evidence: Evidence) -> str:
    """Beside its length: whether the signal keeps its directions, and samples apart, or `""`.

    A good ratio of norms is necessary, not sufficient.

    Returns:
        Words that go on from those about its length.
    """
    told = ""
    end = evidence.leading[0] if evidence.leading else None
    if end is not None and len(end.ratios) > 1 and end.largest > 0:
        told += f"; the weakest of {len(end.ratios)} directions comes back at "
        told += f"{small(end.ratios[-1])} of the strongest"
    try:
        first, last = (site.activation.cosine for site in ends(trace))
    except NotApplicable:
        return told
    if not math.isnan(first + last):
        told += f"; the mean cosine of two samples goes from {first:.2f} to {_apart(last)}"
    return told


def _apart(value: float) -> str:
    return cosine(value) if value > 0.99 else f"{value:.2f}"


def of(trace: Trace, evidence: Evidence, findings: tuple[Finding, ...]) -> str:
    """The verdict."""
    issues = [f for f in findings if f.severity == "issue"]
    split = split_sentence(trace)
    if split:
        split += weighed(trace, evidence)
    if trace.failure is not None and issues:
        return f"{issues[0].title}: {issues[0].explanation}"
    if not issues:
        count = len(findings)
        tips = f", {count} tip{'s' if count > 1 else ''}" if count else ""
        return f"No issue found{tips}" + (f": {split}." if split else ".")
    more = f" ({len(issues)} issues in all)" if len(issues) > 1 else ""
    head = f"{issues[0].title}{more}: {issues[0].explanation}"
    if split and issues[0].code not in ("SP101", "SP102"):
        head += f" In all, {split}."
    return head
