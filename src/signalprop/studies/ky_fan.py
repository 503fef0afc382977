"""ky-fan: how far a branch X moves the singular values of J = I + X from one.

Singular values in decreasing order, for all n x n matrices s_{i+j-1}(A + B) <= s_i(A) + s_j(B) (Fan
1951; Horn & Johnson, Topics in Matrix Analysis, 3.3.16). So

    s_i(I + X) <= s_i(X) + s_1(I)                          the upper half, as printed
    1 = s_n(I) <= s_i(I + X) + s_{n-i+1}(-X)               the lower half: index n-i+1, not i

The printed lower half, 1 - s_i(X), is never more than that for i <= (n+1)/2, so there it holds;
beyond it may fail, and does where X takes something away. Of a product J = J_L ... J_1 follows the
certificate prod(1 - s_1(X_l)) <= s_n(J) <= s_1(J) <= prod(1 + s_1(X_l)), where all s_1(X_l) < 1.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from signalprop.jacobian.bounds import ky_fan_band, printed_band
from signalprop.jacobian.spectra import Spectra
from signalprop.jacobian.spectrum import spectrum
from signalprop.studies.cured import STACKS, Stack, scaled, train
from signalprop.studies.data import Digits, digits
from signalprop.studies.frame import (
    Claim,
    Measured,
    Measurement,
    Series,
    Setup,
    Study,
    Table,
    Values,
)

#: a bound counts as violated beyond this, as a share of 1 + s_1(X): float64, SVDs of a few hundred
ROUNDING = 1e-12
STATES = ("start", "trained")


@dataclass
class Count:
    """How often bounds were tested and violated, and by how much at worst.

    Attributes:
        tested: singular values.
        upper: s_i(I + X) <= 1 + s_i(X) violated.
        printed: 1 - s_i(X) <= s_i(I + X) violated.
        first_half: the same, for i <= (n + 1) / 2.
        correct: 1 - s_{n-i+1}(X) <= s_i(I + X) violated.
        worst_upper: largest s_i(I + X) - 1 - s_i(X), over 1 + s_1(X).
        worst_printed: largest 1 - s_i(X) - s_i(I + X).
        worst_correct: largest 1 - s_{n-i+1}(X) - s_i(I + X), over 1 + s_1(X).
    """

    tested: int = 0
    upper: int = 0
    printed: int = 0
    first_half: int = 0
    correct: int = 0
    worst_upper: float = -math.inf
    worst_printed: float = -math.inf
    worst_correct: float = -math.inf

    def add(self, J: np.ndarray, X: np.ndarray) -> np.ndarray:
        """Count s_i(I + X) and s_i(X), (matrices, n), largest first.

        Returns:
            Where the printed lower half is violated, (matrices, n).
        """
        n, scale = J.shape[1], 1 + X[:, :1]
        band = ky_fan_band(X)
        upper, printed, correct = J - band.high, printed_band(X).low - J, band.low - J
        broken = printed > ROUNDING * scale
        self.tested += J.size
        self.upper += int((upper > ROUNDING * scale).sum())
        self.printed += int(broken.sum())
        self.first_half += int(broken[:, : (n + 1) // 2].sum())
        self.correct += int((correct > ROUNDING * scale).sum())
        self.worst_upper = max(self.worst_upper, float((upper / scale).max()))
        self.worst_printed = max(self.worst_printed, float(printed.max()))
        self.worst_correct = max(self.worst_correct, float((correct / scale).max()))
        return broken


def of_matrices(X: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """s_i(I + X) and s_i(X) of matrices (..., n, n)."""
    I = torch.eye(X.shape[-1], dtype=X.dtype)
    return torch.linalg.svdvals(I + X).numpy(), torch.linalg.svdvals(X).numpy()


def random_matrices(n: int, copies: int) -> dict[str, Tensor]:
    """Kinds of X, (copies, n, n)."""
    G = torch.randn(copies, n, n, dtype=torch.float64) / math.sqrt(n)
    symmetric = G @ G.mT
    return {
        "Gaussian, s_1 about 0.2": 0.1 * G,
        "Gaussian, s_1 about 2": G,
        "Gaussian, s_1 about 10": 5 * G,
        "positive semidefinite": symmetric,
        "negative semidefinite": -symmetric,
        "rank one": G[..., :1] @ G[:, :1],
    }


def look(net: Stack, found: Digits, samples: int) -> Spectra:
    """sp.spectrum from the first block's input to the last block's output."""
    batch = found.x_test[:samples], found.y_test[:samples]
    last = f"blocks.{len(net.blocks) - 1}.add"
    return spectrum(net, batch, F.cross_entropy, of=last, wrt="first", samples=None)


def residual_blocks(seen: Spectra) -> list[tuple[np.ndarray, np.ndarray]]:
    """s_i(I + X) and s_i(X) of every residual block, (samples, n)."""
    found = [(block.spectrum, block.branch) for block in seen.blocks]
    return [(J.values, X.values) for J, X in found if X is not None and J.whole and X.whole]


def certified(seen: Spectra) -> dict[str, float]:
    """The certificate and what it is about, ln, medians over samples; and its worst violation."""
    assert seen.deep is not None
    assert seen.certificate is not None
    blocks = [J for J, _ in residual_blocks(seen)]
    low, high = seen.certificate.log_low, seen.certificate.log_high
    least, most = seen.deep.log_values[:, -1], seen.deep.log_values[:, 0]
    chain = {
        "low": low,
        "blocks low": np.sum([np.log(J[:, -1]) for J in blocks], axis=0),
        "least": least,
        "most": most,
        "blocks high": np.sum([np.log(J[:, 0]) for J in blocks], axis=0),
        "high": high,
    }
    lines = list(chain.values())
    off = max(float((lines[k] - lines[k + 1]).max()) for k in range(len(lines) - 1))
    silent = float(np.isneginf(low).mean())
    return {k: float(np.median(v)) for k, v in chain.items()} | {"off": off, "silent": silent}


def measure(setup: Setup) -> Measured:
    """Run it."""
    samples, steps, features, L = (2, 30, 128, 4) if setup.quick else (6, 200, 256, 6)
    width, depths = (32, (2, 4, 8, 16)) if setup.quick else (64, (2, 4, 8, 16, 32))
    sizes = (2, 8, 32) if setup.quick else (2, 8, 32, 128)
    found = digits(3_000 if setup.quick else 12_000)
    numbers: list[Measurement] = []
    series: list[Series] = []
    rows: list[tuple[str | float | int, ...]] = []

    def told(name: str, count: Count) -> None:
        facts = dataclasses.asdict(count)
        numbers.extend(Measurement(f"{name}: {k}", v, tabled=True) for k, v in facts.items())
        share, by = count.printed / count.tested, max(count.worst_printed, 0.0)
        rows.append((name, count.tested, count.upper, count.printed, share, by, count.first_half,
                     count.correct))  # fmt: skip

    setup.at(0.0, "the example, and random matrices")
    J, X = of_matrices(torch.diag(torch.tensor([-1.0, 0.0], dtype=torch.float64)))
    numbers += [
        Measurement("example: s_2(I + X)", float(J[1]), "", 0.0, "X = diag(-1, 0)"),
        Measurement("example: 1 - s_2(X)", float(1 - X[1]), "", 1.0, "printed as a lower bound"),
        Measurement("example: 1 - s_1(X)", float(1 - X[0]), "", 0.0, "the lower bound that holds"),
    ]
    random, real = Count(), Count()
    kinds: dict[str, Count] = {}
    for n in sizes:
        for name, matrices in random_matrices(n, 50).items():
            for count in (kinds.setdefault(name, Count()), random):
                count.add(*of_matrices(matrices))
    for name, count in kinds.items():
        told(name, count)
    for done, (name, make) in enumerate(STACKS.items()):
        setup.at(0.1 + 0.6 * done / len(STACKS), f"{name}: {L} residual blocks")
        net = make(found.pixels, L, features)
        for state in STATES:
            trained = state == "trained"
            accuracy = train(net, found, steps, setup.seed) if trained else math.nan
            blocks = residual_blocks(look(net, found, samples))
            count, broken = Count(), list[np.ndarray]()
            for values in blocks:
                real.add(*values)
                broken.append(count.add(*values))
            told(f"{name}, {state}", count)
            if trained:
                at = f"{name}, trained: accuracy"
                numbers.append(Measurement(at, accuracy, "", None, f"{steps} steps"))
                where = np.concatenate(broken).mean(axis=0).reshape(16, -1).mean(axis=1)
                positions = tuple((k + 0.5) / 16 for k in range(16))
                series.append(Series("Where the printed lower bound fails, trained blocks", name,
                                     positions, tuple(map(float, where)), "i / n",
                                     "share of values below it"))  # fmt: skip
            if trained and done == 0:
                series += one_block(*blocks[L // 2])
    for name, count in (("random matrices", random), ("real blocks", real)):
        numbers += [
            Measurement(f"{name}: tested", count.tested, "singular values"),
            Measurement(f"{name}: upper violated", count.upper, "", 0.0),
            Measurement(f"{name}: printed lower violated", count.printed, "", 0.0),
            Measurement(f"{name}: the same, i <= (n + 1) / 2", count.first_half, "", 0.0),
            Measurement(f"{name}: correct lower violated", count.correct, "", 0.0),
            Measurement(f"{name}: closest to a violation",
                        max(count.worst_upper, count.worst_correct), "", None,
                        f"of 1 + s_1(X), upper and correct lower; rounding: {ROUNDING:.0e}"),
        ]  # fmt: skip
    table, curves = certificates(setup, found, width, depths, samples, numbers)
    columns = ("X", "values", "upper", "printed lower", "share", "by up to", "i <= (n+1)/2",
               "correct lower")  # fmt: skip
    settings = {
        "blocks": L, "features": features, "samples": samples, "training steps": steps,
        "random matrices": f"50 of each kind and n = {', '.join(map(str, sizes))}",
        "certificate: width": width, "certificate: blocks": depths,
        "violated": f"by more than {ROUNDING:.0e} of 1 + s_1(X)",
    }  # fmt: skip
    tables = (Table("How often the bounds on s_i(I + X) are violated", columns, tuple(rows)), table)
    return Measured(tuple(numbers), found.name, settings, (*series, *curves), tables)


def one_block(J: np.ndarray, X: np.ndarray) -> list[Series]:
    """All values of one block and one sample between their bounds."""
    J, X, n = J[0], X[0], J.shape[1]
    pick = np.unique(np.linspace(0, n - 1, 33).astype(int))
    band = ky_fan_band(X)
    lines = {
        "s_i(I + X)": J, "1 + s_i(X)": band.high,
        "1 - s_i(X), as printed": printed_band(X).low, "1 - s_(n-i+1)(X)": band.low,
    }  # fmt: skip
    return [
        Series("One trained block of an MLP", name, tuple(map(float, pick + 1)),
               tuple(map(float, line[pick])), "i", "singular value, and its bounds")
        for name, line in lines.items()
    ]  # fmt: skip


def certificates(
    setup: Setup,
    found: Digits,
    width: int,
    depths: tuple[int, ...],
    samples: int,
    numbers: list[Measurement],
) -> tuple[Table, list[Series]]:
    """The certificate of residual nets over depth, branches divided by L and by sqrt(L)."""
    rows: list[tuple[str | float | int, ...]] = []
    seen: dict[str, list[dict[str, float]]] = {"1/L": [], "1/sqrt(L)": []}
    for done, L in enumerate(depths):
        setup.at(0.7 + 0.3 * done / len(depths), f"certificate of {L} residual blocks")
        for name, scale in (("1/L", 1 / L), ("1/sqrt(L)", L**-0.5)):
            c = certified(look(scaled(found.pixels, L, width, scale), found, samples))
            seen[name].append(c)
            parts = ("low", "blocks low", "least", "most", "blocks high", "high")
            rows.append((f"branches x {name}", L, *(c[part] for part in parts)))
    for name, each in seen.items():
        numbers += [
            Measurement(f"certificate, {name}: {k}", v, "nats", None, f"{depths[-1]} blocks", True)
            for k, v in each[-1].items()
            if k not in ("off", "silent")
        ]
        silent = sum(c["silent"] for c in each) / len(each)
        numbers.append(Measurement(f"certificate, {name}: without a lower bound", silent, "of all",
                                   None, "some branch has s_1(X) >= 1"))  # fmt: skip
    off = max(c["off"] for each in seen.values() for c in each)
    numbers.append(Measurement("certificate: worst violation", off, "nats", 0.0, "below 0: none"))
    names = {"low": "ln prod(1 - s_1(X_l))", "least": "ln s_n(J)", "most": "ln s_1(J)",
             "high": "ln prod(1 + s_1(X_l))"}  # fmt: skip
    curves = [
        Series("The certificate over depth, branches divided by L", label,
               tuple(map(float, depths)), tuple(c[key] for c in seen["1/L"]), "blocks L", "nats")
        for key, label in names.items()
    ]  # fmt: skip
    columns = ("net", "L", "ln prod(1 - s_1(X))", "ln prod s_n(I + X)", "ln s_n(J)", "ln s_1(J)",
               "ln prod s_1(I + X)", "ln prod(1 + s_1(X))")  # fmt: skip
    return Table("Certificate of a product of blocks", columns, tuple(rows)), curves


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts from the measured values."""
    kinds = ("random matrices", "real blocks")
    tested, upper, printed, half, correct = (
        [v[f"{kind}: {what}"] for kind in kinds]
        for what in ("tested", "upper violated", "printed lower violated",
                     "the same, i <= (n + 1) / 2", "correct lower violated")
    )  # fmt: skip
    example = v["example: 1 - s_2(X)"] > v["example: s_2(I + X)"]
    broken = example or sum(printed) > 0
    right = sum(correct) == 0 and v["example: 1 - s_1(X)"] <= v["example: s_2(I + X)"]
    worst = max(v[f"{name}, {state}: worst_printed"] for name in STACKS for state in STATES)
    low, least, most, high = (v[f"certificate, 1/L: {k}"] for k in ("low", "least", "most", "high"))
    silent = v["certificate, 1/sqrt(L): without a lower bound"]
    kept = v["certificate: worst violation"] <= ROUNDING
    return (
        Claim(
            "s_i(I + X) <= 1 + s_i(X)",
            "holds" if sum(upper) == 0 else "does not hold as printed",
            f"Violated by {sum(upper):.0f} of {tested[0]:,.0f} singular values of random matrices "
            f"and {tested[1]:,.0f} of real residual blocks.",
            "" if sum(upper) == 0 else "It is a theorem of Fan: look for a mistake.",
        ),
        Claim(
            "1 - s_i(X) <= s_i(I + X), both in decreasing order",
            "does not hold as printed" if broken else "holds",
            f"X = diag(-1, 0) has s_2(I + X) = {v['example: s_2(I + X)']:.0f}, and 1 - s_2(X) = "
            f"{v['example: 1 - s_2(X)']:.0f}. It is violated by {printed[0]:,.0f} of "
            f"{tested[0]:,.0f} singular values of random matrices ({printed[0] / tested[0]:.0%}) "
            f"and {printed[1]:,.0f} of {tested[1]:,.0f} of real residual blocks "
            f"({printed[1] / tested[1]:.0%}), there by up to {worst:.2f}; "
            f"{sum(half):.0f} of these have i <= (n + 1) / 2, where it is true.",
            (
                "1 - s_{n-i+1}(X) <= s_i(I + X) <= 1 + s_i(X): the lower half of that is violated "
                f"by none of the same {sum(tested):,.0f}."
                if right
                else f"1 - s_{{n-i+1}}(X) <= s_i(I + X) is violated {sum(correct):.0f} times: it "
                "is a theorem, so look for a mistake."
            )
            if broken
            else "",
        ),
        Claim(
            "so prod(1 - s_1(X_l)) <= s_n(J) <= s_1(J) <= prod(1 + s_1(X_l)) over blocks",
            "holds" if kept else "does not hold as printed",
            (
                "It is never violated where all s_1(X_l) < 1. With branches divided by L it "
                f"promises {low:.2f} to {high:.2f} nats where ln s lies within {least:.2f} to "
                f"{most:.2f}: it is loose by {least - low:.1f} and {high - most:.1f} nats. (Where "
                "norms are c / L, the upper bound stays below e^c at any depth.) With branches "
                f"divided by sqrt(L) there is no lower bound for {silent:.0%} of the cases, and "
                f"the upper is {v['certificate, 1/sqrt(L): high']:.1f} nats where "
                f"{v['certificate, 1/sqrt(L): most']:.1f} is measured."
            )
            if kept
            else f"It is violated by {v['certificate: worst violation']:.1e} nats.",
            "" if kept else "It follows from the two bounds: look for a mistake.",
        ),
    )


STUDY = Study(
    name="ky-fan",
    title="Ky Fan's bounds on the singular values of I + X",
    statement="1 - s_i(X) <= s_i(I + X) <= 1 + s_i(X), singular values in decreasing order",
    source="Lecture by Sepp Hochreiter; Fan 1951, Proc. Natl. Acad. Sci. 37; Horn & Johnson 1991, "
    "Topics in Matrix Analysis, 3.3; He et al. 2016 (residual nets)",
    function=measure,
    judge=judge,
)
