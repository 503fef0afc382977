"""Rules over time: the course of the loss and of the gradient's norm."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from signalprop.diagnosis.program.words import quoted
from signalprop.watching.rules.arrays import middle
from signalprop.watching.rules.losses import LEAP, WINDOW
from signalprop.watching.rules.past import Past
from signalprop.watching.rules.rule import RuleOverTime, alarm, over_time
from signalprop.watching.rules.spike import began
from signalprop.watching.sample import Alarm

# ---- SP405 -----------------------------------------------------------------------------------


@over_time(
    "SP405",
    "Loss spike",
    when="stir",
    needs=("loss",),
    wants=("gradient_rms", "learning_rate"),
    cures=("clip-gradient", "lower-learning-rate", "warm-up", "larger-batch"),
)
def loss_spike(past: Past, *, sigmas: float = 6.0, rise: float = 0.1) -> Iterator[Alarm]:
    """The loss leaps far above its noise and stays there for some steps.

    How it is detected:
        Four losses in a row lie above every one of the 96 before them. Whatever the noise is, four
        equally distributed values do that with probability 4! / (97 . 98 . 99 . 100), 0.03 times in
        100,000 steps. And all four lie above the median of the 96 by `sigmas` robust standard
        deviations (of their quartiles, so a trend within the window makes it harder); by the part
        `rise` of its level, and half that part of the loss's whole fall; and by twice of what was
        usual in the last thousand losses: how far single ones strayed from those about them,
        and how far the median of 32 wandered to the next 32. Losses after a leap of the learning
        rate (a warm restart: twice as high at one time) are not judged for 96 steps. Its site is
        where the gradient rose first and stayed up until then; see
        `signalprop.watching.rules.spike.began`.

    Why it matters:
        A spike throws the network back, sometimes for good. It mostly begins in one layer some
        steps before the loss shows it (an embedding, an attention whose logits grow, the head).

    How to cure it:
        Clip the gradient's norm near its usual size; lower the learning rate or warm it up longer;
        a smaller beta2 of Adam forgets old, small gradients earlier. Go on from a checkpoint before
        the first step, over other batches (Chowdhery et al. 2022, section 5.1). The window of the
        run file has every step before it.

    Yields:
        One alarm.
    """
    losses = past.losses
    if len(losses.high) < LEAP or losses.count - losses.calm_since <= WINDOW:
        return
    level, spread = losses.level
    least = min(loss for _, loss in losses.high[-LEAP:])
    height = max(sigmas * spread, rise * abs(level), rise / 2 * losses.fall, losses.stray)
    if not least - level > height:
        return
    top = max(loss for _, loss in losses.high)
    steps, gradients, course = past.ring.window()
    site, at = began(steps, gradients, course)
    first = losses.high[0][0]
    since = min(int(steps[at]), first)
    names = past.names([site]) if site is not None else []
    where = f"; it began in {quoted(names[0])} at step {since}" if names else ""
    yield alarm(
        loss_spike,
        past,
        sites=names,
        value=top - level,
        unit="loss",
        threshold=height,
        since=since,
        explanation=f"from step {first} on the loss leaps from {level:.4g} to {top:.4g}; its noise "
        f"is {spread:.2g}{where}",
    )


# ---- SP406 -----------------------------------------------------------------------------------


@over_time(
    "SP406",
    "The loss does not come down",
    when="steps",
    severity="tip",
    needs=("loss",),
    wants=("delta_rms", "update_ratio"),
    cures=("he-init", "normalise", "residual", "raise-learning-rate", "lower-learning-rate"),
)
def plateau(
    past: Past, *, least: int = 1000, fall: float = 0.02, alike: float = 0.01
) -> Iterator[Alarm]:
    """The loss is where it was at the start, after a long time.

    How it is detected:
        After `least` losses, the last quarter of the run is not lower than the start by the part
        `fall` of it, and does not fall any more (the second half of the run by less than three
        standard errors). That alone holds for a network that began from trained weights, too. So it
        is told only where something says that nothing was learned: the loss is alike for all
        batches (its standard deviation below `alike` of its level), as that of a constant answer;
        or no error signal reaches the first third of the network (delta falls a thousandfold); or
        the weights have hardly moved. A loss that has come down and is at rest is no case. One that
        came down and went back to where it began, for a quarter of the run, is an issue (not for
        several models, whose losses are a game).

    Why it matters:
        What has not come down in a thousand steps mostly does not in ten thousand. The first steps
        of a run are the cheapest place to stop it.

    How to cure it:
        `signalprop.diagnose` on this network and a batch says why. Where it began from trained
        weights and a small learning rate, this may be all there is to learn.

    Yields:
        One alarm.
    """
    steps, means, spread = past.losses.course()
    if past.losses.count < least or len(means) < 16:
        return
    quarter = len(means) // 4
    start, now = past.losses.start, float(means[-quarter:].mean())
    best, whole = past.losses.best, past.losses.fall
    error = float(spread.mean())
    falling = past.losses.falling(1.0)
    back = float(means[-quarter:].min()) >= start - 0.1 * whole
    lost = back and whole > max(0.1 * abs(start), 3 * error)
    if lost and len(past.models) < 2:
        yield alarm(
            plateau,
            past,
            value=now,
            unit="loss",
            threshold=start - 0.1 * whole,
            since=int(steps[-quarter:][0]),
            severity="issue",
            explanation=f"the loss came down from {start:.4g} to {best:.4g}, and has gone back to "
            f"{now:.4g} for a quarter of the run",
            cures=("lower-learning-rate",),
        )
        return
    if start - now > fall * abs(start) or not falling < 3 or past.losses.falling() >= 3:
        return
    noise = float(spread[-quarter:].mean())
    why = _why(past)
    if noise < alike * abs(now):
        why = why or f"it is the same for all batches, within {noise:.2g}"
    if why:
        yield alarm(
            plateau,
            past,
            value=start - now,
            unit="loss",
            threshold=fall * abs(start),
            since=past.first,
            explanation=f"the loss was {start:.4g} at the start and is {now:.4g} after "
            f"{past.step - past.first} steps; {why}",
        )


def _why(past: Past) -> str:
    """What the network itself says of a loss that does not fall; empty where it says nothing."""
    if not past.now:
        return ""
    delta = past.now["delta"][past.models[0]]
    delta = delta[~np.isnan(delta)]
    third = len(delta) // 3
    if third >= 2 and np.isfinite(delta[-third:].max()):
        lost = float(delta[-third:].max() - delta[:third].max())
        if lost > 7:
            if lost > 100:
                return "no error signal reaches its first third"
            size = f"{math.exp(lost):.2g}"
            return f"the error signal is {size} times as small in its first third as at its end"
    way = middle(np.where(past.path > 0, past.path, np.nan))
    if way < 1e-2:
        return f"all updates together have moved the median layer by {way:.2g} of its weights"
    return ""


# ---- SP407 -----------------------------------------------------------------------------------


@over_time(
    "SP407",
    "The gradient's norm drifts up",
    severity="tip",
    needs=("gradient_norm", "weight_norm"),
    wants=("loss",),
    cures=("lower-learning-rate", "clip-gradient"),
)
def gradient_drift(
    past: Past, *, nats: float = 2.3, order: float = 0.8, least: int = 24
) -> Iterator[Alarm]:
    """The gradients grow all the time, slowly, over the whole run.

    How it is detected:
        Over the later three quarters of the run, in `least` blocks of samples or more, ln|g| of the
        median layer, and ln(|g||w|) as well, have risen by `nats` (a factor 10), and in order: of
        all pairs of blocks, a part of (1 + `order`) / 2 is in rising order (Kendall's tau). Not
        where the loss still comes down. |g||w| is looked at besides, since under weight decay the
        weights before a normalisation shrink and their gradient grows as 1/|w| with nothing being
        wrong.

    Why it matters:
        Where the loss does not come down for it, a growing gradient says that its surface gets
        steeper: logits or weights that grow without bound. It comes long before the spikes.

    How to cure it:
        Weight decay, a loss on the size of the logits (Chowdhery et al. 2022), normalised queries
        and keys, or a schedule that lowers the learning rate in time.

    Yields:
        One alarm.
    """
    rows = np.array(past.trend)
    rows = rows[len(rows) // 4 :]
    if len(rows) < 0.75 * least or past.losses.falling() >= 2:
        return
    level, push = rows[:, 1], rows[:, 2]
    if not (np.isfinite(level).all() and np.isfinite(push).all()):
        return
    edge = max(len(rows) // 6, 2)
    grown = [float(np.median(v[-edge:]) - np.median(v[:edge])) for v in (level, push)]
    if min(grown) <= nats:
        return
    if min(_kendall(level), _kendall(push)) < order:
        return
    yield alarm(
        gradient_drift,
        past,
        value=grown[0],
        unit="nats",
        threshold=nats,
        since=int(rows[0, 0]),
        explanation=f"the gradient of the median layer has grown {math.exp(grown[0]):.3g} times "
        f"since step {int(rows[0, 0])}, little by little, and the loss does not come down for it",
    )


def _kendall(values: np.ndarray) -> float:
    """Kendall's tau against time."""
    signs = np.sign(values[None, :] - values[:, None])
    pairs = len(values) * (len(values) - 1) / 2
    return float(np.triu(signs, 1).sum() / pairs)


COURSE_RULES: tuple[RuleOverTime, ...] = (loss_spike, plateau, gradient_drift)
