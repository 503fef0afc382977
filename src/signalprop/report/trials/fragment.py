"""What a notebook shows of trials: the verdict, the lines to paste, all candidates."""

from __future__ import annotations

from html import escape

from signalprop.cures.trials.result import Trial, Trials
from signalprop.report import words
from signalprop.report.fragment import STYLE
from signalprop.report.trials import said

_STATES = {"helps": "healthy", "untreated": "issue", "nothing": "healthy"}


def fragment(trials: Trials) -> str:
    """A piece of HTML that stands in any page.

    Args:
        trials: what was tried.

    Returns:
        A `div` with its own style; no script, no request.
    """
    kind = _STATES[said.state(trials)]
    parts = [f'<div class="sp-box sp-{kind}"><p><b>{escape(said.headline(trials))}</b></p></div>']
    best = trials.best
    if best is not None and said.code(best):
        parts.append(f"<pre>{escape(chr(10).join(said.code(best)))}</pre>")
    parts.append(f"<p><b>Before:</b> {escape(said.diagnosis(trials.before))}</p>")
    if trials.after is not None:
        parts.append(f"<p><b>After:</b> {escape(said.diagnosis(trials.after))}</p>")
    heads = ("candidate", words.clean(trials.metric), "gain", "updates", "verdict")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    rows = "".join(_row(t) for t in (*trials.trials, trials.untouched))
    parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")
    parts.append(f'<p class="sp-soft">{escape(said.legend(trials))}</p>')
    parts += [
        f'<p class="sp-soft">Not tried: {escape(name)}: {escape(why)}.</p>'
        for name, why in said.reasons(trials)
    ]
    parts += [f'<p class="sp-soft">Note: {escape(note)}</p>' for note in said.notes(trials)]
    return f'<div class="sp-report"><style>{STYLE}</style>{"".join(parts)}</div>'


def _row(trial: Trial) -> str:
    plain = trial.verdict == "untouched"
    failed = f" ({words.clean(trial.failed)})" if trial.failed else ""
    return (
        f"<tr><td>{escape(words.clean(trial.name))}</td>"
        f'<td class="sp-n"><b>{escape(said.mean(trial))}</b></td>'
        f'<td class="sp-n">{"" if plain else said.gain(trial)}</td>'
        f'<td class="sp-n">{said.updates(trial)}</td>'
        f"<td>{'' if plain else escape(trial.verdict + failed)}</td></tr>"
    )
