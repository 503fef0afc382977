"""From findings to candidates."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from signalprop.cures.cure import Cure
from signalprop.diagnosis import verdict
from signalprop.diagnosis.finding import Finding

Candidate = tuple[Cure, ...]

#: cures of which one undoes or repeats what another does: in a combination the first one stands
FAMILIES: tuple[frozenset[str], ...] = tuple(
    frozenset(names.split())
    for names in (
        # weights
        "he-init glorot-init lecun-init orthogonal-init delta-orthogonal-init critical-init lsuv "
        "smaller-init reinitialise shaped-activation self-normalize add-activations",
        # activations
        "add-activations swap-activation leaky-activation shaped-activation self-normalize",
        # skips, which shaped and self-normalising networks do without
        "residual highway shaped-activation self-normalize",
        # normalisation, which self-normalising networks do without
        "normalise self-normalize",
        # branches of residual blocks
        "residual-scaling rezero",
        # recurrent layers, and how they begin
        "lstm gru identity-recurrent",
        "identity-recurrent orthogonal-recurrent",
        "chrono forget-bias identity-recurrent",
        # the end of the network, and its loss
        "use-cross-entropy use-bce-with-logits use-mse",
        "remove-softmax remove-sigmoid use-log-softmax remove-output-activation add-sigmoid",
        # training
        "float32 float32-weights",
        "lower-learning-rate raise-learning-rate",
    )
)

#: tried where the loss does not fall for no reason that shows at the start: how large the steps are
#: is what training hangs on most (Goodfellow, Bengio & Courville 2016, section 11.4.1)
GENERAL = ("adam", "lower-learning-rate", "raise-learning-rate")


def prescribe(
    findings: Sequence[Finding], catalogue: Mapping[str, Cure], *, most: int = 8
) -> list[Candidate]:
    """Candidates for what was found, the likeliest first.

    Where there are several findings, first all of their first cures together, those of the issues
    and then those of all; then single cures: the first of every finding, then the second of every
    finding, and so on. Issues come before tips, causes before consequences.

    Args:
        findings: of a diagnosis.
        catalogue: cures by name, in the order in which they are applied together.
        most: how many candidates.

    Returns:
        Candidates, each a tuple of cures.
    """
    ordered = sorted(findings, key=lambda f: (f.severity != "issue", verdict.rank(f)))
    named = [[catalogue[name] for name in f.cures if name in catalogue] for f in ordered]
    ranks = itertools.chain.from_iterable(itertools.zip_longest(*named))
    single = dict.fromkeys(cure for cure in ranks if cure is not None)
    candidates: list[Candidate] = [(cure,) for cure in single]
    first = [(cures[0], f.severity) for cures, f in zip(named, ordered, strict=True) if cures]
    issues = together([cure for cure, severity in first if severity == "issue"], catalogue)
    everything = together([cure for cure, _ in first], catalogue)
    combined = dict.fromkeys(c for c in (issues, everything) if len(c) > 1)
    return [*combined, *candidates][:most]


def together(cures: Sequence[Cure], catalogue: Mapping[str, Cure]) -> Candidate:
    """Cures in the order in which they are applied, each once, and of each family the first.

    Args:
        cures: the most important first.
        catalogue: cures by name, in the order in which they are applied.

    Returns:
        The candidate.
    """
    kept: list[Cure] = []
    for one in cures:
        taken = {other.name for other in kept}
        if one.name not in taken and not any(one.name in f and taken & f for f in FAMILIES):
            kept.append(one)
    places = {name: i for i, name in enumerate(catalogue)}
    return tuple(sorted(kept, key=lambda c: places.get(c.name, len(places))))
