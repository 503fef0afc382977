"""The rules about the program around a network: outputs, targets, modes, rates, optimizer."""

from __future__ import annotations

from signalprop.diagnosis.program_finite import FINITE_RULES
from signalprop.diagnosis.program_gradient import GRADIENT_RULES
from signalprop.diagnosis.program_linear import LINEAR_RULES
from signalprop.diagnosis.program_output import OUTPUT_RULES
from signalprop.diagnosis.program_rate import RATE_RULES
from signalprop.diagnosis.program_reach import REACH_RULES
from signalprop.diagnosis.program_squashed import SQUASHED_RULES
from signalprop.diagnosis.program_state import STATE_RULES
from signalprop.diagnosis.program_symmetry import SYMMETRY_RULES
from signalprop.diagnosis.program_target import TARGET_RULES
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
