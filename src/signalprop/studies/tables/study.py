"""selu-tables: self-normalizing networks on real tables, against what else there is.

Klambauer et al. 2017 report mean ranks on the 121 UCI tables of Fernandez-Delgado et al. 2014, an
AUC of 0.980 on HTRU2 and a mean AUC of 0.845 on Tox21; the code for these was never published. Here
six networks of one size, a random forest and an SVM go through the same search on the same splits.
What is smaller or other than in the paper is listed in a table of the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from signalprop.errors import MissingPackageError
from signalprop.studies.data import FOLDER
from signalprop.studies.frame import Measured, Measurement, Setup, Study, Table
from signalprop.studies.plain import Found
from signalprop.studies.tables import auc, data, molecules, uci, verdicts
from signalprop.studies.tables.plan import FULL, QUICK, STAND_IN, Clock, Plan, probe


@dataclass
class Inputs:
    """The data that are at hand.

    Attributes:
        tables: tables with classes.
        of_uci: whether they are UCI-121's.
        pulsars: whether HTRU2 is there.
        toxicity: whether Tox21 and RDKit are there.
        names: what is used, for people.
        missing: what is not run, and why.
    """

    tables: list[data.Tabular]
    of_uci: bool
    pulsars: bool
    toxicity: bool
    names: list[str]
    missing: list[str] = field(default_factory=list)


def at_hand(plan: Plan, seed: int) -> Inputs:
    """Look what there is."""
    bundled = data.bundled(seed)  # also says what to do where scikit-learn is missing
    missing: list[str] = []
    if of_uci := data.archive() is not None:
        tables, left = data.uci(*plan.rows, plan.sets)
        missing += [f"UCI {name}: {why}" for name, why in left.items()]
        names = [f"{len(tables)} sets of UCI-121"]
    else:
        tables, names = bundled, ["scikit-learn's digits, iris, wine and breast cancer"]
        missing.append(f"UCI-121: no uci121/*.tar.* in the folder {FOLDER} names")
    if pulsars := data.folder("htru2", "HTRU_2.csv.gz") is not None:
        names.append("HTRU2 (17,898 pulsar candidates)")
    else:
        missing.append(f"HTRU2: no htru2/HTRU_2.csv.gz in the folder {FOLDER} names")
    toxicity = False
    if data.folder("molecules", "tox21_moleculenet.csv.gz") is None:
        missing.append(f"Tox21: no molecules/tox21_moleculenet.csv.gz in the folder {FOLDER} names")
    elif plan.molecules == 0:
        missing.append("Tox21: the quick run leaves it out; descriptors alone take a minute")
    elif not rdkit():
        missing.append('Tox21: needs RDKit; pip install "signalprop[studies]"')
    else:
        toxicity = True
        names.append("Tox21 (MoleculeNet's file)")
    return Inputs(tables, of_uci, pulsars, toxicity, names, missing)


def rdkit() -> bool:
    """Whether RDKit can be imported."""
    try:
        molecules.chemistry()
    except MissingPackageError:
        return False
    return True


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrices this small are multiplied fastest by one thread.

    Yields:
        Nothing.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(setup: Setup) -> Measured:
    """Run it."""
    with one_thread():
        if setup.quick:
            return run(setup, QUICK if data.archive() else STAND_IN)
        return run(setup, FULL)


def run(setup: Setup, plan: Plan) -> Measured:
    """Run it at these sizes."""
    there = at_hand(plan, setup.seed)
    seconds = uci.seconds(plan, there.tables)
    seconds += auc.htru2_seconds(plan) if there.pulsars else 0.0
    seconds += auc.tox21_seconds(plan) if there.toxicity else 0.0
    clock = Clock(setup, probe(), seconds)
    clock.begin(f"{len(there.tables)} tables" + ", HTRU2" * there.pulsars
                + ", Tox21" * there.toxicity)  # fmt: skip
    parts: list[Found] = [uci.measure(clock, plan, there.tables, setup.seed)]
    if there.pulsars:
        parts.append(auc.htru2(clock, plan, *data.htru2(), setup.seed))
    if there.toxicity:
        clock.at("Tox21: descriptors")
        found = molecules.tox21(plan.molecules)
        there.names[-1] += f": {len(found.x)} molecules, {found.x.shape[1]} inputs"
        parts += auc.tox21(clock, plan, found, setup.seed)
    numbers = [m for part in parts for m in part[0]]
    numbers += [
        Measurement("tables: of UCI-121", float(there.of_uci), tabled=True),
        Measurement("tables: fewest rows", min(len(t.y) for t in there.tables), tabled=True),
    ]
    versus = uci.comparison({m.name: m.value for m in numbers})
    tables = [versus, *(part[2] for part in parts), differences(plan, there)]
    settings = {
        "width": plan.grid.width, "hidden layers": plan.grid.depths, "Adam, lr": plan.grid.rates,
        "dropout": plan.grid.dropouts, "updates": plan.budget.steps, "batch": plan.budget.batch,
        "trees": plan.grid.trees, "C": plan.grid.costs, "UCI sets of rows": plan.rows,
        "not run": there.missing,
    }  # fmt: skip
    series = tuple(s for part in parts for s in part[1])
    return Measured(tuple(numbers), ", ".join(there.names), settings, series, tuple(tables))


def differences(plan: Plan, there: Inputs) -> Table:
    """What is other than in the paper, and what was left out."""
    grid, low, high = plan.grid, *plan.rows
    few = f", the {plan.sets} smallest" if plan.sets else ""
    used = f"UCI-121 with {low:,} to {high:,} rows{few}" if there.of_uci else "bundled tables"
    whose = "Fernandez-Delgado's" if there.of_uci else "drawn here"
    rows = [
        ("sets", used, "121; 46 of at least 1,000 rows"),
        ("search", f"width {grid.width}; layers {words(grid.depths)}; lr {words(grid.rates)}; "
         f"dropout {words(grid.dropouts)}", "width 256 to 1,024; 2 to 32 layers"),
        ("training", f"Adam, at most {plan.budget.steps} updates of {plan.budget.batch} rows",
         "stochastic gradient descent"),
        ("scaling", "by the training rows of each split", "UCI-121's, by all rows, test included"),
        ("tuning split", f"{whose}; its rows come back in the tests", "Fernandez-Delgado's"),
        ("fixed test rows", "mean over four seeds", "one net"),
        ("networks", "same width and layers; highway has gates besides", "a search for each"),
        ("HTRU2", f"{plan.folds} of 10 folds; the next fold chooses the settings",
         "10 folds, nested"),
        ("Tox21 data", "MoleculeNet's 7,831 molecules; random and scaffold splits",
         "the challenge's 12,060 training and 647 test molecules"),
        ("Tox21 inputs", "RDKit's descriptors, 512 Morgan counts", "DeepTox's descriptors"),
    ]  # fmt: skip
    rows += [("not run", why, "") for why in there.missing]
    return Table("What differs", ("", "here", "the paper"), tuple(rows))


def words(values: tuple[float, ...]) -> str:
    """Numbers as people list them."""
    return ", ".join(f"{value:g}" for value in values)


STUDY = Study(
    name="selu-tables",
    title="Self-normalizing networks on real tables",
    statement="self-normalizing networks outperform all other feed-forward networks on UCI tables "
    "and rank before SVM and random forest on the larger ones; HTRU2: AUC 0.980; Tox21: mean AUC "
    "0.845",
    source="Klambauer, Unterthiner, Mayr & Hochreiter 2017, arXiv:1706.02515; tables: "
    "Fernandez-Delgado et al. 2014; HTRU2: Lyon et al. 2016; Tox21: Mayr et al. 2016, Wu et al. "
    "2018",
    function=measure,
    judge=verdicts.judge,
)
