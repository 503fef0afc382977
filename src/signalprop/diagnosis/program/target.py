"""Rules about the targets: whether the loss and the network's output fit them."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from signalprop.capture.trace import LossCall, Trace
from signalprop.diagnosis.evidence import Evidence
from signalprop.diagnosis.finding import Finding
from signalprop.diagnosis.program.output import REGRESSION, loss_calls, output, place
from signalprop.diagnosis.program.words import shape_text
from signalprop.diagnosis.rule import Rule, finding, rule

#: losses that take class numbers, whatever the other dimensions
CLASS_NUMBERS = frozenset({"cross_entropy", "nll_loss", "multi_margin_loss"})
#: losses whose targets are probabilities, element by element
UNIT_TARGETS = frozenset({"binary_cross_entropy", "binary_cross_entropy_with_logits"})
#: losses whose targets are +1 and -1
SIGN_TARGETS = frozenset({"soft_margin_loss", "hinge_embedding_loss"})
#: hand-written arithmetic
ARITHMETIC = frozenset({"sub", "mul", "add"})


# ---- SP205 -----------------------------------------------------------------------------------


@rule(
    "SP205",
    "Loss does not fit the targets",
    cures=(
        "match-target-shape",
        "use-cross-entropy",
        "use-mse",
        "use-bce-with-logits",
        "cast-targets",
    ),
)
def unfit_targets(evidence: Evidence, *, tolerance: float = 1e-2) -> Iterator[Finding]:
    """Shape, dtype or meaning of the targets is not what the loss takes.

    How it is detected:
        Prediction and target have the same shape but for dimensions of size 1, and broadcasting
        makes every sample meet every other one, in a loss of torch or in arithmetic written by hand
        with a target that needs no gradient. A regression loss compares several outputs with one
        number per sample; the message says so where the numbers are class numbers.
        `cross_entropy` is given targets of its input's shape that are no probabilities: negative,
        or not summing to 1 within `tolerance` on average. Where the loss raised, the shapes and
        dtypes it was given are read, and the message says which of them to change.

    Why it matters:
        Broadcasting raises no error: predictions of shape (n, 1) against targets of shape (n)
        give n x n differences, and the best the network can do is to predict the mean for
        everyone. Class numbers have no order, so a squared error on them asks for nonsense.

    How to cure it:
        Give both the same shape (`target.unsqueeze(1)` or `prediction.squeeze(1)`), class numbers
        as int64 of shape (n) to `cross_entropy`, floating targets of the output's shape to
        `mse_loss` and `binary_cross_entropy_with_logits`.

    Yields:
        One finding for every loss whose targets do not fit.
    """
    seen: set[tuple[object, ...]] = set()
    calls = loss_calls(evidence.trace)
    for call in calls:
        if call.target is None or (key := (call.op, call.input.shape, call.target.shape)) in seen:
            continue
        seen.add(key)
        raised = _raised(evidence.trace) and call is calls[-1]
        found = (
            _broadcast(call)
            or _one_for_several(call)
            or _no_probabilities(call, tolerance)
            or (_of_failure(call, evidence.trace) if raised else None)
        )
        if found is not None:
            yield found


def _raised(trace: Trace) -> bool:
    """Whether the pass stopped inside the loss, and not because there was none."""
    failure = trace.failure
    return failure is not None and failure.phase != "forward" and failure.error != "LossError"


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _made(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that broadcasting makes of two; None where it cannot."""
    long, short = (a, b) if len(a) >= len(b) else (b, a)
    short = (1,) * (len(long) - len(short)) + short
    if any(m != n and 1 not in (m, n) for m, n in zip(long, short, strict=True)):
        return None
    return tuple(max(m, n) for m, n in zip(long, short, strict=True))


def _broadcast(call: LossCall) -> Finding | None:
    """(n, 1) against (n): every sample meets every other one."""
    assert call.target is not None
    if call.op not in REGRESSION | ARITHMETIC:
        return None
    a, b = call.input.shape, call.target.shape
    made = _made(a, b)
    if a == b or made is None or _bare(a) != _bare(b) or prod(made) <= max(prod(a), prod(b)):
        return None
    if call.op in ARITHMETIC and len(a) == len(b):  # (n, 1) - (1, n): written on purpose
        return None
    return finding(
        unfit_targets,
        sites=place(call),
        value=prod(made),
        unit="differences",
        threshold=prod(a),
        explanation=(
            f"{output(call)} has shape {shape_text(a)} and the target {shape_text(b)}: "
            f"broadcasting makes {shape_text(made)} of them, and every prediction is "
            f"compared with every target. Give both the shape {shape_text(a)}."
        ),
        cures=("match-target-shape",),
    )


def _one_for_several(call: LossCall) -> Finding | None:
    """Several outputs and one number to compare them with, or the other way round."""
    target = call.target
    assert target is not None
    a, b = call.input.shape, target.shape
    made = _made(a, b)
    if call.op not in REGRESSION or made is None or prod(a) == prod(b) or min(len(a), len(b)) == 0:
        return None
    several = max(a[-1], b[-1])
    classes = (
        target.whole and target.low >= 0 and a[-1] > 2 and 1 < target.high < a[-1] and b[-1] == 1
    )
    if classes:
        told = (
            f"the target holds class numbers from {target.low:.0f} to {target.high:.0f}, and "
            f"{call.op} compares each of them with all {a[-1]} outputs: class numbers need "
            "cross_entropy."
        )
        return finding(
            unfit_targets,
            sites=place(call),
            value=a[-1],
            unit="outputs per target",
            threshold=1,
            explanation=told,
            cures=("use-cross-entropy",),
        )
    larger = prod(made) > prod(a)
    return finding(
        unfit_targets,
        sites=place(call),
        value=several,
        unit="numbers per number",
        threshold=1,
        explanation=(
            f"{output(call)} has shape {shape_text(a)} and the target {shape_text(b)}, and "
            f"{call.op} broadcasts the smaller one to {shape_text(made)}. Expand it where "
            "that is meant."
        ),
        severity="issue" if larger else "tip",
        cures=("match-target-shape",),
    )


def _no_probabilities(call: LossCall, tolerance: float) -> Finding | None:
    target = call.target
    assert target is not None
    if call.op != "cross_entropy" or target.integral or target.shape != call.input.shape:
        return None
    classes = call.classes or call.input.shape[-1]
    total = target.mean * classes
    if not target.finite or (target.low >= 0 and abs(total - 1) <= tolerance):
        return None
    if target.low < 0:
        told = f"they go down to {target.low:.3g}; numbers to be predicted need a regression loss"
        cures = ("use-mse",)
    else:
        told = f"they sum to {total:.3g} per sample; several labels at once need a sigmoid for each"
        cures = ("use-bce-with-logits",)
    return finding(
        unfit_targets,
        sites=place(call),
        value=total,
        unit="sum of the target over the classes",
        threshold=1,
        explanation=(
            f"cross_entropy reads targets of the output's own shape {shape_text(target.shape)} as "
            f"probabilities, but {told}."
        ),
        cures=cures,
    )


def _of_failure(call: LossCall, trace: Trace) -> Finding | None:
    """Why a loss raised, from what it was given."""
    target = call.target
    assert target is not None
    told, cure = _why(call)
    if told is None or trace.failure is None:
        return None
    return finding(
        unfit_targets,
        sites=place(call),
        value=prod(target.shape),
        unit="numbers in the target",
        threshold=prod(call.input.shape),
        explanation=(
            f"{call.op} raised: {told} (output {shape_text(call.input.shape)} {call.input.dtype}, "
            f"target {shape_text(target.shape)} {target.dtype})."
        ),
        cures=(cure,),
    )


def _why(call: LossCall) -> tuple[str | None, str]:
    target = call.target
    assert target is not None
    a, b = call.input.shape, target.shape
    if call.op in ("cross_entropy", "nll_loss"):
        return _why_classes(a, b, target.dtype, target.whole)
    if call.op in UNIT_TARGETS | REGRESSION:
        if a != b and prod(a) == prod(b):
            return f"the target needs the output's shape, e.g. target.reshape{shape_text(a)}", (
                "match-target-shape"
            )
        if a != b:
            whole = target.whole and len(b) == 1 and len(a) == 2 and a[1] > 1
            hint = "; class numbers need cross_entropy" if whole else ""
            return f"the target needs the output's shape{hint}", (
                "use-cross-entropy" if whole else "match-target-shape"
            )
        if target.integral:
            return "the target needs the output's dtype, e.g. target.float()", "cast-targets"
    return None, ""


def _why_classes(
    a: tuple[int, ...], b: tuple[int, ...], dtype: str, whole: bool
) -> tuple[str | None, str]:
    fit = (a[0], *a[2:]) if len(a) >= 2 else ()
    if len(a) == 3 and b == a[:2]:
        return "the classes must be its second dimension: output.transpose(1, 2)", (
            "match-target-shape"
        )
    if b == fit and dtype not in ("int64", "uint8"):
        if whole:
            return "class numbers must be int64, e.g. target.long()", "cast-targets"
        return "the targets are no class numbers; numbers to be predicted need mse_loss", "use-mse"
    if b == a and dtype in ("int64", "uint8", "int32", "bool"):
        return "one-hot targets must be floating, or class numbers: target.argmax(1)", (
            "cast-targets"
        )
    if b and a and b[0] != a[0]:
        return "output and target have different numbers of samples", "match-target-shape"
    if len(b) == len(fit) + 1 and prod(b) == prod(fit):
        return f"class numbers need the shape {shape_text(fit)}, e.g. target.squeeze(1)", (
            "match-target-shape"
        )
    return None, ""


# ---- SP207 -----------------------------------------------------------------------------------


@rule(
    "SP207",
    "Labels out of range",
    cures=(
        "shift-labels",
        "add-outputs",
        "use-zero-one-labels",
        "use-sign-labels",
        "set-ignore-index",
    ),
)
def labels_out_of_range(evidence: Evidence, *, margin: float = 1e-6) -> Iterator[Finding]:
    """Labels lie outside what the loss and the number of outputs allow.

    How it is detected:
        Class numbers below 0 or not below the number of outputs, the `ignore_index` left out.
        Targets of a binary cross-entropy more than `margin` outside 0..1, with a note where they
        are -1 and +1. Targets other than -1 and +1 given to `soft_margin_loss` or
        `hinge_embedding_loss`, and negative counts given to `poisson_nll_loss`. What the loss was
        given is recorded before it runs, so this also says why it raised.

    Why it matters:
        On the CPU a class number out of range raises an IndexError, on a GPU it stops the process
        with a device-side assert that names no line. A binary target outside 0..1 raises nothing:
        the loss then has no lower bound, and the weights grow until they overflow.

    How to cure it:
        Class numbers start at 0: subtract 1 where the data starts at 1, or give the last layer
        more outputs. Turn -1/+1 into 0/1 with `(y + 1) / 2`. Positions to be left out get the
        value of `ignore_index`.

    Yields:
        One finding for every loss with such labels.
    """
    seen: set[tuple[object, ...]] = set()
    for call in loss_calls(evidence.trace):
        if call.target is None or not call.target.finite:
            continue
        key = (call.op, call.site, call.target.low, call.target.high)
        if key in seen:
            continue
        seen.add(key)
        found = _class_numbers(call) or _binary(call, margin) or _signs(call, margin)
        if found is not None:
            yield found


def _class_numbers(call: LossCall) -> Finding | None:
    target = call.target
    assert target is not None
    if call.op not in CLASS_NUMBERS or not target.integral:
        return None
    if call.op != "multi_margin_loss" and target.shape == call.input.shape:
        return None  # one-hot, of the wrong dtype: the loss does not fit
    classes = call.classes or (call.input.shape[0] if call.input.shape else 0)
    low, high = target.low, target.high
    if classes == 0 or (low >= 0 and high < classes):
        return None
    if low == high == (call.ignored if call.ignored is not None else classes):
        return None
    told = f"class numbers run from {low:.0f} to {high:.0f}, but the output has {classes} classes, "
    told += f"0 to {classes - 1}"
    cures = ("add-outputs", "shift-labels")
    if low >= 1 and high == classes:
        told += "; they start at 1, so subtract 1"
        cures = ("shift-labels",)
    elif low < 0:
        told += f"; only {call.ignored} is left out" if call.ignored is not None else ""
        cures = ("set-ignore-index", "shift-labels")
    return finding(
        labels_out_of_range,
        sites=place(call),
        value=low if low < 0 else high,
        unit="class number",
        threshold=0 if low < 0 else classes - 1,
        explanation=told + ".",
        cures=cures,
    )


def _binary(call: LossCall, margin: float) -> Finding | None:
    target = call.target
    assert target is not None
    if call.op not in UNIT_TARGETS or (target.low >= -margin and target.high <= 1 + margin):
        return None
    told = (
        f"{call.op} takes targets between 0 and 1, but they run from {target.low:.3g} to "
        f"{target.high:.3g}: the loss has no lower bound"
    )
    if target.whole and target.low == -1 and target.high == 1:
        told += ". Turn -1 and +1 into 0 and 1 with (y + 1) / 2"
    elif target.whole:
        told += ". Class numbers of more than two classes need cross_entropy"
    several = target.whole and target.low >= 0 and target.high > 1
    return finding(
        labels_out_of_range,
        sites=place(call),
        value=target.low if target.low < 0 else target.high,
        unit="target",
        threshold=0 if target.low < 0 else 1,
        explanation=told + ".",
        cures=(*(("add-outputs",) if several else ()), "use-zero-one-labels"),
    )


def _signs(call: LossCall, margin: float) -> Finding | None:
    target = call.target
    assert target is not None
    if call.op == "poisson_nll_loss" and target.low < -margin:
        told = f"poisson_nll_loss takes counts, but the smallest target is {target.low:.3g}"
        wanted = 0.0
    elif call.op in SIGN_TARGETS and target.low > -1 + margin and target.low != target.high:
        told = (
            f"{call.op} takes targets of -1 and +1, but they run from {target.low:.3g} to "
            f"{target.high:.3g}: samples with target 0 are not learned"
        )
        wanted = -1.0
    else:
        return None
    return finding(
        labels_out_of_range,
        sites=place(call),
        value=target.low,
        unit="target",
        threshold=wanted,
        explanation=told + ".",
        cures=("use-sign-labels",),
    )


TARGET_RULES: tuple[Rule, ...] = (unfit_targets, labels_out_of_range)
