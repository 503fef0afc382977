"""What every view of trials says: the verdict, the lines to paste, a diagnosis in one line."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from signalprop.cures.trials.result import PROOF, Trial, Trials
from signalprop.diagnosis.finding import Diagnosis
from signalprop.report import words

#: gains at least so large are told in two digits
PLAIN = 0.05


def heading(trials: Trials) -> str:
    """What was tried, in a few words."""
    return f"Cures of {words.shorten(words.clean(trials.model), 60)}"


def state(trials: Trials) -> str:
    """`helps`, `untreated` where there is an issue and nothing helps, or `nothing`."""
    if trials.best is not None:
        return "helps"
    return "nothing" if trials.before.healthy else "untreated"


def headline(trials: Trials) -> str:
    """The verdict in one sentence, e.g. `he-init helps: accuracy 0.35 -> 0.93 (...)`."""
    best = trials.best
    if best is not None:
        return _helps(trials, best)
    early = "" if trials.complete else " so far"
    if trials.trials:
        return f"Nothing that was tried helps{early}."
    if trials.before.healthy and not trials.before.findings:
        return "Nothing to treat: no issue found."
    if trials.rejected:
        return "Nothing was tried: no cure of what was found applies."
    if not trials.complete:
        return "No candidate was tried to its first comparison."
    return "Nothing was tried: no cure is known for what was found."


def _helps(trials: Trials, best: Trial) -> str:
    name = words.clean(best.name)
    verb = "helps" if best.verdict == "helps" else "is better"
    before = statistics.fmean(best.untouched)
    about = f"{words.plural(len(best.metric), 'seed')}, {words.plural(best.step, 'update')}"
    digits = 2 if abs(best.gain) >= PLAIN else 3
    if math.isfinite(best.gain):
        spread = gain_spread(best)
        change = value(best.gain, digits, sign=True)
        change += "" if math.isnan(spread) else f" ± {value(spread, digits)}"
        told = f"{change} over {about}"
    else:
        told = about
    text = (
        f"{name} {verb}: {words.clean(trials.metric)} {value(before, digits)} -> "
        f"{value(best.mean, digits)} ({told})."
    )
    if best.verdict != "helps":
        text += f" Fewer than {PROOF} seeds prove nothing."
    return text


def value(number: float, digits: int = 3, *, sign: bool = False) -> str:
    """A metric, or a gain, with so many decimals where it is of ordinary size."""
    if math.isnan(number):
        return ""
    if number == -math.inf:
        return "diverged"
    if math.isinf(number):
        return "from none"
    if abs(number) < 10:
        return f"{number + 0.0:{'+' if sign else ''}.{digits}f}"
    return ("+" if sign and number > 0 else "") + words.number(number)


def mean(trial: Trial) -> str:
    """The mean over the seeds with its spread, e.g. `0.934 ± 0.012`."""
    if not math.isfinite(trial.mean):
        return "diverged"
    spread = trial.spread
    return value(trial.mean) + ("" if math.isnan(spread) else f" ± {value(spread)}")


def gain(trial: Trial) -> str:
    """The gain with its sign; empty where a candidate diverged."""
    return "" if trial.gain == -math.inf else value(trial.gain, sign=True)


def gains(trial: Trial) -> tuple[float, ...]:
    """Of every seed, against the untouched network with the same seed."""
    pairs = zip(trial.metric, trial.untouched, strict=True)
    return tuple(a - b if math.isfinite(a) else -math.inf for a, b in pairs)


def gain_spread(trial: Trial) -> float:
    """Standard deviation of the gain over the seeds; nan where there is none."""
    found = gains(trial)
    if len(found) < 2 or not all(map(math.isfinite, found)):
        return math.nan
    return statistics.stdev(found)


def updates(trial: Trial) -> str:
    """Its last update, and whether it was stopped there."""
    return f"{trial.step:,}" + (", stopped" if trial.stopped else "")


def code(trial: Trial) -> list[str]:
    """The lines to paste, with the import that they need first."""
    lines = [words.clean(part.expandtabs(4)) for line in trial.lines for part in line.splitlines()]
    if any("signalprop.cures." in line for line in lines):
        lines.insert(0, "import signalprop.cures")
    return lines


def folded(line: str, width: int) -> list[str]:
    """A line of code that fits: broken after commas inside of brackets, where Python allows it."""
    if len(line) <= width:
        return [line]
    inside = " " * (len(line) - len(line.lstrip()) + 4)
    made, current = list[str](), ""
    for part in _parts(line):
        if current.strip() and len((current + part).rstrip()) > width:
            made.append(current.rstrip())
            current = inside + part
        else:
            current += part
    return [*made, current.rstrip()]


def _parts(line: str) -> Iterator[str]:
    """Pieces that end after `, ` inside of brackets and outside of strings, or in an opening."""
    depth, quote, start = 0, "", 0
    for i, sign in enumerate(line):
        if quote:
            quote = "" if sign == quote and line[i - 1] != "\\" else quote
        elif sign in "\"'":
            quote = sign
        elif sign in "([{":
            depth += 1
            yield line[start : i + 1]
            start = i + 1
        elif sign in ")]}":
            depth -= 1
        elif sign == " " and depth > 0 and line[i - 1] == ",":
            yield line[start : i + 1]
            start = i + 1
    yield line[start:]


def diagnosis(found: Diagnosis) -> str:
    """A diagnosis in one line, e.g. `1 issue: SP101 Error signal vanishes with depth`."""
    if found.trace.failure is not None:
        return f"the {found.trace.failure.phase} pass stops"
    told = []
    for severity in ("issue", "tip"):
        mine = [f for f in found.findings if f.severity == severity]
        named = words.listed(dict.fromkeys(f"{f.code} {words.clean(f.title)}" for f in mine))
        if mine:
            told.append(f"{words.plural(len(mine), severity)}: {named}")
    return "; ".join(told) or "nothing found"


def about(trials: Trials) -> list[tuple[str, str]]:
    """What was done, as pairs of a name and a value."""
    done = sum(t.step * len(t.metric) for t in (*trials.trials, trials.untouched))
    seconds = sum(t.seconds for t in (*trials.trials, trials.untouched))
    return [
        ("model", words.clean(trials.model)),
        ("metric", f"{words.clean(trials.metric)}, higher is better"),
        ("seeds", ", ".join(map(str, trials.seeds))),
        ("updates", f"{trials.steps:,} of each training, {done:,} in all"),
        ("time in updates", f"{seconds:.3g} s"),
        ("data", words.clean(trials.data)),
    ]


def reasons(trials: Trials) -> list[tuple[str, str]]:
    """Cures that do not apply, each with the reason."""
    return [
        (words.clean(name), words.clean(why).rstrip(".")) for name, why in trials.rejected.items()
    ]


def notes(trials: Trials) -> list[str]:
    """What the reader has to know, as sentences."""
    found = [_sentence(words.clean(note)) for note in trials.notes]
    if not trials.complete:
        found.insert(
            0,
            "Interrupted: this is what had finished. Call it again with resume= and the same "
            "folder, and what is finished there is not run again.",
        )
    return found


def legend(trials: Trials) -> str:
    """How the table of candidates is to be read."""
    text = "Mean over the seeds"
    if len(trials.seeds) > 1:
        text += " ± standard deviation"
    text += "; gain: against the untouched network after as many updates"
    if any(t.stopped for t in trials.trials):
        text += "; stopped: one of the losers after so many, not trained further"
    return text + "."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
