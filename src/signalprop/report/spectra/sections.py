"""The page of spectra: the whole in words, its numbers, figures, and a table of the blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from signalprop.jacobian.spectra import BlockSpectrum, Spectra
from signalprop.report import words
from signalprop.report.spectra import said
from signalprop.report.spectra.along import along
from signalprop.report.spectra.branches import branches, violations
from signalprop.report.spectra.ends import ends
from signalprop.report.spectra.profile import profile
from signalprop.report.spectra.said import least, middle
from signalprop.report.tables import cell, e, number, table

if TYPE_CHECKING:
    import plotly.graph_objects as go


def heading(spectra: Spectra) -> str:
    """What was looked at, in a few words."""
    s = spectra.between
    model, wrt, of = (words.shorten(words.clean(name), 60) for name in (spectra.model, s.wrt, s.of))
    return f"Jacobians of {model}: {wrt} to {of}"


def blocks(spectra: Spectra) -> list[go.Figure | str]:
    """The page in reading order.

    Args:
        spectra: what was measured.

    Returns:
        Blocks for `html.page`.
    """
    result: list[go.Figure | str] = [_verdict(spectra), _numbers(spectra)]
    result += ["<h2>From end to end</h2>", f"<p class='soft'>{_how_far(spectra)}</p>"]
    result.append(ends(spectra))
    deep = spectra.deep
    if spectra.blocks:
        result += ["<h2>Block by block</h2>", f"<p class='soft'>{_how_blocks(spectra)}</p>"]
        result.append(along(spectra.blocks))
    ways = profile(deep) if deep is not None else None
    if ways is not None:
        result += [
            "<h2>How every direction fares</h2>",
            "<p class='soft'>A direction that keeps its length stays at 0. Where the lines part, "
            "the network begins to prefer some directions to others.</p>",
            ways,
        ]
    figure = branches(spectra.blocks)
    certificate = said.certificate_sentence(spectra)
    if figure is not None or certificate:
        result.append("<h2>Residual blocks, I + X</h2>")
    if certificate:
        result.append(f'<div class="card"><p>{e(certificate)}</p>{_broken(spectra)}</div>')
    if figure is not None:
        result.append(figure)
    if spectra.blocks:
        result.append(_table(spectra))
    return result


def _verdict(spectra: Spectra) -> str:
    facts = "".join(f"<div><dt>{e(k)}</dt><dd>{e(v)}</dd></div>" for k, v in said.about(spectra))
    notes = [*said.skipped_sentences(spectra), *(words.clean(note) for note in spectra.notes)]
    listed = "".join(f"<li>{e(note)}</li>" for note in notes)
    return (
        '<section class="verdict seen" aria-label="Verdict"><span class="word seen">measured</span>'
        f'<p>{e(said.headline(spectra))}</p></section><dl class="facts">{facts}</dl>'
        + (f'<ul class="soft notes">{listed}</ul>' if listed else "")
    )


def _numbers(spectra: Spectra) -> str:
    rows = "".join(
        f'<tr><th scope="row">{e(fact.name)}</th><td class="n"><b>{e(fact.value)}</b></td>'
        f"<td>{e(fact.spread)}</td><td class='wrap soft'>{e(fact.meaning)}</td></tr>"
        for fact in said.facts(spectra)
    )
    over = "over the samples" if spectra.samples > 1 else ""
    return (
        '<div class="table numbers" tabindex="0" role="region" aria-label="Numbers"><table><thead>'
        f'<tr><th scope="col">of J</th><th scope="col" class="n">value</th><th scope="col">{over}'
        '</th><th scope="col"></th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _how_far(spectra: Spectra) -> str:
    deep = spectra.deep
    text = e(f"Measured: {words.clean(spectra.between.method)}.")
    if deep is not None and deep.log_values.shape[1]:
        text += f" {e(said.deep_sentence(deep))} Sweeps see what rounding hides from plain "
        text += "floating point."
    return text


def _how_blocks(spectra: Spectra) -> str:
    text = "A block that keeps the length of every direction has all its singular values at 1. "
    part = [b for b in spectra.blocks if not said.known(b.spectrum)]
    if part:
        text += f"Of {len(part):,} of {len(spectra.blocks):,} blocks only the largest are known. "
    return e(text + "Drag to zoom, double-click to go back; hover for all numbers.")


def _broken(spectra: Spectra) -> str:
    pairs = [violations(block) for block in spectra.blocks if block.branch is not None]
    failed, of = sum(a for a, _ in pairs), sum(b for _, b in pairs)
    if not failed:
        return ""
    text = f"The printed bound 1 - s_i(X) <= s_i(I + X) fails for {failed:,} of {of:,} singular "
    return f"<p>{e(text)}values; the one with the right index, 1 - s_(n-i+1)(X), holds.</p>"


def _table(spectra: Spectra) -> str:
    residual = any(block.residual for block in spectra.blocks)
    heads = [
        ("block", ""), ("from", ""), ("J", "n"), ("known", "n"), ("largest", "n"),
        ("median", "n"), ("smallest", "n"), ("mean square", "n"), ("condition", "n"),
        ("distortion", "n"), ("log-volume", "n"),
        *([("s_1(X)", "n")] if residual else []),
        ("measured by", ""),
    ]  # fmt: skip
    rows = [(f"b{i}", "", _cells(b, residual)) for i, b in enumerate(spectra.blocks)]
    return table("Blocks", "blocks", heads, rows)


def _cells(block: BlockSpectrum, residual: bool) -> list[str]:
    s = block.spectrum
    volume = middle(s.log_volume)
    known = s.values.shape[1]
    return [
        cell(block.end, code=True),
        cell(block.start, code=True),
        number(float(s.rows * s.columns), f"{s.rows:,} × {s.columns:,}"),
        number(float(known), "all" if s.whole else f"{known:,}"),
        number(middle(s.largest)),
        number(middle(said.sure(s).ravel()) if s.whole else None),
        number(middle(least(s))),
        number(middle(s.mean_square)),
        number(middle(s.condition)),
        number(middle(s.distortion)),
        number(volume, "" if volume is None else words.nats(volume)),
        *([number(middle(block.branch.largest) if block.branch else None)] if residual else []),
        cell(s.method),
    ]
