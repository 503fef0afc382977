"""The rules over time: what happens to the error signal from step to step."""

from __future__ import annotations

from signalprop.diagnosis.rule import Rule
from signalprop.diagnosis.time.credit import CREDIT_RULES
from signalprop.diagnosis.time.cut import CUT_RULES
from signalprop.diagnosis.time.gates import GATE_RULES

TIME_RULES: tuple[Rule, ...] = tuple(
    sorted((*CREDIT_RULES, *GATE_RULES, *CUT_RULES), key=lambda judge: judge.rule.code)
)
