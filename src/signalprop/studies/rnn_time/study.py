"""rnn-time: a recurrent net is a deep net in time, and what its factors have to be.

h_t = phi(W h_{t-1} + w x_t) reads a stream of real digits, pixel by pixel. Credit at lag k is
||dh_T/dh_{T-k}||_F / sqrt(n), measured as by `sp.horizon`, as the gain of W is swept through 1.
Beside it stands what theory says of its slope, in nats per step: ln of the spectral radius for
linear nets, mean field for tanh and ReLU (0.5 ln chi), the Lyapunov exponent of the run. A leaky
integrator's horizon is floor(ln alpha / ln gamma). Last, the horizons of torch's own layers as they
start.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

from torch import Tensor

from signalprop.studies.frame import Measured, Measurement, Series, Setup, Study, Table
from signalprop.studies.rnn_time import nets, verdicts
from signalprop.studies.rnn_time.nets import GAUSS, LINEAR, ORTHOGONAL, RELU, TANH, Sizes
from signalprop.studies.tables.study import one_thread
from signalprop.studies.trained import Agenda


def measure(setup: Setup) -> Measured:
    """Run it."""
    with one_thread():
        return run(setup, nets.QUICK if setup.quick else nets.FULL)


@dataclass
class Costs(Agenda):
    """An agenda that knows what each part costs.

    Attributes:
        each: seconds, by the activation of a case, and of the other parts.
    """

    each: dict[str, float] = field(default_factory=dict)


def forecast(setup: Setup, sizes: Sizes, x: Tensor, cases: list[tuple[str, str, float]]) -> Costs:
    """Time one tanh net; the others take in proportion. Says how long it will take."""
    one = 0.0
    for _ in range(2):  # what torch does once is not counted
        start = time.perf_counter()
        nets.sweep(TANH, GAUSS, 1.0, replace(sizes, seeds=1), x, setup.seed)
        one = (time.perf_counter() - start) * sizes.seeds
    # the linear net is a loop in Python, the deep one draws a matrix for every layer
    each = {LINEAR: 7 * one, TANH: one, RELU: one, "deep": 3 * one * len(sizes.gains)}
    each["starts"] = 4 * one
    total = sum(each[phi] for phi, *_ in cases) + each["deep"] + each["starts"]
    agenda = Costs(setup, total, each=each)
    agenda.start(f"{len(cases)} kinds of nets")
    return agenda


def run(setup: Setup, sizes: Sizes) -> Measured:
    """Run it at these sizes."""
    x, data = nets.stream(sizes.samples, sizes.steps)
    numbers: list[Measurement] = [
        Measurement("steps", sizes.steps, "", None, "T"),
        Measurement("units", sizes.units),
    ]
    series: list[Series] = []
    rows: list[tuple[str | float | int, ...]] = []
    cases = [(p, k, g) for p in (LINEAR, TANH, RELU) for k in (GAUSS, ORTHOGONAL)
             for g in sizes.gains]  # fmt: skip
    found: dict[tuple[str, str, float], nets.Swept] = {}
    agenda = forecast(setup, sizes, x, cases)
    for case in cases:
        agenda.next(f"{case[0]}, {case[1]} W, gain {case[2]:.3g}", agenda.each[case[0]])
        found[case] = s = nets.sweep(*case, sizes, x, setup.seed)
        at = named(*case)
        for what, value, unit in (
            ("measured", s.measured, "nats per step"), ("predicted", s.predicted, "nats per step"),
            ("exponent", s.exponent, "nats per step"), ("norm", s.norm, ""),
            ("horizon", s.reach, "steps"), ("state", s.state, ""),
        ):  # fmt: skip
            told = s.predicted if what == "measured" else None
            numbers.append(Measurement(f"{at}: {what}", value, unit, told, tabled=True))
        rows.append((*case, s.norm, s.measured, s.deviation, s.predicted, s.exponent, s.reach,
                     s.state))  # fmt: skip
    for phi in (LINEAR, TANH, RELU):
        for gain in sizes.gains:
            curve = found[phi, GAUSS, gain].curve
            series.append(Series(f"||dh_T/dh_t|| / sqrt(n), {phi}, Gaussian W",
                                 f"gain {gain:.3g}", tuple(map(float, range(len(curve)))), curve,
                                 "T - t, steps", "credit", True))  # fmt: skip
        for kind in (GAUSS, ORTHOGONAL):
            for name in ("measured", "predicted"):
                ys = tuple(getattr(found[phi, kind, g], name) for g in sizes.gains)
                series.append(Series(f"Slope of ln credit over the gain, {phi}", f"{kind}, {name}",
                                     sizes.gains, ys, "gain of W", "nats per step"))  # fmt: skip
    agenda.next("the same nets with new weights in every layer", agenda.each["deep"])
    tied: list[tuple[str | float | int, ...]] = []
    for gain in sizes.gains:
        rate = math.fsum(
            nets.deep(GAUSS, gain, sizes, x, setup.seed + k) for k in range(sizes.seeds)
        ) / sizes.seeds  # fmt: skip
        numbers.append(Measurement(f"deep, gain {gain:.3g}: measured", rate, "nats per layer",
                                   found[TANH, GAUSS, gain].measured, tabled=True))  # fmt: skip
        tied.append((gain, found[TANH, GAUSS, gain].measured, rate))
    agenda.next("horizons of torch's layers as they start", agenda.each["starts"])
    shown: list[tuple[str | float | int, ...]] = []
    for name, seen in nets.starts(sizes, x, setup.seed).items():
        one = seen.curves[0]
        short, silent = one.steps, one.reach(nets.FLOAT32)
        longest = one.lags[-1]
        for what, value in (("1/e", short), ("float32", silent)):
            numbers.append(Measurement(f"{name}: horizon, {what}", longest if value is None
                                       else value, "steps", tabled=True))  # fmt: skip
        shown.append((name, more(short, longest), more(silent, longest), one.rate))
        series.append(Series("Credit at the start of training", name,
                             tuple(map(float, one.lags)), one.credit, "T - t, steps", "credit",
                             True))  # fmt: skip
    rates = nets.leaks(sizes.steps)
    for gamma, reach, told in rates:
        numbers.append(Measurement(f"leaky {gamma:g}: horizon", reach, "steps", told, tabled=True))
    columns = ("net", "W", "gain", "||J||", "slope", "spread", "predicted", "Lyapunov exponent",
               "steps to 1/e", "rms of h_T")  # fmt: skip
    tables = (
        Table(f"Nats per step, {sizes.steps} steps, {sizes.units} units", columns, tuple(rows)),
        Table("A tanh net in time and one in depth, nats", ("gain", "per step", "per layer"),
              tuple(tied)),
        Table("As they start: steps until credit falls to 1/e, and to float32's rounding",
              ("layer", "1/e", "float32", "nats per step"), tuple(shown)),
        Table("Leaky integrators: steps to 1/e", ("gamma", "measured", "floor(ln alpha/ln gamma)"),
              tuple(rates)),
    )  # fmt: skip
    settings = {"units": sizes.units, "steps": sizes.steps, "gains": sizes.gains,
                "seeds": sizes.seeds, "streams": sizes.samples}  # fmt: skip
    return Measured(tuple(numbers), data, settings, tuple(series), tables)


def named(phi: str, kind: str, gain: float) -> str:
    """A case."""
    return f"{phi}, {kind}, gain {gain:.3g}"


def more(value: int | None, longest: int) -> int | str:
    """A horizon as shown."""
    return f"> {longest}" if value is None else value


STUDY = Study(
    name="rnn-time",
    title="A recurrent net is a deep net in time",
    statement="a recurrent net is a deep net in time: with too many time steps the product "
    "vanishes (factors < 1) or explodes (factors > 1)",
    source="Lecture by Sepp Hochreiter; Hochreiter 1991 (diploma thesis, TU München); Bengio, "
    "Simard & Frasconi 1994; Pascanu, Mikolov & Bengio 2013; chaos in random nets: Sompolinsky, "
    "Crisanti & Sommers 1988; mean field: Poole et al. 2016, Chen, Pennington & Schoenholz 2018",
    function=measure,
    judge=verdicts.judge,
)
