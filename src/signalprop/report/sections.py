"""The report of one result as blocks of a page: verdict, findings, figures, tables.

Everything that comes from a model passes through `_e`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from signalprop.capture.kinds import KIND_LABELS
from signalprop.diagnosis.finding import Finding
from signalprop.report import figures, words
from signalprop.report.contents import Contents, failure_sentence, measured
from signalprop.report.depth import depth
from signalprop.report.learned import places
from signalprop.report.tables import cell, e, number, share, table
from signalprop.report.time.sections import through

if TYPE_CHECKING:
    import plotly.graph_objects as go

_WORDS = {
    "issue": "issues found",
    "tip": "tips",
    "healthy": "healthy",
    "failed": "stopped",
    "seen": "measured",
}


def blocks(shown: Contents) -> list[go.Figure | str]:
    """The report of one result, in reading order.

    Args:
        shown: the result.

    Returns:
        Blocks for `html.page`.
    """
    trace = shown.trace
    result: list[go.Figure | str] = [verdict(shown)]
    if shown.findings:
        result.append("<h2>Findings</h2>")
        result += [_finding(finding, shown) for finding in shown.findings]
    if shown.split:
        said = shown.split[0].upper() + shown.split[1:]
        result.append(f"<h2>Why the signal changes</h2><p>{e(said)}.</p>")
        if any(math.isfinite(value) for value in trace.split.values()):
            result.append(figures.by_kind(trace.split))
    if trace.sites:
        result += ["<h2>Along the depth</h2>", _how(shown), depth(trace, shown.expected)]
    result += through(trace.time, shown.horizons, shown.lag)
    if shown.learning is not None:
        learning = shown.learning
        result += [
            "<h2>What the optimizer's next update does</h2>",
            f"<p>{e(_learning_sentence(shown))}</p>",
            figures.learning(
                learning.share, learning.update_ratio, shown.noise, learning.later_share
            ),
        ]
    elif shown.noise:
        result += ["<h2>Gradient noise</h2>", figures.learning({}, {}, shown.noise)]
    result += [_sites(shown), _weights(shown)]
    if shown.results:
        result.append(_rules(shown))
    return result


def verdict(shown: Contents) -> str:
    """The verdict, the facts it rests on, and what a reader has to know."""
    word = _WORDS.get(shown.state, shown.state)
    facts = "".join(f"<div><dt>{e(k)}</dt><dd>{e(v)}</dd></div>" for k, v in shown.facts)
    failure = failure_sentence(shown.trace)
    stopped = f"<p>{e(failure)}</p>" if failure else ""
    rules = f'<p class="soft">{e(shown.rules)}</p>' if shown.rules else ""
    notes = "".join(f"<li>{e(words.clean(note))}</li>" for note in shown.trace.notes)
    return (
        f'<section class="verdict {shown.state}" aria-label="Verdict">'
        f'<span class="word {shown.state}">{word}</span><p>{e(words.clean(shown.verdict))}</p>'
        f'{stopped}</section><dl class="facts">{facts}</dl>{rules}'
        + (f'<ul class="soft notes">{notes}</ul>' if notes else "")
    )


def _finding(finding: Finding, shown: Contents) -> str:
    trace = shown.trace
    seen = [site for name in finding.sites for site in places(name, trace)]
    along = list(trace.sites) if trace.dense or not trace.blocks else list(trace.spine)
    at = {name: i for i, name in enumerate(along)}
    spots: dict[str, list[int]] = {"depth": sorted({at[s] for s in seen if s in at})}
    if shown.learning is not None:
        learns = shown.learning
        layers = list(dict.fromkeys([*learns.share, *learns.update_ratio, *(shown.noise or {})]))
        modules = {trace.sites[site].module for site in seen} | {
            trace.weights[n].module for n in finding.sites if n in trace.weights
        }
        spots["learning"] = [i for i, layer in enumerate(layers) if layer in modules]
    rows = [f"s{trace.sites[site].order}" for site in seen]
    pairs = [("measured", e(measured(finding)))]
    if finding.sites:
        links = [_link(name, shown) for name in finding.sites]
        pairs.insert(0, ("where", _folded(links)))
    if finding.cures:
        cures = ", ".join(f"<code>{e(words.clean(c))}</code>" for c in finding.cures)
        pairs.append(("cures", cures))
    details = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in pairs)
    zoom = (
        '<button type="button" class="zoom">Show in the figures</button>'
        if any(spots.values())
        else ""
    )
    return (
        f'<article class="card finding {finding.severity}" '
        f'data-places="{e(json.dumps(spots))}" data-rows="{e(json.dumps(rows))}">'
        f'<header><span class="word {finding.severity}">{finding.severity}</span>'
        f'<h3><span class="code">{e(finding.code)}</span> {e(words.clean(finding.title))}</h3>'
        f"{zoom}</header><p>{e(words.clean(finding.explanation))}</p><dl>{details}</dl></article>"
    )


def _link(name: str, shown: Contents) -> str:
    trace = shown.trace
    text = f"<code>{e(words.clean(name))}</code>"
    if name in trace.sites:
        return f'<a href="#s{trace.sites[name].order}">{text}</a>'
    if name in trace.weights:
        return f'<a href="#w{list(trace.weights).index(name)}">{text}</a>'
    return text


def _folded(links: Sequence[str], first: int = 6) -> str:
    if len(links) <= first + 2:
        return ", ".join(links)
    more = f"<summary>{len(links) - first} more</summary>{', '.join(links[first:])}"
    return f"{', '.join(links[:first])}<details>{more}</details>"


def _how(shown: Contents) -> str:
    trace = shown.trace
    if trace.dense or not trace.blocks:
        why = "most lie inside one block" if trace.dense else "no spine"
        return (
            f"<p class='soft'>All {len(trace.sites)} sites in execution order ({why}). "
            "Drag to zoom, double-click to go back.</p>"
        )
    return (
        f"<p class='soft'>The {words.plural(len(trace.spine), 'site')} that every path from the "
        "input to the loss runs through. Drag to zoom, double-click to go back; hover for all "
        "numbers.</p>"
    )


def _learning_sentence(shown: Contents) -> str:
    learning = shown.learning
    assert learning is not None
    text = f"{words.clean(learning.optimizer)} at learning rate {words.number(learning.rate)}: one "
    text += f"update should lower the loss by {words.number(learning.decrease)} to first order."
    if len(learning.after) > 1:
        course = " → ".join(f"{value:.4g}" for value in learning.after)
        text += f" Measured on copies: {course}."
    return text


# ---- tables ----------------------------------------------------------------------------------


def _sites(shown: Contents) -> str:
    trace = shown.trace
    if not trace.sites:
        return ""
    spine = set(trace.spine)
    block = {b.end: b for b in trace.blocks}
    heads = [
        ("site", ""), ("op", ""), ("kind", ""), ("shape", ""), ("spine", ""), ("decay", "n"),
        ("theory", "n"),
        ("delta geo. mean", "n"), ("delta rms", "n"), ("delta zeros", "n"), ("alive", "n"),
        ("delta cosine", "n"), ("activation rms", "n"), ("mean", "n"), ("zeros", "n"),
        ("rank", "n"), ("cosine", "n"), ("dead", "n"), ("saturated", "n"),
    ]  # fmt: skip
    rows = []
    for site in trace.sites.values():
        a, d = site.activation, site.delta
        decay = block[site.name].decay if site.name in block else None
        theory = shown.expected[site.name].expected if site.name in shown.expected else None
        cells = [
            cell(site.name, code=True),
            cell(site.op),
            cell(KIND_LABELS.get(site.kind, site.kind)),
            cell(" × ".join(map(str, site.shape))),
            cell("yes" if site.name in spine else ""),
            number(decay, words.nats(decay) if decay is not None else ""),
            number(theory, words.nats(theory) if theory is not None else ""),
            *(number(v) for v in ((d.geometric_mean, d.rms) if d else (None, None))),
            *(share(v) for v in ((d.zeros, d.alive) if d else (None, None))),
            number(d.cosine if d else None),
            *(number(v) for v in (a.rms, a.mean)),
            share(a.zeros),
            *(number(v) for v in (a.effective_rank, a.cosine)),
            *(share(v) for v in (a.dead, a.saturated)),
        ]
        bad = not a.finite or (d is not None and not d.finite)
        rows.append((f"s{site.order}", "bad" if bad else "", cells))
    return table("Sites", "sites", heads, rows)


def _weights(shown: Contents) -> str:
    trace = shown.trace
    if not trace.weights:
        return ""
    learning = shown.learning
    heads = [
        ("parameter", ""), ("shape", ""), ("trained", ""), ("norm", "n"), ("rms", "n"),
        ("gradient norm", "n"), ("gradient / weight", "n"), ("learning share of layer", "n"),
        ("update / weight of layer", "n"),
    ]  # fmt: skip
    rows = []
    for i, weight in enumerate(trace.weights.values()):
        relative = (
            weight.gradient / weight.norm if weight.gradient is not None and weight.norm else None
        )
        cells = [
            cell(weight.name, code=True),
            cell(" × ".join(map(str, weight.shape))),
            cell("yes" if weight.trained else "frozen"),
            number(weight.norm),
            number(weight.rms),
            number(weight.gradient, "none" if weight.gradient is None else None),
            number(relative),
            share(learning.share.get(weight.module) if learning else None),
            number(learning.update_ratio.get(weight.module) if learning else None),
        ]
        rows.append((f"w{i}", "" if weight.finite else "bad", cells))
    return table("Parameters", "weights", heads, rows)


def _rules(shown: Contents) -> str:
    heads = [("rule", ""), ("title", ""), ("outcome", ""), ("reason", "")]
    rows = [
        (
            f"r-{e(result.code)}",
            "",
            [
                cell(result.code, code=True),
                cell(result.title),
                f'<td><span class="word {e(result.outcome)}">{e(result.outcome)}</span></td>',
                f'<td class="wrap">{e(words.clean(result.reason))}</td>',
            ],
        )
        for result in shown.results
    ]
    return table("Rules", "rules", heads, rows)
