"""What the report of a pass is about: one form for every result, so that all views say the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from signalprop.capture.kinds import KIND_LABELS
from signalprop.capture.time import Horizon
from signalprop.capture.trace import Trace
from signalprop.diagnosis.finding import Diagnosis, Finding, Learning, Result
from signalprop.errors import SignalpropError
from signalprop.report import words
from signalprop.theory.expect import BlockExpectation

#: the order in which outcomes that found nothing are counted
_SILENT = ("passed", "not applicable", "skipped", "ignored")


@dataclass(frozen=True)
class Contents:
    """A result, ready to be shown.

    Attributes:
        heading: what was looked at, in a few words.
        verdict: the whole in one or two sentences.
        state: `issue`, `tip`, `healthy`, `failed`, or `seen` where nothing was judged.
        trace: the pass.
        findings: what was found, issues first.
        results: every rule once; empty for a bare trace.
        expected: what theory expects of every block, keyed by its end; empty for a bare trace.
        learning: what the optimizer's next update does, or None.
        noise: gradient signal-to-noise per layer, or None.
        sharpness: largest eigenvalue of the loss's Hessian, or None.
        horizons: how far back in time credit reaches, where it was measured.
        lag: over how many steps the task needs memory, where it is known.
    """

    heading: str
    verdict: str
    state: str
    trace: Trace
    findings: tuple[Finding, ...]
    results: tuple[Result, ...]
    expected: Mapping[str, BlockExpectation]
    learning: Learning | None
    noise: Mapping[str, float] | None
    sharpness: float | None
    horizons: tuple[Horizon, ...] = ()
    lag: int | None = None

    @property
    def split(self) -> str:
        """The decay of the spine and its split by kind, as a sentence; empty without a spine."""
        trace = self.trace
        if not trace.blocks:
            return ""
        first, last = words.clean(trace.spine[0]), words.clean(trace.spine[-1])
        return words.split_sentence(trace.decay, trace.split, first, last, KIND_LABELS)

    @property
    def rules(self) -> str:
        """How many rules passed, do not apply, or were left out; empty for a bare trace."""
        if not self.results:
            return ""
        count = Counter(result.outcome for result in self.results)
        silent = [f"{count[outcome]} {outcome}" for outcome in _SILENT if count[outcome]]
        return f"{words.plural(len(self.results), 'rule')}: " + ", ".join(
            [words.plural(count[k], k) for k in ("issue", "tip") if count[k]] + silent
        )

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What was looked at, as pairs of a name and a value."""
        trace = self.trace
        facts = [
            ("model", words.clean(trace.model)),
            ("batch", words.plural(trace.batch, "sample")),
            ("mode", "training" if trace.training else "evaluation"),
            ("loss", words.number(trace.loss)),
            ("sites", f"{len(trace.sites)}, {len(trace.spine)} on the spine"),
            ("parameters", f"{parameters(trace):,}"),
        ]
        if self.learning is not None:
            rate = words.number(self.learning.rate)
            facts.append(("optimizer", f"{self.learning.optimizer}, learning rate {rate}"))
        if self.sharpness is not None:
            facts.append(("sharpness", words.number(self.sharpness)))
        return facts


def contents(result: Any) -> Contents:
    """The form of a result that every view is made from.

    Args:
        result: a `Diagnosis` or a `Trace`.

    Returns:
        Its contents.

    Raises:
        SignalpropError: for anything else.
    """
    if isinstance(result, Diagnosis):
        trace = result.trace
        if trace.failure is not None:
            state = "failed"
        elif result.findings:
            state = "tip" if result.healthy else "issue"
        else:
            state = "healthy"
        return Contents(
            heading=f"Diagnosis of {words.clean(trace.model)}",
            verdict=result.verdict,
            state=state,
            trace=trace,
            findings=tuple(sorted(result.findings, key=lambda f: f.severity != "issue")),
            results=result.results,
            expected=result.expected,
            learning=result.learning,
            noise=result.noise,
            sharpness=result.sharpness,
            horizons=getattr(result, "horizons", ()),
            lag=getattr(result, "lag", None),
        )
    if isinstance(result, Trace):
        return Contents(
            heading=f"Trace of {words.clean(result.model)}",
            verdict=_seen(result),
            state="seen" if result.failure is None else "failed",
            trace=result,
            findings=(),
            results=(),
            expected={},
            learning=None,
            noise=None,
            sharpness=None,
        )
    raise SignalpropError(
        f"there is no report for {type(result).__name__}; give a Trace, a "
        "Diagnosis, Spectra, Horizons, a PhaseDiagram or Trials"
    )


def measured(finding: Finding) -> str:
    """A finding's number beside the threshold it was compared with."""
    text = words.quantity(finding.value, finding.unit)
    if not math.isfinite(finding.threshold):
        return text
    return f"{text} (threshold {words.quantity(finding.threshold, finding.unit)})"


def failure_sentence(trace: Trace) -> str:
    """Where and why the pass stopped; empty where it did not."""
    failure = trace.failure
    if failure is None:
        return ""
    where = f" in {words.clean(failure.site)}" if failure.site else ""
    return (
        f"The {failure.phase} pass stopped{where}: {failure.error}: "
        f"{words.clean(failure.message)}. What was seen until then follows."
    )


def parameters(trace: Trace) -> int:
    """Number of parameters of the model."""
    return sum(math.prod(weight.shape) for weight in trace.weights.values())


def _seen(trace: Trace) -> str:
    seen = f"Saw {words.plural(len(trace.sites), 'site')} of {words.clean(trace.model)}"
    over = f"over {words.plural(trace.batch, 'sample')}, loss {words.number(trace.loss)}."
    return f"{seen} {over}"
