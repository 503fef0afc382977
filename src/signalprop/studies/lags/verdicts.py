"""The verdicts of `lstm`, from the measured values and nothing else."""

from __future__ import annotations

import math

from signalprop.studies.frame import Claim, Values, Verdict
from signalprop.studies.lags.carousel import WHOLE
from signalprop.studies.lags.cells import BIAS, CHRONO, KINDS, OLD, PLAIN, TANH
from signalprop.studies.plain import of_all

#: as a share: credit that changes by less over all steps is unchanged
SAME = 1e-6
#: how often credit has to tell a solved pair from an unsolved one, to hold, and to hold in part
SURE, SOME = 0.9, 0.7


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts on the parts of the statement."""
    claims = [judge_carousel(v), judge_lags(v)]
    if any(f"{t}: published" in v for t in tasks_of(v)):
        claims.append(judge_published(v))
    if (long := longest(v)) and long != "":
        claims.append(judge_today(v, long))
    claims.append(judge_foretold(v))
    return tuple(claims)


def tasks_of(v: Values) -> list[str]:
    """Tasks with a criterion on which something was trained."""
    end = ": lag"
    return [name.removesuffix(end) for name in v if name.endswith(end)]


def share(v: Values, cell: str, task: str) -> float:
    """Of the runs that solved it; nan where there was none."""
    return v.get(f"{cell} on {task}: solved", math.nan)


def needed(v: Values, cell: str, task: str) -> float:
    """Sequences until it was solved, the median; inf where it was not."""
    return v.get(f"{cell} on {task}: sequences", math.inf)


def judge_carousel(v: Values) -> Claim:
    """Whether the addition leaves the error as it is."""
    change = {name: v[f"{name}: change"] for name in (OLD, WHOLE, PLAIN, BIAS, CHRONO, TANH)}
    rate = {name: v[f"{name}: rate"] for name in change}
    same = {name: gap <= SAME for name, gap in change.items()}
    return Claim(
        "the gradient goes through the addition of the cell state unchanged",
        of_all([same[OLD], same[WHOLE], same[PLAIN]]),
        f"Over {v['steps of 1997']:,.0f} steps credit in the cell of 1997, whose gradient is "
        f"truncated, changes by a share of {change[OLD]:.1g}; with its whole gradient by "
        f"{change[WHOLE]:.2g} over {v['steps']:,.0f} steps. With a forget gate it changes by "
        f"{rate[PLAIN]:+.3f} nats per step as torch starts it, {rate[BIAS]:+.3f} with forget bias "
        f"1, {rate[CHRONO]:+.4f} with chrono; in a tanh RNN by {rate[TANH]:+.3f}.",
        "" if all(same[name] for name in (OLD, WHOLE, PLAIN)) else
        "Unchanged is what goes along c in the cell of 1997: dc_t/dc_{t-1} = 1, which is all there "
        "is once the gradient is truncated. A forget gate multiplies it by f_t: at torch's start "
        "that is about 1/2, and the cell forgets as fast as a tanh RNN.",
    )  # fmt: skip


def judge_lags(v: Values) -> Claim:
    """Whether LSTM solves what a plain RNN does not."""
    told = tasks_of(v)
    by = {t: [k for k in KINDS if share(v, k, t) >= 0.5] for t in told}
    ahead = {t: bool(by[t]) and not share(v, TANH, t) >= 0.5 for t in told}
    none = [t for t in told if not by[t]]
    both = [t for t in told if by[t] and not ahead[t]]
    lags = ", ".join(f"{t} (lag {v[f'{t}: lag']:.0f})" for t in both)
    counts = "; ".join(
        f"{k}: {sum(share(v, k, t) >= 0.5 for t in told)}"
        for k in (*KINDS, TANH)
        if any(f"{k} on {t}: solved" in v for t in told)
    )
    return Claim(
        "so LSTM nets solve tasks with long time lags, and plain recurrent nets do not",
        of_all(list(ahead.values())),
        f"Of {len(told)} tasks with a criterion solved within the sequences given, by at least "
        f"half of the runs: {counts}.",
        "" if all(ahead.values()) else " ".join(
            ([f"No kind of LSTM met the criterion of {', '.join(none)}."] if none else [])
            + ([f"The tanh RNN solved {lags}, too."] if both else [])
        ),
    )  # fmt: skip


def judge_published(v: Values) -> Claim:
    """Whether as many sequences do as were published."""
    known = [t for t in tasks_of(v) if f"{t}: published" in v]
    best = {t: min((needed(v, k, t), k) for k in KINDS) for t in known}
    enough = {t: best[t][0] <= v[f"{t}: published"] for t in known}
    old = [t for t in known if needed(v, OLD, t) <= v[f"{t}: published"]]
    rows = "; ".join(
        f"{t}: {v[f'{t}: published']:,.0f} published, "
        + (f"{best[t][0]:,.0f} here ({best[t][1]})" if best[t][0] < math.inf else "not solved here")
        for t in known
    )
    fewer = [t for t in known if not enough[t]]
    return Claim(
        "after as many training sequences as were published",
        of_all(list(enough.values())),
        f"{rows}. The cell of 1997 itself needed no more on {len(old)} of {len(known)}.",
        "" if not fewer else "Not within the sequences given here: " + ", ".join(
            f"{t} ({v[f'{t}: budget']:,.0f} given)" for t in fewer
        ) + ".",
    )  # fmt: skip


def longest(v: Values) -> str:
    """The adding problem of the longest lag."""
    there = [t for t in tasks_of(v) if t.startswith("adding")]
    return max(there, key=lambda t: v[f"{t}: lag"], default="")


def judge_today(v: Values, task: str) -> Claim:
    """Whether an LSTM as it is started today learns the longest lag."""
    plain, chrono = (share(v, k, task) >= 0.5 for k in (PLAIN, CHRONO))
    shut = share(v, BIAS, task) < 0.5
    reach = "; ".join(
        f"e^{v[f'{k} on {task}: credit']:.0f} ({k})"
        for k in (PLAIN, BIAS, CHRONO)
        if f"{k} on {task}: credit" in v
    )
    wins = (f"chrono solved it after {needed(v, CHRONO, task):,.0f} sequences" if chrono else
            "chrono did not solve it either")  # fmt: skip
    verdict: Verdict = "holds" if plain else "does not hold as printed"
    return Claim(
        f"an LSTM as torch starts it learns the longest of the lags ({task})",
        verdict,
        f"Credit at the lag of {v[f'{task}: lag']:.0f} steps before training: {reach}. torch's own "
        f"start {'solved' if plain else 'did not solve'} it within {v[f'{task}: budget']:,.0f} "
        f"sequences, {wins}.",
        "" if plain else "The forget gates have to start open as long as the lag"
        + (": chrono draws their biases so, and shuts the input gates as far." if chrono else ".")
        + (" A forget bias of 1 is not enough." if shut else ""),
    )  # fmt: skip


def judge_foretold(v: Values) -> Claim:
    """Whether the horizon before training tells who solves what."""
    auc = v["foretold: AUC"]
    verdict: Verdict = "does not hold as printed"
    if auc >= SURE and v["foretold: accuracy, rounding"] >= SURE:
        verdict = "holds"
    elif auc >= SOME:
        verdict = "holds in part"
    return Claim(
        "the horizon before training tells which cell solves which lag",
        verdict,
        f"In {v['foretold: pairs']:.0f} pairs of a cell and a task, {v['foretold: solved']:.0f} of "
        f"them solved: a solved pair had more credit at the task's lag than an unsolved one with "
        f"probability {auc:.2f}; rank correlation with the share of runs that solved it "
        f"{v['foretold: rank correlation']:.2f}. 'Solved where credit at the lag is above "
        f"float32's rounding' is right in {v['foretold: accuracy, rounding']:.0%}, 'above 1/e' in "
        f"{v['foretold: accuracy, 1/e']:.0%}, always the same answer in "
        f"{v['foretold: accuracy, always the same']:.0%}.",
        "" if verdict == "holds" else
        f"Of the pairs whose credit drowns before the lag {v['foretold: unsolved, drowned']:.0%} "
        f"were not solved; of those whose credit arrives {v['foretold: solved, arrived']:.0%} "
        "were. Credit that arrives is needed, and is not enough: cells differ in how they write "
        "and read what they keep, and the horizon changes as they learn.",
    )  # fmt: skip
