"""Trials to look at: made by hand, as plain data, on the diagnosis of a real network."""

from __future__ import annotations

import dataclasses
import math
from functools import cache

import torch
from tests.report.samples import diagnosed, traced
from torch import nn

from signalprop.cures.training import Recipe, Training
from signalprop.cures.trials.result import Trial, Trials, judged
from signalprop.diagnosis.finding import Diagnosis, Finding

STEPS = 200
UNTOUCHED = (0.34, 0.35, 0.36)
ISSUE = Finding(
    "SP101", "Error signal vanishes with depth", "issue", ("0",), -38.2, "nats", 7.0,
    "It is lost.", ("he-init",),
)  # fmt: skip
TIP = dataclasses.replace(ISSUE, code="SP114", severity="tip", title="Deeper than it bears")
EVIL = '<img src=x onerror=alert(1)>"</script>\x1b[31m'


def trial(
    name: str,
    metric: tuple[float, ...],
    *,
    untouched: tuple[float, ...] = UNTOUCHED,
    step: int = STEPS,
    lines: tuple[str, ...] | None = None,
    failed: str = "",
) -> Trial:
    """A trial with losses that fall as its metric is high."""
    points = {50: 20, 100: 40, STEPS: 60}[step]
    falls = [max(v, 0.0) for v in metric]
    curves = tuple(tuple(2.3 * math.exp(-5 * v * i / 60) for i in range(points)) for v in falls)
    verdict = "untouched" if name == "untouched" else judged(metric, untouched)
    cures = tuple(name.split(" + ")) if verdict != "untouched" else ()
    if lines is None:
        lines = tuple(f"model = signalprop.cures.{c.replace('-', '_')}(model)" for c in cures)
    return Trial(
        name=name, cures=cures, lines=lines, verdict="failed" if failed else verdict,
        metric=metric, untouched=untouched, losses=tuple(2.3 - v for v in metric), curves=curves,
        step=step, stopped=step < STEPS, failed=failed, seconds=1.25,
    )  # fmt: skip


@cache
def seen(*findings: Finding) -> Diagnosis:
    """A diagnosis with these findings."""
    return dataclasses.replace(diagnosed(traced("mlp-sigmoid-30")), findings=findings)


def made(*tried: Trial, before: tuple[Finding, ...] = (ISSUE, TIP), **changed: object) -> Trials:
    """Trials of these candidates."""
    plain = changed.pop("untouched", None) or trial("untouched", UNTOUCHED)
    net = nn.Linear(2, 2)
    training = Training(net, None, Recipe.of(torch.optim.SGD(net.parameters(), lr=0.1), net))
    helps = any(t.verdict in ("helps", "better") for t in tried)
    values = {
        "model": "Net", "metric": "accuracy", "data": "10 batches; every fifth is held out",
        "seeds": tuple(range(len(plain.metric))), "steps": STEPS, "untouched": plain,
        "trials": tried, "before": seen(*before), "after": seen(TIP) if helps else None,
        "cured": training if helps else None, "rejected": {}, "complete": True, "notes": (),
    }  # fmt: skip
    return Trials(**(values | changed))


def helped() -> Trials:
    """One that helps in front of others: stopped, worse, diverged."""
    long = "remove-softmax + he-init + residual + batch-norm + largest-rate"
    lines = (
        "loss = torch.nn.functional.cross_entropy  # takes logits",
        "optimizer = torch.optim.Adam(model.parameters(), lr=0.0031, betas=(0.9, 0.95), eps=1e-06)",
    )
    return made(
        trial(long, (0.92, 0.93, 0.95), lines=("model = signalprop.cures.he_init(model)", *lines)),
        trial("residual", (0.61, 0.7, 0.8)),
        trial("batch-norm", (0.34, 0.35, 0.37), step=100),
        trial("selu", (0.2, 0.21, 0.19), step=50),
        trial("rate", (-math.inf,) * 3, step=50, failed="it diverged: the loss is not finite"),
        rejected={"positions": "the network has no attention."},
        notes=("no optimizer was given: SGD is assumed",),
    )


def nothing() -> Trials:
    """An issue, and nothing helps."""
    return made(trial("he-init", (0.34, 0.35, 0.36)), trial("selu", (0.1, 0.11, 0.12)))


def healthy() -> Trials:
    """Nothing to treat."""
    return made(before=())


def named_badly() -> Trials:
    """Names and reasons that would run if they were not escaped."""
    return made(
        trial(EVIL, (0.9, 0.92, 0.93), lines=(f"model = {EVIL}",)),
        trial("he-init", (-math.inf,) * 3, failed=EVIL),
        model=EVIL, metric=EVIL, data=EVIL, rejected={EVIL: EVIL}, notes=(EVIL,),
    )  # fmt: skip


def odd() -> Trials:
    """One seed, an untouched network that diverges, an R2 far below zero."""
    none = (-math.inf,)
    return made(
        trial("clip", (0.3,), untouched=none),
        trial("rate", (-1e6,), untouched=none),
        untouched=trial("untouched", none, untouched=none),
        metric="R2",
        complete=False,
    )
