"""The verdicts of `rnn-time`, from the measured values and nothing else."""

from __future__ import annotations

import math

from signalprop.studies.frame import Claim, Values
from signalprop.studies.plain import of_all
from signalprop.studies.rnn_time.nets import GAUSS, LEAKS, LINEAR, RELU, STARTS, TANH

#: nats per step: a slope that is none, and how much is as predicted by theory of infinite width
FLAT, OFF = 0.02, 0.1
#: the same where theory is of the very matrix
EXACT = 0.01


def cases_of(v: Values) -> dict[str, float]:
    """Slope by case."""
    end = ": measured"
    return {
        name.removesuffix(end): value
        for name, value in v.items()
        if name.endswith(end) and not name.startswith("deep")
    }


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts from the measured values."""
    slopes = cases_of(v)
    below = [at for at in slopes if v[f"{at}: norm"] < 1]
    above = [at for at in slopes if v[f"{at}: norm"] > 1 + FLAT]
    vanish = [slopes[at] < 0 for at in below]
    grown = [at for at in above if slopes[at] > FLAT]
    lost = [at for at in above if slopes[at] < -FLAT]
    bounded = [at for at in grown if at.startswith(TANH) and v[f"{at}: state"] <= 1]
    most = max(bounded, key=lambda at: slopes[at], default="")
    T = v["steps"]
    return (
        judge_depth(v, slopes),
        Claim(
            "with factors below 1 the product vanishes",
            of_all(vanish),
            f"{sum(vanish)} of the {len(below)} kinds of nets whose steps all have a norm below 1 "
            f"lose credit with every step, {-max(slopes[at] for at in below):.3f} nats or more."
            if below else "No net had steps of a norm below 1.",
            "" if all(vanish) else "That is a theorem: look for a mistake in the measurement.",
        ),
        Claim(
            "with factors above 1 it explodes",
            of_all([at in grown for at in above]),
            f"Of {len(above)} kinds of nets whose steps have a norm above 1, {len(grown)} gain "
            f"credit and {len(lost)} lose it all the same"
            + (f", {told(v, lost)}" if lost else "") + "."
            + (f" Where a tanh net's credit grows ({most}: by e^{slopes[most] * T:.0f} in {T:.0f} "
               f"steps), its state does not: rms {v[f'{most}: state']:.2f}." if most else ""),
            "" if len(grown) == len(above) else
            "Norms of single steps do not tell, nor does the gain of W alone: a product of "
            "matrices grows with its Lyapunov exponent, which is below ln of the norms and has "
            "phi' in it (a tanh net needs a gain above 1, a ReLU net above sqrt 2). Saturation "
            "bounds the state of a chaotic tanh net, not its error signal.",
        ),
        judge_theory(v, slopes),
        judge_starts(v),
    )  # fmt: skip


def told(v: Values, lost: list[str]) -> str:
    """The one with the largest norm of those that lose credit."""
    at = max(lost, key=lambda at: v[f"{at}: norm"])
    return (f"such as {at}: norm {v[f'{at}: norm']:.2f}, {v[f'{at}: measured']:+.2f} nats per "
            "step")  # fmt: skip


def judge_depth(v: Values, slopes: dict[str, float]) -> Claim:
    """Whether time is depth."""
    pairs = {
        at: (slopes[at], v[f"deep, {at.rpartition(', ')[2]}: measured"])
        for at in slopes
        if at.startswith(f"{TANH}, {GAUSS}")
    }
    off = {at: abs(time - depth) for at, (time, depth) in pairs.items()}
    same = [gap <= OFF for gap in off.values()]
    rates = "; ".join(f"{a:+.2f} and {b:+.2f} ({at.rpartition(', ')[2]})"
                      for at, (a, b) in pairs.items())  # fmt: skip
    return Claim(
        "a recurrent net is a deep net in time",
        of_all(same),
        "Nats per step of a tanh net that uses one W at all times, and per layer of one that has "
        f"another W in every layer: {rates}.",
        ""
        if all(same)
        else f"One W at all times differs by up to {max(off.values()):.2f} nats "
        "per step from as many layers: what it does at one step it does at all.",
    )


def judge_theory(v: Values, slopes: dict[str, float]) -> Claim:
    """Whether the slope and the horizon are those that theory says."""
    off = {at: abs(slope - v[f"{at}: predicted"]) for at, slope in slopes.items()}
    worst = {phi: max(gap for at, gap in off.items() if at.startswith(phi))
             for phi in (LINEAR, TANH, RELU)}  # fmt: skip
    leaky = [v[f"leaky {g:g}: horizon"] == math.floor(-1 / math.log(g)) for g in LEAKS]
    right = [worst[LINEAR] <= EXACT, worst[TANH] <= OFF, worst[RELU] <= OFF, all(leaky)]
    ran = max(abs(slope - v[f"{at}: exponent"]) for at, slope in slopes.items())
    return Claim(
        "how fast can be told before: by ln of W's spectral radius (linear), by mean field (tanh, "
        "ReLU), by floor(ln alpha / ln gamma) for a leaky integrator's horizon",
        of_all(right),
        f"Measured less predicted, nats per step, at most: {worst[LINEAR]:.4f} (linear), "
        f"{worst[TANH]:.3f} (tanh), {worst[RELU]:.3f} (ReLU), at {v['units']:.0f} units. Leaky "
        f"integrators: {sum(leaky)} of {len(leaky)} horizons to the step. The Lyapunov exponent of "
        f"the run itself is within {ran:.3f}.",
        ""
        if all(right)
        else f"Mean field is of infinite width: off by more than {OFF:g} nats per step here.",
    )


def judge_starts(v: Values) -> Claim:
    """How soon there are too many steps."""
    plain = ("nn.RNN, tanh", "nn.RNN, ReLU")
    gone = [v[f"{name}: horizon, float32"] < v["steps"] - 1 for name in plain]
    steps = "; ".join(
        f"{v[f'{name}: horizon, 1/e']:.0f} and {v[f'{name}: horizon, float32']:.0f} ({name})"
        for name in STARTS
    )
    return Claim(
        f"{v['steps']:.0f} steps are too many for a plain recurrent net as torch starts it",
        of_all(gone),
        "Steps until credit has fallen to 1/e, and to what float32 rounds away: "
        f"{steps}; {v['steps'] - 1:.0f} is the longest there is. torch starts nn.LSTM and nn.GRU "
        "with gates half open, which forget as fast.",
        "" if all(gone) else "Their credit reaches over all steps.",
    )
