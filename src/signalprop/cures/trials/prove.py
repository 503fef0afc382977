"""`cure`: prescribe from the findings, try, and say what helps."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from signalprop.capture.batch import Loss
from signalprop.capture.sandbox import random_state
from signalprop.cures.catalogue import CATALOGUE
from signalprop.cures.cure import Cure
from signalprop.cures.surgery import copied
from signalprop.cures.training import Recipe, Training
from signalprop.cures.trials import data as trial_data
from signalprop.cures.trials.bench import Bench
from signalprop.cures.trials.budget import FEWEST, seconds_of, step_seconds, steps_within
from signalprop.cures.trials.data import Data
from signalprop.cures.trials.engine import EngineName, cores
from signalprop.cures.trials.engine import engine as engine_of
from signalprop.cures.trials.findings import EARLY, Found, diagnosed, falls_sick
from signalprop.cures.trials.metric import Score
from signalprop.cures.trials.prescribe import GENERAL, Candidate, prescribe, together
from signalprop.cures.trials.race import UNTOUCHED, Tell
from signalprop.cures.trials.result import MANY, Trials
from signalprop.cures.trials.store import Store, fingerprint
from signalprop.diagnosis.finding import Diagnosis, Finding
from signalprop.errors import SignalpropError

#: seconds of work below which other processes take longer to start than to help
SMALL = 8.0
#: share of all legs that is run where losers are stopped half-way
RUN = 0.55

Make = Callable[[], nn.Module]
Optimizer = torch.optim.Optimizer | Callable[..., torch.optim.Optimizer]


def cure(
    model: nn.Module | Make,
    data: Any,
    loss: Loss = None,
    optimizer: Optimizer | None = None,
    *,
    budget: str | int = "2min",
    seeds: int | Sequence[int] = 3,
    held_out: Any = None,
    metric: Score | None = None,
    batch_size: int | None = None,
    cures: Iterable[Cure] | None = None,
    most: int = 8,
    rounds: int = 2,
    engine: EngineName = "auto",
    workers: int | None = None,
    resume: str | Path | None = None,
    batch_dim: int = 0,
    progress: Tell | None = None,
) -> Trials:
    """Prescribe cures for what `diagnose` finds, try them, and rank them by what they bring.

    A network that has no issue at its start is looked at again after 100 updates; where its loss
    has not fallen by then, other learning rates and Adam are tried as well.
    Every candidate, and the network as it is, is trained with the same seeds on the same batches in
    the same order; after a quarter and a half of the updates losers are stopped. Then the best is
    diagnosed again, and what is still found is treated on top of it. A cure helps only if it is
    better with every one of at least three seeds, by more than their spread.

    Args:
        model: the network, which is not touched; or a function that builds it: then every seed has
            weights of its own. With a network given, seeds differ in the order of the batches,
            dropout, and the weights that a cure draws.
        data: a DataLoader or an iterable of batches; or one batch, as for `diagnose`.
        loss: as for `diagnose`.
        optimizer: the optimizer of the network, or a function from parameters to one; None takes
            SGD at 0.01. Its state is not used: training starts anew.
        budget: of time for everything, e.g. `90s`, `2min`, `1h`; or a number: updates of each
            training, which makes the result independent of the machine's speed.
        seeds: how many, or which.
        held_out: data to judge on; None holds out a fifth of `data` where it is large enough.
        metric: (output, target) -> a number, the higher the better. Otherwise the accuracy where
            targets are classes, R2 where they are values, minus the loss where there are none.
        batch_size: samples of an update, where `data` is one batch; None takes all.
        cures: what to try instead of what the findings name.
        most: candidates of each round.
        rounds: how often what helps is diagnosed and treated again.
        engine: `serial`, `loky` (local processes) or `ray`; `auto` takes loky where the work is
            worth it.
        workers: how many trainings at a time; as many as there are cores unless given.
        resume: a folder to keep everything in; called again with it, finished legs are not run
            again.
        batch_dim: dimension of the samples.
        progress: called after every leg with (legs done, legs of this round, what has run).

    Returns:
        The candidates, best first, with the lines to paste. An interrupt ends the trials early:
        what is finished is returned, with `complete` False.

    Raises:
        SignalpropError: an argument cannot be used, or the network cannot be trained as it is for a
            reason that no cure treats.

    Examples:
        >>> import torch, signalprop as sp
        >>> layers = [m for _ in range(12) for m in (torch.nn.Linear(8, 8), torch.nn.Sigmoid())]
        >>> net = torch.nn.Sequential(*layers, torch.nn.Linear(8, 2))
        >>> x = torch.randn(256, 8)
        >>> y = (x[:, 0] > 0).long()
        >>> found = sp.cure(net, (x, y), torch.nn.functional.cross_entropy,
        ...                 torch.optim.Adam(net.parameters()), budget=20, engine="serial",
        ...                 most=2, rounds=1)
        >>> found.metric
        'accuracy'
    """
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen or most < 1 or rounds < 1 or (workers is not None and workers < 1):
        raise SignalpropError("seeds, most, rounds and workers are counts; give at least 1 of each")
    limit = seconds_of(budget)
    with ExitStack() as stack:
        stack.enter_context(random_state())
        batches_of = trial_data.read(data, held_out, batch_size=batch_size)
        models = _models(model, chosen)
        recipe = _recipe(optimizer, model if isinstance(model, nn.Module) else models[0])
        bases = [Training(m, loss, recipe) for m in models]
        before = diagnosed(bases[0], batches_of, batch_dim)
        say = progress or (lambda done, total, what: None)
        folder = Path(resume) if resume else Path(stack.enter_context(_temporary()))
        store = Store(folder)
        found = Found(before.findings)
        if cures is None:
            after = min(EARLY, budget) if isinstance(budget, int) else EARLY
            found = falls_sick(bases[0], batches_of, batch_dim, before, after)
        plan = list(_candidates(found.findings, cures, most))
        if found.idle:
            plan = list(dict.fromkeys((*plan, *((CATALOGUE[name],) for name in GENERAL))))[:most]
        per_step = step_seconds(bases[0], batches_of, batch_dim)
        width = workers or (1 if _on_accelerator(bases[0].model) else cores())
        steps = budget if isinstance(budget, int) else steps_within(
            limit, per_step, legs=(len(plan) * RUN + 1) * len(chosen), workers=width, rounds=rounds
        )  # fmt: skip
        if not plan:  # there is nothing to compare the network with
            steps = min(steps, FEWEST)
        work = per_step * steps * len(chosen) * (len(plan) * RUN + 1)
        name = engine if engine != "auto" else ("loky" if work > SMALL and width > 1 else "serial")
        store.claim(_facts(bases[0], models, batches_of, chosen, budget, cures))
        store.put("data", (batches_of, metric, batch_dim))
        running = stack.enter_context(engine_of(name, width))
        steps = store.remember("steps", steps)
        bench = Bench(bases, chosen, batches_of, steps, store, running, say, batch_dim)
        complete = bench.round(plan, with_untouched=True)
        for _ in range(rounds - 1):
            best = bench.best()
            if not complete or best is None or cures is not None:
                break
            again = diagnosed(best.trainings[0], batches_of, batch_dim)
            more = [
                together((*best.cures, *extra), CATALOGUE)
                for extra in prescribe(again.findings, CATALOGUE, most=max(most // 2, 1))
            ]
            plan = [c for c in more if set(c) > set(best.cures) and not bench.has(c)]
            if not plan:
                break
            complete = bench.round(plan)
        notes = _notes(model, chosen, batches_of, recipe, optimizer)
        return _result(bench, before, complete, (*filter(None, (found.note,)), *notes))


def _result(bench: Bench, before: Diagnosis, complete: bool, notes: tuple[str, ...]) -> Trials:
    if not bench.entrants[UNTOUCHED].track.outcomes:
        raise KeyboardInterrupt  # nothing is finished that could be told
    best = bench.best()
    first = bench.entrants[UNTOUCHED].track.outcomes[-1][0]
    cured = None if best is None else best.trainings[0]
    made = Trials(
        model=type(bench.bases[0].model).__name__,
        metric=first.metric_name or next(
            (o.metric_name for e in bench.entrants.values() for leg in e.track.outcomes
             for o in leg if o.metric_name), "none"),
        data=bench.data.said,
        seeds=bench.seeds,
        steps=bench.steps,
        untouched=bench.untouched(),
        trials=tuple(bench.trials()),
        before=before,
        after=None if cured is None else diagnosed(cured, bench.data, bench.batch_dim),
        cured=cured,
        rejected=bench.rejected,
        complete=complete,
        notes=notes,
    )  # fmt: skip
    return replace(made, notes=(*notes, _more_seeds(made))) if made.unsteady else made


def _more_seeds(trials: Trials) -> str:
    low, high = min(trials.untouched.metric), max(trials.untouched.metric)
    return (
        f"the untouched network comes to {low:.2f} with one seed and to {high:.2f} with another; "
        f"{len(trials.seeds)} seeds cannot tell a cure from luck there, {MANY} or more can"
    )


def _candidates(
    findings: Sequence[Finding], cures: Iterable[Cure] | None, most: int
) -> list[Candidate]:
    if cures is None:
        return prescribe(findings, CATALOGUE, most=most)
    return [(one,) for one in cures]


def _models(model: nn.Module | Make, seeds: tuple[int, ...]) -> list[nn.Module]:
    """One for every seed."""
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        found.append(copied(model) if isinstance(model, nn.Module) else model())
    if not isinstance(found[0], nn.Module):
        raise SignalpropError(
            f"model is to be a module or a function that builds one; it built a "
            f"{type(found[0]).__name__}"
        )
    return found


def _recipe(optimizer: Optimizer | None, model: nn.Module) -> Recipe:
    if optimizer is None:
        return Recipe.of(_plain_sgd, model)
    return Recipe.of(optimizer, model)


def _plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01)


def _on_accelerator(model: nn.Module) -> bool:
    return any(p.device.type != "cpu" for p in model.parameters())


def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="signalprop-", ignore_cleanup_errors=True)


def _facts(
    base: Training,
    models: list[nn.Module],
    data: Data,
    seeds: tuple[int, ...],
    budget: str | int,
    cures: Iterable[Cure] | None,
) -> Mapping[str, Any]:
    """What must be the same where trials are resumed."""
    return {
        "network or data": fingerprint(models[:1], data),
        "optimizer": base.optimizer.line,
        "loss": getattr(base.loss, "__name__", type(base.loss).__name__),
        "seeds": list(seeds),
        "budget": budget,
        "cures": None if cures is None else [c.line for c in cures],
    }


def _notes(
    model: Any,
    seeds: tuple[int, ...],
    data: Data,
    recipe: Recipe,
    optimizer: Optimizer | None,
) -> tuple[str, ...]:
    notes = []
    if isinstance(model, nn.Module) and len(seeds) > 1:
        notes.append(
            "the network was given ready-made, so the untouched one starts from the same weights "
            "with every seed; give a function that builds it for weights of its own"
        )
    if len(seeds) < 3:
        notes.append("fewer than three seeds prove nothing")
    if optimizer is None:
        notes.append(f"no optimizer was given: {recipe.line} is assumed")
    if not data.apart:
        notes.append("candidates are judged on what they learn from: nothing is held out")
    return tuple(notes)
