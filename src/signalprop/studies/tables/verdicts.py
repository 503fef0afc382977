"""Verdicts on self-normalizing networks on real tables, from the measured values."""

from __future__ import annotations

from signalprop.studies.frame import Claim, Values, Verdict
from signalprop.studies.tables.auc import PULSARS, TOXICITY
from signalprop.studies.tables.models import NETWORKS, SELU
from signalprop.studies.tables.search import FOREST, METHODS, SVM

#: below this p (two-sided, Wilcoxon over pairs) a difference counts
P = 0.05
#: a published AUC is reached if the mean is no lower than it by more than this; for HTRU2 it is the
#: paper's standard deviation over folds
CLOSE = 0.010
OTHERS = [name for name in NETWORKS if name != SELU]
HOLDS: Verdict = "holds"
PART: Verdict = "holds in part"
NOT: Verdict = "does not hold as printed"


def where(v: Values) -> str:
    """The tables, in words."""
    number = int(v["tables: number"])
    if v["tables: of UCI-121"]:
        return f"{number} UCI sets of {v['tables: fewest rows']:,.0f} rows and more"
    return f"scikit-learn's {number} bundled tables, which are not UCI-121"


def pairs(v: Values, names: list[str]) -> str:
    """Wins, losses and p against each."""
    return "; ".join(
        f"{name}: ahead on {v[f'tables, {name}: SELU is ahead on']:.0f}, behind on "
        f"{v[f'tables, {name}: SELU is behind on']:.0f}, p = "
        f"{v[f'tables, {name}: p against SELU']:.2g}"
        for name in names
    )


def among_networks(v: Values) -> Claim:
    """The paper's claim about feed-forward networks."""
    rank = {name: v[f"tables, {name}: mean rank among networks"] for name in NETWORKS}
    apart = {name: v[f"tables, {name}: p against SELU"] < P for name in OTHERS}
    first = rank[SELU] < min(rank[name] for name in OTHERS)
    beaten = [name for name in OTHERS if apart[name] and rank[name] > rank[SELU]]
    lost = [name for name in OTHERS if apart[name] and rank[name] < rank[SELU]]
    if first and len(beaten) == len(OTHERS):
        verdict = HOLDS
    else:
        verdict = PART if (first or beaten) and not lost else NOT
    order = sorted(rank, key=lambda name: rank[name])
    least = 2.0 ** (1 - int(v["tables: number"]))
    few = f" So few tables cannot give a p below {least:.2g}." if least > P else ""
    return Claim(
        f"self-normalizing networks outperform the five other networks ({where(v)})",
        verdict,
        "Mean rank among six: " + ", ".join(f"{name} {rank[name]:.2f}" for name in order)
        + f". SELU against {pairs(v, OTHERS)}.{few}",
        "" if verdict == HOLDS else
        f"Significantly ahead of {listed(beaten)}, significantly behind {listed(lost)} "
        f"(p < {P:g}); first is {order[0]}. Holds would need the best mean rank and p < {P:g} "
        "against each.",
    )  # fmt: skip


def against_classical(v: Values) -> Claim:
    """The paper's claim about random forests and SVMs on its larger sets."""
    rank = {name: v[f"tables, {name}: mean rank"] for name in (SELU, SVM, FOREST)}
    passed = [name for name in (SVM, FOREST) if rank[SELU] < rank[name]]
    verdict = HOLDS if len(passed) == 2 else PART if passed else NOT
    return Claim(
        f"they rank before SVM and random forest on larger tables ({where(v)})",
        verdict,
        f"Mean rank among all {len(METHODS)} methods: "
        + ", ".join(f"{name} {value:.2f}" for name, value in rank.items())
        + f" (the paper, of 24 methods: 5.8, 6.1 and 6.6). SELU against {pairs(v, [SVM, FOREST])}.",
        "" if verdict == HOLDS else f"Before {listed(passed)} only, with this search and these "
        "sizes." if passed else "Behind both, with this search and these sizes.",
    )  # fmt: skip


def reaches(v: Values, title: str, published: float, more: str) -> Claim:
    """Whether a published AUC is reached."""
    mean, spread = v[f"{title}, {SELU}: AUC"], v[f"{title}, {SELU}: spread"]
    reached = mean >= published - CLOSE
    return Claim(
        f"{title}: a mean AUC of {published:.3f}",
        HOLDS if reached else NOT,
        f"SELU: {mean:.4f} (standard deviation over splits {spread:.4f}); reached means no more "
        f"than {CLOSE:g} below.{more}",
        "" if reached else f"{mean:.4f} with what was run here.",
    )


def ahead(v: Values, title: str, names: list[str]) -> Claim:
    """Whether SELU has the best AUC of all, by more than chance."""
    auc = {name: v[f"{title}, {name}: AUC"] for name in (SELU, *names)}
    better = [name for name in names if auc[name] > auc[SELU]]
    apart = [name for name in names if v[f"{title}, {name}: p against SELU"] < P]
    surely = [name for name in better if name in apart]
    beaten = [name for name in apart if name not in better]
    if len(beaten) == len(names):
        verdict = HOLDS
    else:
        verdict = PART if (not better or beaten) and not surely else NOT
    order = sorted(auc, key=lambda name: -auc[name])
    return Claim(
        f"{title}: better than the other methods",
        verdict,
        "Mean AUC: " + ", ".join(f"{name} {auc[name]:.4f}" for name in order) + ".",
        "" if verdict == HOLDS else f"A higher mean: {listed(better)} (with p < {P:g}: "
        f"{listed(surely)}). SELU is ahead with p < {P:g} of: {listed(beaten)}.",
    )  # fmt: skip


def listed(names: list[str]) -> str:
    """Names as people list them."""
    parts = [", ".join(names[:-1]), *names[-1:]]
    return " and ".join(part for part in parts if part) or "none"


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts on what was run; what was not run is not judged."""
    claims = [among_networks(v), against_classical(v)]
    if f"HTRU2, {SELU}: AUC" in v:
        others = [name for name in METHODS if name != SELU]
        claims += [reaches(v, "HTRU2", PULSARS, ""), ahead(v, "HTRU2", others)]
    random = "Tox21, random splits"
    if f"{random}, {SELU}: AUC" in v:
        apart = v.get(f"Tox21, scaffold split, {SELU}: AUC")
        more = f" With scaffolds kept apart: {apart:.4f}." if apart is not None else ""
        more += " The published value is for the challenge's own split and descriptors."
        others = [*OTHERS, FOREST]
        claims += [reaches(v, random, TOXICITY, more), ahead(v, random, others)]
    return tuple(claims)
