"""Rules, findings, and the engine that runs them."""

from signalprop.diagnosis.engine import DEFAULT_RULES, diagnose
from signalprop.diagnosis.finding import Diagnosis, Finding, Outcome, Result

__all__ = ["DEFAULT_RULES", "Diagnosis", "Finding", "Outcome", "Result", "diagnose"]
