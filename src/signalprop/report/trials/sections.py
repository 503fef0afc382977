"""The page of trials: the verdict, the lines to paste, figures, and all candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from signalprop.cures.trials.result import Trial, Trials
from signalprop.diagnosis.finding import Diagnosis
from signalprop.report import words
from signalprop.report.tables import cell, e, number, table
from signalprop.report.trials import said
from signalprop.report.trials.figures import curves, dots

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: class and word of the verdict
_STATES = {
    "helps": ("healthy", "helps"),
    "untreated": ("issue", "nothing helps"),
    "nothing": ("healthy", "nothing to treat"),
}
_MARKS = {"helps": "passed", "better": "passed", "worse": "issue", "failed": "failed"}


def blocks(trials: Trials) -> list[go.Figure | str]:
    """The page in reading order.

    Args:
        trials: what was tried.

    Returns:
        Blocks for `html.page`.
    """
    result: list[go.Figure | str] = [_verdict(trials)]
    best = trials.best
    if best is not None and said.code(best):
        result += ["<h2>Lines to paste</h2>", code(best)]
    result += ["<h2>Before and after</h2>", _diagnoses(trials)]
    result += ["<h2>Every seed</h2>", dots(trials)]
    figure = curves(trials)
    if figure is not None:
        result += ["<h2>Training loss</h2>", figure]
    result += [_table(trials), f"<p class='soft'>{e(said.legend(trials))}</p>"]
    rejected = said.reasons(trials)
    if rejected:
        heads = [("cure", ""), ("why it does not apply", "")]
        rows = [
            (f"r{i}", "", [cell(name), f'<td class="wrap">{e(why)}</td>'])
            for i, (name, why) in enumerate(rejected)
        ]
        result.append(table("Not tried", "rejected", heads, rows))
    return result


def code(trial: Trial) -> str:
    """The lines to paste as HTML."""
    return (
        '<pre class="card code" tabindex="0" aria-label="Lines to paste" '
        f'style="overflow-x:auto">{e(chr(10).join(said.code(trial)))}</pre>'
    )


def _verdict(trials: Trials) -> str:
    kind, word = _STATES[said.state(trials)]
    facts = "".join(f"<div><dt>{e(k)}</dt><dd>{e(v)}</dd></div>" for k, v in said.about(trials))
    listed = "".join(f"<li>{e(note)}</li>" for note in said.notes(trials))
    return (
        f'<section class="verdict {kind}" aria-label="Verdict">'
        f'<span class="word {kind}">{word}</span>'
        f'<p>{e(said.headline(trials))}</p></section><dl class="facts">{facts}</dl>'
        + (f'<ul class="soft notes">{listed}</ul>' if listed else "")
    )


def _diagnoses(trials: Trials) -> str:
    shown = [("Before", "the untouched network", trials.before)]
    if trials.after is not None and trials.best is not None:
        shown.append(("After", f"{trials.best.name}, before its training", trials.after))
    return "".join(_card(title, what, found) for title, what, found in shown)


def _card(title: str, what: str, found: Diagnosis) -> str:
    listed = "".join(
        f'<li><span class="word {f.severity}">{f.severity}</span> <b>{e(words.clean(f.code))} '
        f"{e(words.clean(f.title))}</b></li>"
        for f in found.findings
    )
    listed = f"<ul>{listed}</ul>" if listed else "<p>Nothing found.</p>"
    return (
        f'<div class="card"><h3>{title} <span class="soft">({e(words.clean(what))})</span></h3>'
        f"<p>{e(words.clean(found.verdict))}</p>{listed}</div>"
    )


def _table(trials: Trials) -> str:
    heads = [
        ("candidate", ""), (e(words.clean(trials.metric)), "n"), ("spread", "n"), ("gain", "n"),
        ("own loss", "n"), ("updates", "n"), ("verdict", ""), ("lines", ""),
    ]  # fmt: skip
    rows = [(f"t{i}", "", _cells(t)) for i, t in enumerate((*trials.trials, trials.untouched))]
    return table("Candidates", "candidates", heads, rows)


def _cells(trial: Trial) -> list[str]:
    plain = trial.verdict == "untouched"
    mark = _MARKS.get(trial.verdict, "")
    losses = sum(trial.losses) / len(trial.losses)
    failed = f" {e(words.clean(trial.failed))}" if trial.failed else ""
    lines = "<br>".join(e(line) for line in said.code(trial) if not line.startswith("import "))
    return [
        f'<td class="wrap">{e(words.clean(trial.name))}</td>',
        number(trial.mean, said.value(trial.mean)),
        number(trial.spread, said.value(trial.spread)),
        number(None if plain else trial.gain, "" if plain else said.gain(trial)),
        number(losses),
        number(float(trial.step), said.updates(trial)),
        f'<td class="wrap"><span class="word {mark}">{trial.verdict}</span>{failed}</td>',
        f'<td class="code">{lines}</td>',
    ]
