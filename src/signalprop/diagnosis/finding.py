"""What a diagnosis is: findings, one result per rule, and the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from signalprop._views import Viewable
from signalprop.capture.kinds import Kind
from signalprop.capture.time import Horizon
from signalprop.capture.trace import Trace, plain
from signalprop.theory.expect import BlockExpectation

Severity = Literal["issue", "tip"]
#: what became of a rule: it found an issue or a tip, or nothing; it does not apply to this network;
#: what it needs could not be measured; or the user left it out
Outcome = Literal["issue", "tip", "passed", "not applicable", "skipped", "ignored"]


@dataclass(frozen=True)
class Finding:
    """One rule's verdict on one network.

    Attributes:
        code: e.g. `SP101`.
        title: the rule's title.
        severity: `issue` harms training; `tip` is worth knowing.
        sites: where, from the worst on: site names, or parameter names.
        value: the measured number that the verdict rests on.
        unit: its unit, e.g. `nats`, `share of units`.
        threshold: the number it was compared with.
        explanation: one or two plain sentences with the numbers.
        cures: names of the cures that treat it, best first.
    """

    code: str
    title: str
    severity: Severity
    sites: tuple[str, ...]
    value: float
    unit: str
    threshold: float
    explanation: str
    cures: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """What became of one rule.

    Attributes:
        code: the rule's code.
        title: the rule's title.
        outcome: one of the six outcomes.
        reason: why it does not apply, was skipped or ignored; `""` otherwise.
    """

    code: str
    title: str
    outcome: Outcome
    reason: str


@dataclass(frozen=True)
class Learning:
    """What the optimizer's own next update does, layer by layer.

    Attributes:
        optimizer: class name; `SGD (assumed)` where none was given.
        share: each layer's part of the first-order decrease of the loss, -g . update over its
            parameters, divided by the sum over all layers; sums to 1; keyed by module path.
        later_share: the same for the last update that was rehearsed: a layer behind a weight that
            starts at zero (a zero head, ReZero, LoRA) has no share in the first update.
        update_ratio: |update| / |weights| of the layer, keyed by module path.
        decrease: first-order decrease of the loss in one update, -g . update over all layers.
        unmoved: share of the weights with a gradient that the update leaves bit for bit the same,
            keyed by module path.
        after: loss on the same batch after that many updates on copies, `after[0]` before any.
        rate: largest learning rate of the optimizer's groups.
    """

    optimizer: str
    share: Mapping[str, float]
    later_share: Mapping[str, float]
    update_ratio: Mapping[str, float]
    decrease: float
    unmoved: Mapping[str, float]
    after: tuple[float, ...]
    rate: float

    @property
    def falls(self) -> bool:
        """Whether the updates lower the loss by more than a thousandth, with no leap on the way."""
        lower = self.after[-1] < self.after[0] - 1e-3 * abs(self.after[0])
        return lower and self.leap <= 1

    @property
    def leap(self) -> float:
        """How far the loss rises at its highest, as a share of the loss before any update."""
        start = self.after[0]
        if not all(map(math.isfinite, self.after)):
            return math.inf
        return (max(self.after) - start) / max(abs(start), 1e-12)


@dataclass(frozen=True, repr=False)
class Diagnosis(Viewable):
    """The verdict on one network, and everything it rests on.

    Attributes:
        trace: the pass that was seen.
        findings: what was found, issues first, the most severe first.
        results: every rule exactly once, in order of code.
        expected: what mean-field theory expects of every block's decay, beside what was measured,
            keyed by the site at the block's end.
        learning: what the optimizer's next update does; None where it could not be measured.
        noise: gradient signal-to-noise over micro-batches per layer, |mean g|^2 / (trace of the
            variance of the mean), keyed by module path; None where it could not be measured.
        sharpness: largest eigenvalue of the loss's Hessian on the batch; measured for SGD, whose
            learning rate it bounds, where its next updates do not simply lower the loss; else None.
        verdict: the whole in one or two sentences.
        horizons: how far back in time credit reaches, of every recurrent layer and direction; none
            where no rule asked for it.
        lag: over how many steps the task needs memory; None where it is not known.
    """

    trace: Trace
    findings: tuple[Finding, ...]
    results: tuple[Result, ...]
    expected: Mapping[str, BlockExpectation]
    learning: Learning | None
    noise: Mapping[str, float] | None
    sharpness: float | None
    verdict: str
    horizons: tuple[Horizon, ...] = ()
    lag: int | None = None

    @property
    def healthy(self) -> bool:
        """Whether there is no finding of severity `issue`."""
        return not any(f.severity == "issue" for f in self.findings)

    @property
    def decay(self) -> float:
        """The trace's decay in nats, see `Trace.decay`."""
        return self.trace.decay

    @property
    def split(self) -> dict[Kind, float]:
        """The trace's decay by kind of operation, see `Trace.split`."""
        return self.trace.split

    def frame(self) -> Any:
        """One row per site, see `Trace.frame`, with the findings that name it."""
        frame = self.trace.frame()
        codes: dict[str, list[str]] = {}
        for finding in self.findings:
            for site in finding.sites:
                codes.setdefault(site, []).append(finding.code)
        frame["findings"] = [" ".join(codes.get(name, ())) for name in frame.index]
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Plain data that json can write; values that are not finite become strings."""
        return plain(self)
