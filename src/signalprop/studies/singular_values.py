"""singular-values: is J = I + X near the identity, block by block and end to end?

A block takes a state to the next one; its Jacobian J_l is taken exactly, per sample, and all its
singular values. End to end J = J_L ... J_1 has values too far apart for one matrix; their
logarithms come from sweeps through the blocks (`jacobian/product.py`). Of J three things are read:

    signal    ln(||J||_F / sqrt(n)), what a random error signal is multiplied by, root mean square
    volume    ln|det J| = sum ln s_i, the same as sum_l ln|det J_l|
    angles    by how much two random orthogonal directions v, w are turned: the angle of Jv and Jw

All nets have the same width and are measured on the same images. An LSTM reads an image in as many
pieces as it has steps; its state is (h, c), and c alone, h held fixed, is the carousel, whose
Jacobian is diag(f), or 1 without a forget gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from signalprop.capture.observe import trace
from signalprop.jacobian.operator import Dense
from signalprop.jacobian.product import log_spectrum
from signalprop.jacobian.spectrum import spectrum
from signalprop.studies.cured import EQUAL, LSTM, NETS, Net, train
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
    Verdict,
)

#: near one: between 1 / NEAR and NEAR
NEAR = 1.5
#: shares of the singular values that a range leaves out at either end
TAIL = 0.05
#: vanishes: loses so many nats in so many blocks (nats as in rule SP101), at its mean rate
VANISHED, BLOCKS = -7.0, 64
#: volume is conserved where a side of a cube changes by less than this share on average
KEPT = 0.1
#: an angle is kept where it changes by less than this many degrees
DEGREES = 1.0
#: two ways to the same logarithms, relative: what rounding leaves of a block's smallest value
ROUNDING = 1e-4
STATES = ("start", "trained")
CELL = ", c alone"


#: what the lecture's statement is about
CURED = tuple(
    case
    for name in NETS
    for case in ((name, name + CELL) if name.startswith(LSTM) else (name,))
    if name.startswith(("highway", "residual", LSTM))
)
#: in figures: as many as can be told apart
SHOWN = ("tanh", "ReLU", "highway, b = -2", "residual A / sqrt(L)", "residual B / sqrt(L)",
         "LSTM, b_f = 1")  # fmt: skip


def jacobians(net: Net, x: Tensor) -> Tensor:
    """J_l of every block and sample, (blocks, samples, n, n)."""
    found = [(block, s.detach(), piece) for block, s, piece in net.states(x)[:-1]]
    starts = [s.requires_grad_() for _, s, _ in found]
    ends = [block(s, piece) for block, s, piece in found]
    # no end hangs on another block's start, so one batched pass serves all blocks
    rows = torch.eye(net.width, dtype=x.dtype)[:, None].expand(-1, len(x), -1)
    grads = torch.autograd.grad(ends, starts, [rows] * len(ends), is_grads_batched=True)
    return torch.stack(grads).transpose(1, 2)


def turns(P: Tensor) -> float:
    """Mean change, in degrees, of the right angle of random orthogonal pairs, seen through P."""
    n, order = P.shape[-1], torch.Generator().manual_seed(1)
    pairs = torch.linalg.qr(torch.randn(50, n, 2, generator=order, dtype=P.dtype))[0]
    seen = F.normalize(torch.einsum("bij,pjk->bpik", P, pairs), dim=2)
    cosine = (seen[..., 0] * seen[..., 1]).sum(-1)
    return float(torch.asin(cosine.clamp(-1, 1)).abs().rad2deg().mean())


@dataclass(frozen=True)
class Seen:
    """What the Jacobians of one net are.

    Attributes:
        block: all singular values of all blocks, ascending, zero where lost in rounding.
        numbers: name -> value, of blocks and of the whole net.
        logs: ln of the singular values end to end, (samples, n), largest first.
        over: name -> value at every depth asked for.
        off: largest disagreement of sum ln s_i with sum_l ln|det J_l|, relative.
    """

    block: Tensor
    numbers: dict[str, float]
    logs: Tensor
    over: dict[str, list[float]]
    off: float


def at(values: Tensor, share: float) -> float:
    """The value below which that share lies; one that is there, as some may be infinite."""
    return float(torch.quantile(values.flatten(), share, interpolation="lower"))


def look(Js: Tensor, depths: tuple[int, ...]) -> Seen:
    """Measure blocks (blocks, samples, n, n) and their products up to each depth."""
    n = Js.shape[-1]
    s = torch.linalg.svdvals(Js)
    s = torch.where(s > n * torch.finfo(s.dtype).eps * s[..., :1], s, 0.0)
    block = s.flatten().sort().values
    volumes = s.log().sum(-1)  # (blocks, samples)
    over: dict[str, list[float]] = {"signal": [], "volume": [], "spread": [], "turn": []}
    P = torch.eye(n, dtype=Js.dtype).expand(Js.shape[1], -1, -1)
    logs, off = P[..., 0], 0.0
    for i, J in enumerate(Js, start=1):
        P = J @ P
        P = P / torch.linalg.matrix_norm(P)[:, None, None]
        if i not in depths:
            continue
        logs = log_spectrum([Dense(J) for J in Js[:i]], profile=False).log_values
        ends, whole = logs.sum(1), volumes[:i].sum(0)
        both = torch.isfinite(ends) & torch.isfinite(whole)
        gap = (ends - whole).abs() / whole.abs().clamp_min(1)
        off = max(off, float(torch.where(both, gap, 0.0).max()))
        signal = (torch.logsumexp(2 * logs, 1) - math.log(n)) / 2
        over["signal"].append(float(signal.median()))
        over["volume"].append(float(whole.median()))
        over["spread"].append(at(logs, 0.9) - at(logs, 0.1))
        over["turn"].append(turns(P))
    worst = torch.exp(2 * (logs[:, -1] - logs[:, 0])).median()  # s_n^2 / s_1^2
    return Seen(
        block,
        {
            "low": at(block, TAIL), "middle": at(block, 0.5), "high": at(block, 1 - TAIL),
            "lost": float((block == 0).double().mean()),
            "volume of a block": float(volumes.median()) / n,
            "turn of a block": turns(Js.flatten(0, 1)),
            "end low": at(logs, TAIL), "end middle": at(logs, 0.5), "end high": at(logs, 1 - TAIL),
            "end lost": float((logs == -math.inf).double().mean()),
            "signal": over["signal"][-1], "signal per block": over["signal"][-1] / len(Js),
            "volume": over["volume"][-1],
            "volume per direction": over["volume"][-1] / n,
            "spread": over["spread"][-1], "turn": over["turn"][-1],
            "worst turn": math.degrees(math.asin(float((1 - worst) / (1 + worst)))),
        },
        logs, over, off,
    )  # fmt: skip


def second_opinion(net: Net, found: Digits, samples: int, mine: Tensor) -> float:
    """Largest difference, in nats, to what sp.spectrum says of the same net."""
    batch = found.x_test[:samples], found.y_test[:samples]
    spine = trace(net, batch, F.cross_entropy).spine
    top = [site for site in spine if site.startswith("blocks.")][-1]
    seen = spectrum(net, batch, F.cross_entropy, of=top, wrt="first", samples=None)
    assert seen.deep is not None
    return float((torch.from_numpy(seen.deep.log_values) - mine).abs().max())


def measure(setup: Setup) -> Measured:
    """Run it."""
    depth, width, samples, steps = (16, 32, 4, 40) if setup.quick else (64, 64, 8, 100)
    depths = tuple(2**k for k in range(depth.bit_length()))
    found = digits(3_000 if setup.quick else 12_000)
    x = found.x_test[:samples]
    numbers: list[Measurement] = []
    blocks: list[tuple[str | float | int, ...]] = []
    ends: list[tuple[str | float | int, ...]] = []
    series: list[Series] = []
    worst, told = 0.0, math.inf
    for done, name in enumerate(NETS):
        setup.at(done / len(NETS), f"{name}: {depth} blocks")
        net = Net(name, found.pixels, width, depth)
        for state in STATES[: 1 if name == EQUAL else 2]:
            trained = state == "trained"
            accuracy = train(net, found, steps, setup.seed) if trained else math.nan
            Js = jacobians(net, x)
            cases = {name: Js}
            if name.startswith(LSTM):
                cases[name + CELL] = Js[..., width // 2 :, width // 2 :]
            for case, J in cases.items():
                seen = look(J, depths)
                worst = max(worst, seen.off)
                v = seen.numbers | ({"accuracy": accuracy} if trained else {})
                numbers += [
                    Measurement(f"{case}, {state}: {what}", value, "", None, "", tabled=True)
                    for what, value in v.items()
                ]
                blocks.append((case, state, *(v[k] for k in BLOCK_COLUMNS)))
                ends.append((case, state, *(v[k] for k in END_COLUMNS),
                             accuracy if trained else ""))  # fmt: skip
                if not trained and case in SHOWN:
                    series += curves(case, seen, depths)
                if not trained and case == "residual B / sqrt(L)":
                    told = second_opinion(net, found, samples, seen.logs)
    numbers += [
        Measurement("blocks", depth), Measurement("width", width),
        Measurement("sum ln s_i against sum ln|det J_l|", worst, "relative", 0.0, "all nets"),
        Measurement("ln s_i, sp.spectrum against exact blocks", told, "nats", 0.0,
                    "residual B / sqrt(L), largest difference"),
    ]  # fmt: skip
    tables = (
        Table("One block: its singular values (turn: degrees, of a random right angle)",
              ("net", "", "5%", "50%", "95%", "share zero", "ln|det J| / n", "turn"),
              tuple(blocks)),
        Table(f"End to end, {depth} blocks, nats",
              ("net", "", "ln s 5%", "ln s 50%", "ln s 95%", "share zero", "signal", "ln|det J|",
               "turn", "worst turn", "accuracy"), tuple(ends)),
    )  # fmt: skip
    settings = {
        "blocks": depth, "width": width, "samples": samples, "training steps": steps,
        "optimizer": "Adam, lr 0.001, gradient clipped at norm 1",
        "near one": f"from 1/{NEAR} to {NEAR}",
        "vanishes": f"at least {-VANISHED:.0f} nats in {BLOCKS} blocks",
        "volume conserved": f"a side changes by less than {KEPT:.0%}",
    }  # fmt: skip
    return Measured(tuple(numbers), found.name, settings, tuple(series), tables)


BLOCK_COLUMNS = ("low", "middle", "high", "lost", "volume of a block", "turn of a block")
END_COLUMNS = ("end low", "end middle", "end high", "end lost", "signal", "volume", "turn",
               "worst turn")  # fmt: skip
OVER = (
    ("signal", "Error signal over depth", "ln(||J||_F / sqrt(n)), nats"),
    ("volume", "Volume over depth", "ln|det J|, nats"),
    ("spread", "How far the singular values spread over depth", "ln s, 90% less 10%, nats"),
    ("turn", "How far a random right angle is turned", "degrees"),
)


def curves(name: str, seen: Seen, depths: tuple[int, ...]) -> list[Series]:
    """The figures' curves for one net."""
    shares = tuple(k / 40 for k in range(41))
    return [
        Series("Singular values of one block", name, shares,
               tuple(at(seen.block, q) for q in shares), "share of the values below", "s"),
        Series("Singular values end to end", name, shares,
               tuple(at(seen.logs, q) for q in shares), "share of the values below", "ln s, nats"),
        *(Series(title, name, tuple(map(float, depths)), tuple(seen.over[key]), "blocks", label)
          for key, title, label in OVER),
    ]  # fmt: skip


def shown(value: float, digits: int = 1) -> str:
    """A number in prose, without a minus before zero."""
    if math.isinf(value):
        return "minus infinity" if value < 0 else "infinity"
    return f"{round(value, digits) + 0.0:.{digits}f}"


def sorted_out(
    text: str, test: Callable[[str], bool], told: Callable[[str], str], unit: str, correct: str
) -> Claim:
    """A claim on all cured nets, before and after training, with the nets that keep it."""
    failed = {case: [k for k in STATES if not test(f"{case}, {k}")] for case in CURED}
    kept = [case for case in CURED if not failed[case]]
    rest = [case for case in CURED if failed[case]]
    verdict: Verdict = "holds" if not rest else "does not hold as printed"
    because: list[str] = []
    if kept:
        named = "; ".join(f"{case} ({told(f'{case}, start')})" for case in kept)
        because.append(f"Kept before and after training by {len(kept)} of {len(CURED)}: {named}.")
    if rest:
        named = "; ".join(
            f"{case} ({told(f'{case}, {failed[case][0]}')}"
            + (", trained)" if failed[case] == ["trained"] else ")")
            for case in rest
        )
        because.append(f"Not by {named}.")
    if kept and rest:
        verdict = "holds in part"
    because.append(f"In brackets: {unit}.")
    return Claim(text, verdict, " ".join(because), correct if rest else "")


def judge(v: Values) -> tuple[Claim, ...]:
    """Verdicts from the measured values."""

    def span(at: str, part: str = "", digits: int = 2) -> str:
        low, high = v[f"{at}: {part}low"], v[f"{at}: {part}high"]
        return f"{shown(low, digits)} to {shown(high, digits)}"

    def near(at: str) -> bool:
        return v[f"{at}: low"] >= 1 / NEAR and v[f"{at}: high"] <= NEAR

    def near_end(at: str) -> bool:
        return max(-v[f"{at}: end low"], v[f"{at}: end high"]) <= math.log(NEAR)

    equal = v[f"{EQUAL}, start: spread"] <= ROUNDING
    same_angle = v[f"{EQUAL}, start: turn"] <= math.degrees(ROUNDING)
    agree = max(v["sum ln s_i against sum ln|det J_l|"],
                v["ln s_i, sp.spectrum against exact blocks"]) <= ROUNDING  # fmt: skip
    unsure = "" if agree else " Two ways to the same numbers disagree: look for a mistake."
    lost = v["residual A / sqrt(L), start: end lost"]
    volume, turn = (v[f"residual B / sqrt(L), start: {what}"] for what in ("volume", "turn"))
    L, n = v["blocks"], v["width"]
    return (
        Claim(
            "equal singular values: angle preserving",
            "holds" if equal and same_angle else "does not hold as printed",
            f"{L:.0f} orthogonal layers have singular values that differ by "
            f"{v[f'{EQUAL}, start: spread']:.0e} nats and turn a right angle by "
            f"{v[f'{EQUAL}, start: turn']:.0e} degrees; the same follows from J^T J = s^2 I.",
            "" if equal and same_angle else "It follows from J^T J = s^2 I: look for a mistake.",
        ),
        sorted_out(
            "the singular values of one block, J = I + X, are close to one",
            near,
            span,
            "between which 90% of all singular values lie",
            f"They are, from 1/{NEAR} to {NEAR}, where the branch is small against the identity: a "
            "gate that is nearly closed, a branch divided by sqrt(L), the carousel with an open "
            "forget gate. Residual A's ReLU makes some of them zero, and of an LSTM's whole state "
            "only c is carried on: h is written anew at every step.",
        ),
        sorted_out(
            f"and so are those of {L:.0f} blocks",
            near_end,
            lambda at: span(at, "end ", 1),
            "between which 90% of ln s lie",
            "The spread of ln s grows with depth: what is near one in every block is not near one "
            "in the product, unless it is exactly one.",
        ),
        sorted_out(
            "no vanishing",
            lambda at: v[f"{at}: signal per block"] * BLOCKS > VANISHED,
            lambda at: shown(v[f"{at}: signal"]),
            f"ln(||J||_F / sqrt(n)) over {L:.0f} blocks",
            f"A gate carries 1 - g of the signal past a block, a forget gate f: where that is not "
            f"near one, {-VANISHED:.0f} nats or more are lost in {BLOCKS} blocks (at the mean rate "
            f"measured). In the other nets the signal, a root mean square, stays or grows, by "
            f"{v['residual B, start: signal']:.0f} nats in residual B. It stays, too, in a plain "
            f"tanh net at the start ({v['tanh, start: signal']:.1f} nats); but half of that "
            f"net's directions are below {v['tanh, start: end middle']:.0f} nats.",
        ),
        sorted_out(
            "volume conserving",
            lambda at: abs(v[f"{at}: volume per direction"]) <= math.log1p(KEPT),
            lambda at: shown(v[f"{at}: volume"]),
            f"ln|det J|; {n:.0f} dimensions, {n / 2:.0f} of c alone",
            f"ln|det J| is 0 for the carousel without a forget gate, and next to 0 for a branch of "
            f"random signs, B / sqrt(L): {volume:.1f} nats in {n:.0f} dimensions, as singular "
            f"values below one make up for those above. Gates shrink the volume by the product of "
            f"1 - g or f; residual A has volume zero, {lost:.0%} of its directions are lost.",
        ),
        sorted_out(
            f"their singular values are equal, so they preserve angles over {L:.0f} blocks",
            lambda at: v[f"{at}: turn"] <= DEGREES,
            lambda at: shown(v[f"{at}: turn"]),
            "degrees that a random right angle is turned by, on average",
            "The singular values are equal only for the carousel without a forget gate. Even "
            f"B / sqrt(L) turns a random right angle by {turn:.0f} degrees on average, and the "
            f"worst by {v['residual B / sqrt(L), start: worst turn']:.0f}." + unsure,
        ),
    )  # fmt: skip


STUDY = Study(
    name="singular-values",
    title="Singular values of J = I + X",
    statement="LSTM, highway and residual nets keep the singular values of J = I + X close to one: "
    "no vanishing, volume conserving; equal singular values: angle preserving",
    source="Lecture by Sepp Hochreiter; Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins "
    "2000; Srivastava, Greff & Schmidhuber 2015; He et al. 2015 (A), 2016 (B); Klambauer et al. "
    "2017; dynamical isometry: Saxe et al. 2014; sweeps: Benettin et al. 1980",
    function=measure,
    judge=judge,
)
