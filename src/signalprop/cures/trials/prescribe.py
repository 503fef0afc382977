"""From findings to candidates."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from signalprop.cures.cure import Cure
from signalprop.diagnosis import verdict
from signalprop.diagnosis.finding import Finding

Candidate = tuple[Cure, ...]


def prescribe(
    findings: Sequence[Finding], catalogue: Mapping[str, Cure], *, most: int = 8
) -> list[Candidate]:
    """Candidates for what was found, the likeliest first.

    Where there are several findings, first all of their first cures together; then single cures:
    the first of every finding, then the second of every finding, and so on. Issues come before
    tips, causes before consequences.

    Args:
        findings: of a diagnosis.
        catalogue: cures by name, in the order in which they are applied together.
        most: how many candidates.

    Returns:
        Candidates, each a tuple of cures.
    """
    ordered = sorted(findings, key=lambda f: (f.severity != "issue", verdict.rank(f)))
    named = [[catalogue[name] for name in f.cures if name in catalogue] for f in ordered]
    single: list[Cure] = []
    for row in itertools.zip_longest(*named):
        single += [cure for cure in row if cure is not None and cure not in single]
    candidates: list[Candidate] = [(cure,) for cure in single]
    first = [cures[0] for cures, f in zip(named, ordered, strict=True)
             if cures and f.severity == "issue"]  # fmt: skip
    if len(set(first)) > 1:
        candidates.insert(0, together(first, catalogue))
    return candidates[:most]


def together(cures: Sequence[Cure], catalogue: Mapping[str, Cure]) -> Candidate:
    """Cures in the order in which they are applied, each once."""
    places = {name: i for i, name in enumerate(catalogue)}
    return tuple(sorted(dict.fromkeys(cures), key=lambda c: places.get(c.name, len(places))))
