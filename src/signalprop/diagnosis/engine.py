"""`diagnose`: measure what the rules need, run every rule once, list each exactly once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from signalprop.capture import batch as batches
from signalprop.capture.batch import Loss
from signalprop.capture.observe import Pass, check, eager, raise_failure, unwrapped
from signalprop.capture.sandbox import random_state, untouched
from signalprop.capture.trace import Trace
from signalprop.diagnosis import curvature, samples, verdict
from signalprop.diagnosis.depth.backward import BACKWARD_RULES
from signalprop.diagnosis.depth.forward import FORWARD_RULES, relative_distance
from signalprop.diagnosis.depth.leading import LEADING_RULES
from signalprop.diagnosis.depth.leading import measure as measure_leading
from signalprop.diagnosis.depth.mean_field import MEAN_FIELD_RULES
from signalprop.diagnosis.depth.units import UNIT_RULES
from signalprop.diagnosis.evidence import Evidence, Leading, OptimizerFacts, WeightFacts
from signalprop.diagnosis.finding import Diagnosis, Finding, Learning, Result
from signalprop.diagnosis.learning import Rehearsal, facts_of, plain_optimizer
from signalprop.diagnosis.probe import Probe
from signalprop.diagnosis.program.rate import creeps
from signalprop.diagnosis.program.rules import PROGRAM_RULES
from signalprop.diagnosis.rule import NotApplicable, Rule
from signalprop.diagnosis.time.lag import Lag
from signalprop.diagnosis.time.measure import check_clip, over_time
from signalprop.diagnosis.time.rules import TIME_RULES
from signalprop.errors import SignalpropError
from signalprop.recurrent.observe import observe
from signalprop.theory.expect import BlockExpectation, expect

DEFAULT_RULES: tuple[Rule, ...] = (
    *BACKWARD_RULES,
    *FORWARD_RULES,
    *LEADING_RULES,
    *MEAN_FIELD_RULES,
    *UNIT_RULES,
    *PROGRAM_RULES,
    *TIME_RULES,
)

#: updates that are rehearsed on copies; the loss after them tells a rate that is too large
UPDATES = 4
#: what takes a backward pass through a finite network
FROM_GRADIENTS = ("deltas", "learning", "noise", "sharpness", "leading")
#: columns of a weight matrix that are compared first
FEW = 8

#: below this share of the distance at the input the pass is seen again after the updates
SUSPICIOUS = 0.05

Progress = Callable[[str], None]


def diagnose(
    model: torch.nn.Module,
    batch: Any,
    loss: Loss = None,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    batch_dim: int | None = None,
    lag: int | None = None,
    clip: float | None = None,
    rules: Iterable[Rule] = DEFAULT_RULES,
    ignore: Iterable[str] = (),
    progress: Progress | None = None,
) -> Diagnosis:
    """Say where a network loses its signal, why, and what else keeps it from learning.

    The model, its gradients, its buffers and the random state are afterwards bit for bit what
    they were, also after an error; the optimizer is copied, never stepped.

    Args:
        model: any module, in the mode it is to be judged in (normally `train()`).
        batch: as for `trace`; 32 to 256 samples are enough. A DataLoader gives its first batch.
        loss: as for `trace`.
        optimizer: the optimizer it is trained with, in its present state; verdicts depend on it.
            Where it is None, plain SGD is assumed and rules about the learning rate are skipped.
        batch_dim: as for `trace`.
        lag: of recurrent networks, over how many steps the task needs memory: from the error back
            to the input that it is about. None estimates it from the data, best from a DataLoader,
            of which up to 1024 samples are taken; a single batch of 64 shows strong ones only.
        clip: the norm that training clips the gradient to, where it does.
        rules: the rules to run; add your own: `(*sp.DEFAULT_RULES, mine)`.
        ignore: codes to leave out, e.g. `["SP206"]`.
        progress: called with the name of each phase.

    Returns:
        The diagnosis: `findings` (issues first), `results` (every rule once), `trace`, `learning`,
        `noise`, `sharpness`, `horizons`, `lag`, `verdict`. Print it, show it in a notebook, or
        `.save("x.html")`.

    Raises:
        BatchError: the batch is empty or of an unknown form.
        LossError: there is no scalar loss that depends on the model.
        ModelError: the model raised for a reason that no rule explains.
        SignalpropError: a code in `ignore` does not exist, or `lag` or `clip` is out of range.

    Note:
        Cost: about ten plain training steps, all rules included; of recurrent networks, some more
        for the horizon.

    Examples:
        >>> import torch, signalprop as sp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> d = sp.diagnose(net, (torch.randn(32, 4), torch.randint(2, (32,))),
        ...                 torch.nn.functional.cross_entropy)
        >>> d.healthy
        True
    """
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        given = optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__
        raise SignalpropError(
            f"the optimizer has no parameter groups ({given}); give an instance, for example "
            "torch.optim.SGD(model.parameters(), lr=0.1)"
        )
    known_lag = None if lag is None else Lag.given(lag)
    check_clip(clip)
    rules = tuple(rules)
    ignored = _known(ignore, rules)
    say = progress or (lambda phase: None)
    model = unwrapped(model)
    check(model)
    with random_state():
        data = batches.first_of(batch)
        if batch_dim is None:
            batch_dim = batches.sample_dim(data, model, loss)
    say("one pass, seen")
    seen = observe(model, data, loss, batch_dim=batch_dim)
    asking = [r.rule for r in rules if r.rule.code not in ignored]
    needed = {what for rule in asking for what in rule.needs}
    wanted = {what for rule in asking for what in rule.wants}
    plain = plain_optimizer(optimizer) if optimizer is not None else None
    measured = _measure(model, data, loss, plain, seen, needed, wanted, batch_dim, say)
    if needed & {"horizon", "clip"} or wanted & {"time", "lag"}:
        told = replace(measured, lag=known_lag, clip=clip)
        measured = over_time(told, batch, data, loss, batch_dim, say)
    say("rules")
    findings, results = _judge(rules, measured, ignored)
    if not any(f.severity == "issue" for f in findings):
        raise_failure(seen)
    return Diagnosis(
        trace=seen.trace,
        findings=findings,
        results=results,
        expected=_expected(seen, model),
        learning=measured.learning,
        noise=measured.noise,
        sharpness=measured.sharpness,
        verdict=verdict.of(seen.trace, measured, findings),
        horizons=measured.horizons,
        lag=None if measured.lag is None else measured.lag.usual or None,
    )


def _expected(seen: Pass, model: torch.nn.Module) -> dict[str, BlockExpectation]:
    """What theory expects, block by block; nothing where it cannot be told."""
    if seen.error is not None:
        return {}
    try:
        return expect(seen.trace, model)
    except Exception:  # a comparison beside the diagnosis must not cost the diagnosis
        return {}


def _known(ignore: Iterable[str], rules: tuple[Rule, ...]) -> frozenset[str]:
    codes = {r.rule.code for r in rules}
    wanted = frozenset([ignore] if isinstance(ignore, str) else ignore)
    unknown = sorted(wanted - codes)
    if unknown:
        raise SignalpropError(
            f"there is no rule {unknown[0]}; the rules are {', '.join(sorted(codes))}"
        )
    return wanted


# ---- measuring -------------------------------------------------------------------------------


def _measure(
    model: torch.nn.Module,
    data: Any,
    loss: Loss,
    optimizer: torch.optim.Optimizer | None,
    seen: Pass,
    needed: set[str],
    wanted: set[str],
    batch_dim: int,
    say: Progress,
) -> Evidence:
    trace = seen.trace
    missing: dict[str, str] = {}
    learning: Learning | None = None
    later: Trace | None = None
    noise: Mapping[str, float] | None = None
    sharp: float | None = None
    leading: tuple[Leading, ...] = ()
    alone: samples.SampleFacts | None = None
    optimizer_facts: OptimizerFacts | None = None
    if optimizer is None:
        missing["optimizer"] = "no optimizer was given"
    else:
        optimizer_facts = facts_of(optimizer, model)
    if seen.error is not None:
        failed = f"the pass stopped: {trace.failure.message if trace.failure else seen.error}"
        missing |= dict.fromkeys(FROM_GRADIENTS, failed)
    elif not math.isfinite(trace.loss) or not _finite(trace):
        missing |= dict.fromkeys(FROM_GRADIENTS, "the loss or its gradient is not finite")
    else:
        with untouched(model) as sandbox, eager():
            probe = Probe(model, sandbox, data, loss, batch_dim=batch_dim)
            if not probe.trained:
                missing |= dict.fromkeys(
                    ("learning", "noise", "sharpness"), "no parameter requires a gradient"
                )
            else:
                say("the optimizer's next updates, on copies")
                learning, later = _rehearse(probe, optimizer, seen, data, loss, batch_dim, missing)
                say("gradient noise over micro-batches")
                noise = _guard("noise", missing, probe, lambda: curvature.gradient_noise(probe))
                unneeded = _no_sharpness(optimizer_facts, learning, needed, wanted)
                if unneeded is not None:
                    missing["sharpness"] = unneeded
                else:
                    say("sharpness")
                    sharp = _guard(
                        "sharpness",
                        missing,
                        probe,
                        lambda: curvature.sharpness(probe, seen.gradients),
                    )
        if samples.suspicious(trace) or creeps(learning, optimizer_facts):
            say("the loss of single samples")
            with suppress(Exception):  # a loss that takes no single sample; stops nothing
                alone = samples.measure(model, data, loss, trace, batch_dim)
        if "leading" in needed:
            say("which directions get through")
            try:
                leading = measure_leading(model, data, loss, trace, batch_dim)
            except Exception as error:  # never stops the diagnosis
                missing["leading"] = str(error) or type(error).__name__
    return Evidence(
        trace=trace,
        model=model,
        loss=loss,
        later=later,
        learning=learning,
        noise=noise,
        sharpness=sharp,
        leading=leading,
        optimizer=optimizer_facts,
        weights=_weight_facts(model),
        missing=missing,
        samples=alone,
    )


def _no_sharpness(
    optimizer: OptimizerFacts | None,
    learning: Learning | None,
    needed: set[str],
    wanted: set[str],
) -> str | None:
    """Why the sharpness, the dearest of the numbers, is not measured; None where it is."""
    if optimizer is None:
        return "no optimizer was given"
    if not optimizer.plain:
        return f"it bounds the rate of SGD, not of {optimizer.name}"
    if "sharpness" in needed:
        return None
    if learning is not None and learning.falls:
        return "the next updates lower the loss, which settles the rate"
    return None if "sharpness" in wanted else "no rule asks for it"


def _rehearse(
    probe: Probe,
    optimizer: torch.optim.Optimizer | None,
    seen: Pass,
    data: Any,
    loss: Loss,
    batch_dim: int,
    missing: dict[str, str],
) -> tuple[Learning | None, Trace | None]:
    """The next updates; where delta was exactly zero somewhere, the pass seen again after them."""
    updates = UPDATES if optimizer is not None else 2
    trace = seen.trace
    found: tuple[Learning, dict[str, Tensor]] | None = _guard(
        "learning",
        missing,
        probe,
        lambda: Rehearsal(probe, optimizer).run(trace.loss, seen.gradients, updates=updates),
    )
    if found is None:
        return None, None
    learning, weights = found
    later = None
    if trace.cut is not None or _close(trace):
        probe.write(weights)
        later = observe(probe.model, data, loss, batch_dim=batch_dim).trace
        probe.put_back()
    return learning, later


def _close(trace: Trace) -> bool:
    """Whether depth has brought the samples so close that SP106 has to look again."""
    try:
        return relative_distance(trace) < SUSPICIOUS
    except NotApplicable:
        return False


def _guard(what: str, missing: dict[str, str], probe: Probe, measure: Callable[[], Any]) -> Any:
    """A measurement that fails skips the rules that need it; it never stops the diagnosis."""
    try:
        value = measure()
    except Exception as error:
        probe.put_back()
        first = str(error).strip().splitlines()
        missing[what] = f"{type(error).__name__}: {first[0] if first else ''}"
        return None
    if value is None:
        missing[what] = {
            "noise": "the batch is too small to be split into four parts of two samples",
            "sharpness": "the gradient is zero",
        }.get(what, "it could not be measured")
    return value


def _finite(trace: Trace) -> bool:
    gradients = (weight.gradient for weight in trace.weights.values())
    return all(math.isfinite(gradient) for gradient in gradients if gradient is not None)


def _weight_facts(model: torch.nn.Module) -> dict[str, WeightFacts]:
    facts: dict[str, WeightFacts] = {}
    for name, p in model.named_parameters():
        value = p.detach()
        if value.numel() == 0:
            continue
        rows = value.reshape(value.shape[0], -1) if value.ndim > 1 else value.reshape(1, -1)
        # a few columns tell most rows apart; only those that they do not are compared in full
        alike = (rows[:, :FEW] == rows[0, :FEW]).all(1).nonzero()[:, 0]
        same = (rows[alike] == rows[0]).all(1) if len(alike) > 1 else alike[:1] == 0
        constant = len(alike) == len(rows) and bool(same.all()) and bool((rows == rows[0, 0]).all())
        facts[name] = WeightFacts(float(same.sum()) / len(rows), constant)
    return facts


# ---- judging ---------------------------------------------------------------------------------


def _judge(
    rules: tuple[Rule, ...], evidence: Evidence, ignored: frozenset[str]
) -> tuple[tuple[Finding, ...], tuple[Result, ...]]:
    findings: list[Finding] = []
    results: list[Result] = []
    for judge in sorted(rules, key=lambda r: r.rule.code):
        info = judge.rule
        if info.code in ignored:
            results.append(Result(info.code, info.title, "ignored", "left out by the user"))
            continue
        lacking = next((n for n in info.needs if n in evidence.missing), None)
        if lacking is not None:
            reason = f"needs {lacking}: {evidence.missing[lacking]}"
            results.append(Result(info.code, info.title, "skipped", reason))
            continue
        try:
            found = list(judge(evidence))
        except NotApplicable as why:
            results.append(Result(info.code, info.title, "not applicable", str(why)))
            continue
        except Exception as error:
            # one broken rule must not cost the user the verdicts of all others
            reason = f"the rule itself failed: {type(error).__name__}: {error}"
            results.append(Result(info.code, info.title, "skipped", reason))
            continue
        findings.extend(found)
        worst = "passed"
        if found:
            worst = "issue" if any(f.severity == "issue" for f in found) else "tip"
        results.append(Result(info.code, info.title, worst, ""))
    findings.sort(key=lambda f: (f.severity != "issue", verdict.rank(f)))
    return tuple(findings), tuple(results)
