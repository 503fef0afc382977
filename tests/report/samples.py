"""Results to look at: real traces, and verdicts made up around them."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from tests.cases import by_name
from torch import nn

import signalprop as sp
from signalprop.capture.trace import Trace
from signalprop.diagnosis.finding import Diagnosis, Finding, Learning, Result

EVIL = "</script><img src=x onerror=alert(1)><a href='https://example.org'>x</a>"


def traced(name: str) -> Trace:
    """The trace of a case."""
    return sp.trace(*by_name(name).build())


def deep(layers: int, width: int = 8) -> Trace:
    """The trace of that many tanh layers which keep the signal's scale."""
    modules: list[nn.Module] = []
    for _ in range(layers):
        modules += [nn.Linear(width, width), nn.Tanh()]
        nn.init.orthogonal_(modules[-2].weight)
    model = nn.Sequential(*modules, nn.Linear(width, 3))
    return sp.trace(model, (torch.randn(4, width), torch.randint(3, (4,))), F.cross_entropy)


def named_badly() -> Trace:
    """The trace of a model whose submodule has a name that would break out of a page."""

    class Bad(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module(EVIL.replace(".", "_"), nn.Linear(4, 4))
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            for child in self.children():
                x = child(x)
            return x

    return sp.trace(Bad(), (torch.randn(4, 4), torch.randint(3, (4,))), F.cross_entropy)


def findings(trace: Trace) -> tuple[Finding, ...]:
    """A tip and an issue, in the order a report has to turn round."""
    return (
        Finding(
            code="SP204",
            title="Inputs not normalised",
            severity="tip",
            sites=(next(iter(trace.sites)),),
            value=3.25,
            unit="standard deviations",
            threshold=2.0,
            explanation=f"The input lies off centre. {EVIL}",
            cures=("standardise",),
        ),
        Finding(
            code="SP101",
            title="Error signal vanishes with depth",
            severity="issue",
            sites=tuple(trace.spine),
            value=trace.decay,
            unit="nats",
            threshold=-7.0,
            explanation="The error signal falls on its way back; the first layers hardly learn.",
            cures=("he-init", "residual"),
        ),
    )


def diagnosed(trace: Trace, *, healthy: bool = False) -> Diagnosis:
    """A verdict around a trace, with every kind of number a report can show."""
    layers = list(dict.fromkeys(w.module for w in trace.weights.values()))
    outcomes = ["issue", "tip", *["passed"] * 5, *["not applicable"] * 2, "skipped", "ignored"]
    if healthy:
        outcomes = ["passed"] * 11
    return Diagnosis(
        trace=trace,
        findings=() if healthy else findings(trace),
        results=tuple(
            Result(
                code=f"SP{101 + i}",
                title=f"Rule {i}",
                outcome=outcome,
                reason="no recurrent layer" if outcome == "not applicable" else "",
            )
            for i, outcome in enumerate(outcomes)
        ),
        expected={},
        learning=Learning(
            optimizer="SGD",
            share=dict.fromkeys(layers, 1 / max(1, len(layers))),
            later_share=dict.fromkeys(layers, 1 / max(1, len(layers))),
            update_ratio=dict.fromkeys(layers, 1e-3),
            decrease=0.01,
            unmoved=dict.fromkeys(layers, 0.0),
            after=(2.31, 2.305),
            rate=0.01,
        ),
        noise=dict.fromkeys(layers, 0.5),
        sharpness=12.0,
        verdict="Nothing to worry about." if healthy else "The error signal vanishes with depth.",
    )


def with_decay(trace: Trace, decay: float) -> Trace:
    """The same trace with that decay in its last block."""
    *rest, last = trace.blocks
    changed = dataclasses.replace(last, decay=decay, parts={"weights": decay})
    return dataclasses.replace(trace, blocks=(*rest, changed))


def emptied(trace: Trace) -> Trace:
    """A trace in which nothing was seen."""
    return dataclasses.replace(
        trace, sites={}, spine=(), blocks=(), weights={}, loss=math.nan, notes=()
    )
