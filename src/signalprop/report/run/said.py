"""What is said of a run, in sentences that terminal, report and live page share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from signalprop.report import words
from signalprop.report.run.overview import Overview, Told

#: how the statistics are called where there is room for a few words
NAMES = {
    "activation_rms": "activation rms",
    "dead": "dead units",
    "saturated": "saturated units",
    "delta_rms": "error signal rms (delta)",
    "weight_norm": "weight norm",
    "gradient_norm": "gradient norm",
    "update_norm": "update norm",
    "update_ratio": "update / weight",
    "gradient_rms": "gradient rms",
    "gradient_snr": "gradient signal-to-noise",
    "learning_share": "learning share",
    "attention_entropy": "attention entropy",
    "attention_entropy_lowest": "attention entropy, lowest head",
    "attention_entropy_most": "attention entropy, largest possible",
    "attention_logit": "attention logit, largest",
}
#: looked at first, where the run has it
FIRST = ("gradient_norm", "delta_rms", "activation_rms", "update_ratio", "gradient_rms")


def label(name: str) -> str:
    """How a statistic is called."""
    return NAMES.get(name, words.clean(name).replace("_", " "))


def chosen(statistics: Sequence[str]) -> str | None:
    """The statistic that is shown first; None where there is none."""
    for name in FIRST:
        if name in statistics:
            return name
    return statistics[0] if statistics else None


def headline(run: Overview) -> str:
    """The whole run in one or two sentences."""
    if run.last is None:
        return "Nothing was recorded yet."
    over = f"{words.plural(run.sampled, 'sampled step')} up to step {run.last:,}"
    if not run.alerts:
        return f"No alerts in {over}."
    issues = [a for a in run.alerts if a.severity == "issue"]
    tips = len(run.alerts) - len(issues)
    counts = [words.plural(n, w) for n, w in ((len(issues), "issue"), (tips, "tip")) if n]
    first = min(issues or run.alerts, key=lambda alert: alert.since)
    return f"{' and '.join(counts)} in {over}. First: {brief(first)}."


def brief(alert: Told) -> str:
    """Title, since when, and where, in a few words."""
    where = f" at {words.clean(alert.sites[0])}" if alert.sites else ""
    more = f" and {len(alert.sites) - 1} more" if len(alert.sites) > 1 else ""
    return f"{alert.title}, {when(alert)}{where}{more}"


def when(alert: Told) -> str:
    """Since which step, and when it was told."""
    if alert.since == alert.step:
        return f"step {alert.step:,}"
    return f"from step {alert.since:,} on"


def duration(seconds: float | None) -> str:
    """A duration as people say it; empty where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def facts(run: Overview) -> list[tuple[str, str]]:
    """Pairs of a name and a value, the run's own facts last."""
    found = []
    if run.last is not None and run.first is not None:
        found.append(("steps", f"{run.first:,} to {run.last:,}, {run.sampled:,} sampled"))
    if run.seconds:
        found.append(("duration", duration(run.seconds)))
    found.append(("sites", f"{len(run.sites):,}"))
    found.append(("statistics", f"{len(run.statistics)}"))
    if run.windows:
        found.append(("windows around spikes", str(run.windows)))
    if run.replays:
        found.append(("steps that can be replayed", str(run.replays)))
    for key, value in list(run.meta.items())[:40]:
        text = value if isinstance(value, str) else _plain(value)
        if text:
            found.append((words.clean(str(key))[:40].replace("_", " "), _short(text)))
    return found


def _plain(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else "yes" if value else "no"
    if isinstance(value, float):
        return words.number(value)
    return str(value)


def _short(text: str) -> str:
    text = words.clean(" ".join(text[:400].split()))
    return text if len(text) <= 120 else text[:119] + "…"
