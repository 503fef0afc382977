"""Evidence made by hand around a real pass, and small networks to make it of."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from signalprop.capture.observe import observe, unwrapped
from signalprop.diagnosis import samples
from signalprop.diagnosis.evidence import Evidence, OptimizerFacts, WeightFacts
from signalprop.diagnosis.finding import Finding, Learning
from signalprop.diagnosis.rule import NotApplicable, Rule

WIDTH = 16


def mlp(outputs: int = 5, *last: nn.Module, inputs: int = WIDTH) -> nn.Sequential:
    """Two hidden layers and what is to come last."""
    hidden = [nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(32, outputs), *last)


def features(n: int = 32, width: int = WIDTH) -> Tensor:
    """Standardised features."""
    x = torch.randn(n, width)
    return (x - x.mean(0)) / x.std(0)


def labels(n: int = 32, classes: int = 5) -> Tensor:
    """Class numbers, every class at least once."""
    return torch.cat([torch.arange(classes), torch.randint(classes, (n - classes,))])


def rows_alike(p: Tensor) -> WeightFacts:
    """What evidence holds of a parameter."""
    value = p.detach()
    rows = value.reshape(value.shape[0], -1) if value.ndim > 1 else value.reshape(1, -1)
    same = (rows == rows[:1]).all(1).float().mean()
    return WeightFacts(float(same), bool((rows == rows[0, 0]).all()))


def optimizer_facts(
    model: nn.Module,
    *,
    name: str = "SGD",
    rate: float = 0.05,
    held: Any = None,
    foreign: int = 0,
    momentum: float = 0.0,
    fresh: bool = True,
) -> OptimizerFacts:
    """Facts of an optimizer that holds all parameters, unless told otherwise."""
    everything = frozenset(n for n, _ in unwrapped(model).named_parameters())
    return OptimizerFacts(
        name, rate, everything if held is None else frozenset(held), foreign, momentum, fresh
    )


def rehearsal(model: nn.Module, **values: Any) -> Learning:
    """Learning as of a healthy network, with other values where they are given."""
    layers = dict.fromkeys(dict.fromkeys(n.rpartition(".")[0] for n, _ in model.named_parameters()))
    healthy: dict[str, Any] = {
        "optimizer": "SGD",
        "share": {layer: 1 / len(layers) for layer in layers},
        "later_share": {layer: 1 / len(layers) for layer in layers},
        "update_ratio": dict.fromkeys(layers, 1e-3),
        "decrease": 0.05,
        "unmoved": dict.fromkeys(layers, 0.0),
        "after": (1.6, 1.55, 1.5),
        "rate": 0.05,
    }
    return Learning(**(healthy | values))


def evidence_of(
    model: nn.Module,
    batch: Any,
    loss: Any = None,
    *,
    optimizer: OptimizerFacts | None = None,
    learning: Learning | None = None,
    sharpness: float | None = None,
) -> Evidence:
    """Evidence around a real pass; what is not given is missing."""
    model = unwrapped(model)
    seen = observe(model, batch, loss)
    finite = seen.error is None and math.isfinite(seen.trace.loss)
    asked = finite and samples.suspicious(seen.trace)
    measured = {"optimizer": optimizer, "learning": learning, "sharpness": sharpness, "noise": None}
    missing = {k: "not measured in this test" for k, v in measured.items() if v is None}
    if seen.error is not None or not math.isfinite(seen.trace.loss):
        missing["deltas"] = "the pass stopped"
    return Evidence(
        trace=seen.trace,
        model=model,
        loss=loss,
        later=None,
        learning=learning,
        noise=None,
        sharpness=sharpness,
        leading=(),
        optimizer=optimizer,
        weights={n: rows_alike(p) for n, p in model.named_parameters() if p.numel()},
        missing=missing,
        samples=samples.measure(model, batch, loss, seen.trace, 0) if asked else None,
    )


def judge(rule: Rule, evidence: Evidence, **thresholds: Any) -> list[Finding]:
    """What a rule finds, each finding checked for its form."""
    found = list(rule(evidence, **thresholds))
    for f in found:
        assert f.code == rule.rule.code
        assert f.explanation.endswith("."), f.explanation
        assert len(f.explanation) < 420
        assert f.cures
    return found


def outcome(rule: Rule, evidence: Evidence) -> list[str]:
    """Severities of what a rule finds; the reason in a list where it does not apply."""
    try:
        return [f.severity for f in judge(rule, evidence)]
    except NotApplicable as why:
        return [f"not applicable: {why}"]
