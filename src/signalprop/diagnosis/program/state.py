"""Rules about the state a network is in: modes, batch size, optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from signalprop.capture.trace import Weight
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.finding import Finding
from signalprop.diagnosis.program.words import quoted, some
from signalprop.diagnosis.rule import NotApplicable, Rule, finding, rule

# ---- SP208 -----------------------------------------------------------------------------------


@rule("SP208", "Dropout or BatchNorm in the wrong mode", cures=("train-mode", "eval-frozen"))
def wrong_mode(evidence: Evidence, *, share: float = 0.0) -> Iterator[Finding]:
    """Modules that behave differently in training and in evaluation are in the wrong one.

    How it is detected:
        More than a share `share` of the BatchNorm modules and of the Dropout modules that drop
        anything is in evaluation mode. It is an issue where the model itself is, and a tip where
        only parts are. Parts whose parameters are all frozen are meant to be (fine-tuning), and so
        is a BatchNorm with frozen scale and shift. As a tip the opposite: a BatchNorm in training
        mode whose scale and shift are frozen while other parts learn, so that its statistics go on
        moving.

    Why it matters:
        In evaluation mode Dropout does nothing and BatchNorm uses old statistics: at the start of
        training those are mean 0 and variance 1, so it normalises nothing. `model.eval()` before a
        validation, with no `model.train()` after it, is the usual way there.

    How to cure it:
        Call `model.train()` before training. For a frozen part set its BatchNorm to evaluation
        mode after every `model.train()`.

    Yields:
        One finding for modules left in evaluation mode, one for frozen ones in training mode.

    Raises:
        NotApplicable: no module depends on the mode, or nothing is trained.
    """
    trace = evidence.trace
    modes = {n: on for n, on in trace.modes.items() if _depends(evidence.model, n)}
    if not modes:
        raise NotApplicable("there is no BatchNorm, and no Dropout that drops anything")
    if not any(w.trained for w in trace.weights.values()):
        raise NotApplicable("no parameter is trained")
    still = [n for n, on in modes.items() if not on and _learns_around(evidence, n)]
    if len(still) > share * len(modes):
        whole = not trace.training
        yield finding(
            wrong_mode,
            sites=still,
            value=len(still) / len(modes),
            unit="share of BatchNorm and Dropout modules in evaluation mode",
            threshold=share,
            explanation=(
                f"{'the model' if whole else 'a part of the model'} is in evaluation mode: in "
                f"{len(still)} of {len(modes)} modules ({some(still)}) Dropout drops nothing or "
                "BatchNorm uses stored statistics; call model.train() before training."
            ),
            severity="issue" if whole else "tip",
            cures=("train-mode",),
        )
    moving = [n for n, on in modes.items() if on and _frozen_norm(evidence.model, n)]
    if moving:
        yield finding(
            wrong_mode,
            sites=moving,
            value=len(moving),
            unit="frozen BatchNorm modules in training mode",
            threshold=0,
            explanation=(
                f"{some(moving)}: scale and shift are frozen, but the running statistics still "
                "change with every batch; set frozen BatchNorm modules to eval()."
            ),
            severity="tip",
            cures=("eval-frozen",),
        )


def _depends(model: torch.nn.Module, path: str) -> bool:
    """Whether what a module does depends on its mode."""
    module = _module(model, path)
    if isinstance(module, _DropoutNd):
        return module.p > 0
    return isinstance(module, _BatchNorm) and module.track_running_stats


def _module(model: torch.nn.Module, path: str) -> torch.nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _learns_around(evidence: Evidence, path: str) -> bool:
    """Whether the module, or the block that it is a part of, is trained."""
    module = _module(evidence.model, path)
    own = list(module.parameters()) if module is not None else []
    if own:
        return any(p.requires_grad for p in own)
    while path:
        path = path.rpartition(".")[0]
        around = _module(evidence.model, path)
        parameters = list(around.parameters()) if around is not None else []
        if parameters:
            return any(p.requires_grad for p in parameters)
    return False


def _frozen_norm(model: torch.nn.Module, path: str) -> bool:
    module = _module(model, path)
    own = list(module.parameters()) if isinstance(module, _BatchNorm) else []
    return bool(own) and not any(p.requires_grad for p in own)


# ---- SP209 -----------------------------------------------------------------------------------


@rule("SP209", "BatchNorm on a batch of one", cures=("group-norm", "larger-batch", "eval-frozen"))
def batch_of_one(evidence: Evidence, *, few: int = 2) -> Iterator[Finding]:
    """BatchNorm in training mode has too few values to take a mean and a variance of.

    How it is detected:
        The batch has one sample and a BatchNorm is in training mode, be it that it normalises over
        the positions of that sample or that it stopped the pass. As a tip: a larger batch that
        leaves a BatchNorm `few` values per channel or less.

    Why it matters:
        With one sample, BatchNorm normalises every image by itself, and the running statistics
        that evaluation uses are those of single samples: the two modes are two networks. With
        one value per channel torch raises; with two, every output is +1 or -1 whatever the input.

    How to cure it:
        A larger batch, GroupNorm or LayerNorm (which do not look at other samples), or a frozen
        BatchNorm in evaluation mode. In a DataLoader, `drop_last=True` avoids a last batch of one.

    Yields:
        One finding.

    Raises:
        NotApplicable: no BatchNorm is in training mode.
    """
    trace, model = evidence.trace, evidence.model
    norms: dict[str, _BatchNorm] = {}
    for path, training in trace.modes.items():
        module = _module(model, path)
        apart = isinstance(module, torch.nn.SyncBatchNorm)  # its batch is on several machines
        if training and isinstance(module, _BatchNorm) and not apart:
            norms[path] = module
    if not norms:
        raise NotApplicable("there is no BatchNorm in training mode")
    values: dict[str, int] = {}
    for site in trace.sites.values():
        norm = norms.get(site.module)
        if norm is not None and site.op == "batch_norm":
            per_channel = prod(site.shape) // max(norm.num_features, 1)
            values[site.module] = min(values.get(site.module, per_channel), per_channel)
    stopped = trace.failure is not None and "more than 1 value per channel" in trace.failure.message
    if stopped and trace.failure is not None:
        where = trace.failure.site or next(iter(norms))
        yield finding(
            batch_of_one,
            sites=(where,),
            value=1,
            unit="values per channel",
            threshold=few,
            explanation=(
                f"{quoted(where)} has a single value per channel in this batch of {trace.batch} "
                "and stops: no variance can be taken of one value."
            ),
        )
    elif trace.batch == 1 and values:
        least = min(values.values())
        yield finding(
            batch_of_one,
            sites=values,
            value=trace.batch,
            unit="samples",
            threshold=1,
            explanation=(
                f"BatchNorm {some(values)} takes its statistics from a batch of one sample, "
                f"{least} values per channel: each sample is normalised by itself, and "
                "evaluation will use other statistics."
            ),
        )
    elif small := {path: n for path, n in values.items() if n <= few}:
        yield finding(
            batch_of_one,
            sites=small,
            value=min(small.values()),
            unit="values per channel",
            threshold=few,
            explanation=(
                f"{some(small)}: a batch of {trace.batch} leaves {min(small.values())} values "
                "per channel, and mean and variance of so few say next to nothing."
            ),
            severity="tip",
            cures=("larger-batch", "group-norm"),
        )


# ---- SP212 -----------------------------------------------------------------------------------


@rule(
    "SP212",
    "Optimizer holds other parameters than the model",
    needs=("optimizer",),
    cures=("rebuild-optimizer",),
)
def other_parameters(evidence: Evidence, *, missing: float = 0.0) -> Iterator[Finding]:
    """Parameters that are to be trained are not in the optimizer.

    How it is detected:
        More than a share `missing` of the trained parameters is not among those the optimizer
        holds. It is an issue where it holds none of them, or where it holds parameters of another
        model instead: a copy, or a layer that was replaced later. It is a tip where it simply
        leaves some out, which is meant where another optimizer has them, or where they should be
        frozen.

    Why it matters:
        `backward()` fills their gradients and `step()` never touches them. Nothing raises, and the
        loss falls a little where other layers can make up for it.

    How to cure it:
        Make the optimizer after the model is complete (moved, wrapped, copied, its head replaced),
        from `model.parameters()`; freeze what is not to be trained with `requires_grad_(False)`.

    Yields:
        One finding.

    Raises:
        NotApplicable: no optimizer was given, or nothing is trained.
    """
    facts = evidence.optimizer
    trained = {n: w for n, w in evidence.trace.weights.items() if w.trained}
    if facts is None or not trained:
        raise NotApplicable("no optimizer was given" if facts is None else "nothing is trained")
    without = {n: w for n, w in trained.items() if n not in facts.held}
    part = _size(without) / max(_size(trained), 1)
    if not without or part <= missing:
        return
    modules = list(dict.fromkeys(w.module or n for n, w in without.items()))
    if len(without) == len(trained):
        told = f"{facts.name} holds none of the model's {len(trained)} trained parameters"
        told += f", but {facts.foreign} of something else" if facts.foreign else ""
        severity = "issue"
    elif facts.foreign:
        told = (
            f"{facts.name} holds {facts.foreign} parameters that are not the model's, and misses "
            f"those of {some(modules)}"
        )
        severity = "issue"
    else:
        told = f"{facts.name} leaves out the parameters of {some(modules)}, which are not frozen"
        severity = "tip"
    yield finding(
        other_parameters,
        sites=modules,
        value=part,
        unit="share of the trained parameters",
        threshold=missing,
        explanation=f"{told}: {part:.1%} of what is to be trained never moves.",
        severity="issue" if severity == "issue" else "tip",
    )


def _size(weights: Mapping[str, Weight]) -> int:
    return sum(prod(w.shape) for w in weights.values())


STATE_RULES: tuple[Rule, ...] = (wrong_mode, batch_of_one, other_parameters)
