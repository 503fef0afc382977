"""Networks that the whole test suite shares: healthy, sick and odd.

A healthy network trains with the optimizer it comes with, and no rule may
raise an issue on it. A sick network must be found out with (at least) the
codes in ``expect``. An odd network is either analysed or refused with one
clear sentence. None of them may be changed by being looked at.
"""

from tests.cases import (
    controls,
    convolutional,
    mlp,
    odd,
    program,
    sequence,
    structure,
    transformer,
    wrapped,
)
from tests.cases.base import Case, Health, call, first_batch, plain_loss

CASES: tuple[Case, ...] = (
    *mlp.CASES,
    *controls.CASES,
    *convolutional.CASES,
    *sequence.CASES,
    *transformer.CASES,
    *structure.CASES,
    *wrapped.CASES,
    *program.CASES,
    *odd.CASES,
)

_BY_NAME = {case.name: case for case in CASES}


def cases(health: Health | None = None) -> tuple[Case, ...]:
    """All cases, or those of one health."""
    return tuple(case for case in CASES if health is None or case.health == health)


def by_name(name: str) -> Case:
    """The case of that name."""
    return _BY_NAME[name]


__all__ = ["CASES", "Case", "Health", "by_name", "call", "cases", "first_batch", "plain_loss"]
