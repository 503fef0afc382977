"""Quick runs on the digits that everybody has, made once for all tests that look at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest

from signalprop import studies
from signalprop.studies import StudyResult, highway, pretraining, residual, tasks
from signalprop.studies.lags import cells, plan
from signalprop.studies.rnn_time import nets


@pytest.fixture(scope="session", autouse=True)
def bundled() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SIGNALPROP_DATA", raising=False)
        # quick enough for a reader, not for a suite that runs every study twice
        patch.setattr(
            pretraining, "QUICK", pretraining.Sizes((2, 6), 30, 600, 6, 60, 60, 2, (1e-2,))
        )
        patch.setattr(highway, "QUICK", highway.Sizes((4, 16), 600, 40, 2, (5e-3,)))
        patch.setattr(residual, "QUICK", residual.Sizes((2, 12), (2, 10), 600, 25, 2, (3e-3,)))
        patch.setattr(nets, "QUICK", nets.Sizes(48, 60, (0.5, 1.0, 2.0), 1, 2))
        patch.setattr(plan, "quick", few)
        yield


def few() -> plan.Plan:
    """Two updates here, four there: what is solved by then is nobody's claim."""
    return plan.Plan(
        (
            plan.Entry(tasks.embedded_reber(), 64, 16, 2),
            plan.Entry(tasks.sequential_digits(limit=600), 64),
            plan.Entry(tasks.adding(22), 64),
        ),
        (cells.TANH, cells.OLD, cells.PLAIN, cells.BIAS, cells.CHRONO),
        60,
    )


@pytest.fixture(scope="session")
def quick(bundled: None) -> Callable[[str], StudyResult]:
    return cache(lambda name: studies.run(name, quick=True))


def values(result: StudyResult) -> dict[str, float]:
    return {m.name: m.value for m in result.measurements}


def verdict(result: StudyResult, **changed: float) -> studies.Verdict:
    """The verdict on the same run with some numbers doctored."""
    claims = studies.find(result.study).judge(values(result) | changed)
    return studies.verdict_of(claims)


@pytest.fixture
def doctored() -> Callable[..., studies.Verdict]:
    return lambda result, changed: verdict(result, **changed)
