"""The rules about the program around a network: outputs, targets, modes, rates, optimizer."""

from __future__ import annotations

from signalprop.diagnosis.program.finite import FINITE_RULES
from signalprop.diagnosis.program.gradient import GRADIENT_RULES
from signalprop.diagnosis.program.linear import LINEAR_RULES
from signalprop.diagnosis.program.output import OUTPUT_RULES
from signalprop.diagnosis.program.rate import RATE_RULES
from signalprop.diagnosis.program.reach import REACH_RULES
from signalprop.diagnosis.program.squashed import SQUASHED_RULES
from signalprop.diagnosis.program.state import STATE_RULES
from signalprop.diagnosis.program.symmetry import SYMMETRY_RULES
from signalprop.diagnosis.program.target import TARGET_RULES
from signalprop.diagnosis.rule import Rule

PROGRAM_RULES: tuple[Rule, ...] = tuple(
    sorted(
        (
            *GRADIENT_RULES,
            *FINITE_RULES,
            *SQUASHED_RULES,
            *OUTPUT_RULES,
            *TARGET_RULES,
            *RATE_RULES,
            *STATE_RULES,
            *SYMMETRY_RULES,
            *REACH_RULES,
            *LINEAR_RULES,
        ),
        key=lambda judge: judge.rule.code,
    )
)
