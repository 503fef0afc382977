"""The lecture, executable: one file per study, readable in one sitting."""

from __future__ import annotations

import difflib
import time

import torch

from signalprop.errors import SignalpropError
from signalprop.studies import (
    alexnet,
    delta_chain,
    first_layer_idle,
    highway,
    ky_fan,
    leaky,
    pretraining,
    product_bound,
    relu,
    residual,
    selu,
    sigmoid_quarter,
    singular_values,
)
from signalprop.studies.frame import (
    Claim,
    Measurement,
    Progress,
    Series,
    Setup,
    Study,
    StudyResult,
    Table,
    Verdict,
    verdict_of,
)
from signalprop.studies.lags import study as lstm
from signalprop.studies.rnn_time import study as rnn_time
from signalprop.studies.tables import study as selu_tables

__all__ = [
    "STUDIES",
    "Claim",
    "Measurement",
    "Progress",
    "Series",
    "Study",
    "StudyResult",
    "Table",
    "Verdict",
    "find",
    "run",
]

#: every study, in the order of the lecture
STUDIES: tuple[Study, ...] = (
    delta_chain.STUDY,
    product_bound.STUDY,
    first_layer_idle.STUDY,
    sigmoid_quarter.STUDY,
    rnn_time.STUDY,
    pretraining.STUDY,
    relu.STUDY,
    leaky.STUDY,
    lstm.STUDY,
    highway.STUDY,
    residual.STUDY,
    singular_values.STUDY,
    ky_fan.STUDY,
    selu.STUDY,
    selu_tables.STUDY,
    alexnet.STUDY,
)


def find(name: str) -> Study:
    """Look a study up by its name.

    Returns:
        The study.

    Raises:
        SignalpropError: there is none; the message lists near matches.
    """
    names = [study.name for study in STUDIES]
    if name in names:
        return STUDIES[names.index(name)]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}"
    raise SignalpropError(f"there is no study {name!r}; {hint}")


def run(
    name: str, *, quick: bool = False, seed: int = 0, progress: Progress | None = None
) -> StudyResult:
    """Run one study, and judge its statement by what was measured.

    The same seed gives the same numbers. The caller's random state is left as it was.

    Args:
        name: name of the study, e.g. `delta-chain`; see `STUDIES`.
        quick: half a minute at most, `lstm` one or two: fewer depths, samples and steps.
        seed: seed of every random number in it.
        progress: called with how far the run is (0 to 1) and what it does next.

    Returns:
        The measured numbers and the verdict.

    Raises:
        SignalpropError: there is no study of that name.
        MissingPackageError: the study's data come with a package that is not installed.

    Examples:
        >>> from signalprop import studies
        >>> result = studies.run("alexnet", quick=True)
        >>> result.verdict
        'holds in part'
    """
    study = find(name)
    start = time.perf_counter()
    setup = Setup(quick, seed, progress)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        # not torch.manual_seed, which would seed the accelerators as well
        torch.default_generator.manual_seed(seed)
        measured = study.function(setup)
    claims = study.judge({m.name: m.value for m in measured.measurements})
    setup.at(1.0, "done")
    return StudyResult(
        study=study.name,
        title=study.title,
        statement=study.statement,
        source=study.source,
        verdict=verdict_of(claims),
        reason=" ".join(claim.because for claim in claims),
        correct_form=" ".join(claim.correct for claim in claims if claim.correct),
        claims=claims,
        measurements=measured.measurements,
        series=measured.series,
        tables=measured.tables,
        seed=seed,
        quick=quick,
        settings=measured.settings,
        data=measured.data,
        seconds=time.perf_counter() - start,
    )
