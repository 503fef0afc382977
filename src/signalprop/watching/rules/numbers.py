"""Rules over time: numbers that overflow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from signalprop.diagnosis.program.words import quoted
from signalprop.watching.file.schema import RunSite
from signalprop.watching.rules.past import Past
from signalprop.watching.rules.rule import RuleOverTime, alarm, over_time
from signalprop.watching.sample import Alarm

# ---- SP410 -----------------------------------------------------------------------------------


@over_time(
    "SP410",
    "Half precision overflows again and again",
    when="steps",
    needs=("skipped",),
    wants=("loss_scale",),
    cures=("float32", "lower-learning-rate", "clip-gradient"),
)
def overflow(
    past: Past, *, part: float = 0.1, start: int = 200, halved: int = 8, floor: float = 1.0
) -> Iterator[Alarm]:
    """GradScaler skips updates because gradients overflow, and not only to find its scale.

    How it is detected:
        After the first `start` steps, at least a part `part` of the last thousand updates or so was
        skipped; or the scale has been halved `halved` times below the largest it had since then; or
        it is below `floor`, where scaling makes gradients smaller than they are. By design the
        scaler begins far too high, which costs up to some twenty updates at the start, and later
        tries twice the scale every 2000 steps, which costs one: these are no case.

    Why it matters:
        A skipped update is lost, and when the scale goes down without end the gradients lose
        their small values to zero: what looks like slow learning is a network that overflows.

    How to cure it:
        bfloat16 in place of float16, where the machine has it; the operation that overflows in
        float32 (attention logits, a sum over many positions, an exponential, a loss); a lower
        learning rate where activations grow.

    Yields:
        One alarm.
    """
    recent = past.skips.recent
    scale, usual = past.skips.scale, past.skips.usual
    if past.step - past.first < start or not recent:
        return
    late = [(step, count) for step, count in recent if step - past.first >= start]
    late = [(step, count) for step, count in late if step > past.step - 1000]
    share = 0.0
    if len(late) >= 2 and late[-1][0] - late[0][0] >= 100:
        share = (late[-1][1] - late[0][1]) / (late[-1][0] - late[0][0])
    down = math.log2(usual / scale) if scale > 0 and usual > 0 else 0.0
    if share >= part:
        yield alarm(
            overflow,
            past,
            value=share,
            unit="of the updates skipped",
            threshold=part,
            since=late[0][0],
            explanation=f"since step {late[0][0]}, {late[-1][1] - late[0][1]:.0f} of "
            f"{late[-1][0] - late[0][0]} updates were skipped, as gradients overflowed",
        )
    elif down >= halved or scale < floor:
        yield alarm(
            overflow,
            past,
            value=scale,
            unit="loss scale",
            threshold=max(usual / 2**halved, floor) if down >= halved else floor,
            since=past.step,
            explanation=f"the loss scale has fallen to {scale:g} (it was {usual:g}): gradients "
            "overflow at every scale",
        )


# ---- SP411 -----------------------------------------------------------------------------------


@over_time(
    "SP411",
    "First value that is not finite",
    when="stir",
    wants=("activation_rms", "delta_rms", "gradient_norm", "gradient_rms", "loss"),
    cures=("lower-learning-rate", "clip-gradient", "guard-operation", "clean-data", "float32"),
)
def not_finite(past: Past) -> Iterator[Alarm]:
    """A value has become NaN or infinite; from here on nothing is learned.

    How it is detected:
        On a sampled step: the first activation in execution order that is not finite; where all
        are finite, the delta nearest to the output, from which it was passed back; else the
        gradient nearest to the output. On other steps gradients and the loss are seen: the
        gradient nearest to the output that is not finite. Where the loss itself is not finite
        then, it began in the forward pass or the loss, and which site it was is seen by running the
        step again from the replay of the run file. Activations that are infinite while loss and
        gradients are not are meant (masked attention scores), and so are gradients that overflow
        under a loss scale: the scaler skips that update (see SP410). Weights come first where they
        are not finite and the gradient is: the update made them so.

    Why it matters:
        One update with it puts NaN into all weights that it reaches; there is no way back but a
        checkpoint.

    How to cure it:
        Run the step again from the replay under `torch.autograd.set_detect_anomaly`. Guard the
        operation (a logarithm or root of zero, a division, an exponential); clean the batch; lower
        the learning rate or clip where gradients had grown before.

    Yields:
        One alarm.
    """
    seen = past.finite
    if not seen.what:
        return
    name = _name(past.sites, seen.where)
    if seen.what == "loss":
        said = "the loss is not finite, while all that was seen of the network is"
        if not seen.exact:
            said = "the loss is not finite"
    elif not seen.exact:
        said = (
            "the loss is not finite, so it began in the forward pass or in the loss: run the step "
            f"again to see where; the gradients are not from {quoted(name)} on"
        )
    else:
        said = {
            "activation": f"the first activation that is not finite is that of {quoted(name)}; all "
            "before it are",
            "delta": "all activations are finite, and the error signal is not from "
            f"{quoted(name)} on, on its way back",
            "gradient": f"the gradient of {quoted(name)} is not finite; those nearer to the output "
            "are",
            "weights": f"the weights of {quoted(name)} are not finite, and its gradient is: the "
            "update before made them so",
        }[seen.what]
    yield alarm(
        not_finite,
        past,
        sites=[name] if name else [],
        value=seen.count,
        unit=seen.what,
        threshold=0,
        since=past.step,
        explanation=said,
    )


def _name(sites: Sequence[RunSite], where: int | None) -> str:
    return sites[where].name if where is not None and where < len(sites) else ""


NUMBER_RULES: tuple[RuleOverTime, ...] = (overflow, not_finite)
