"""Jacobians of single steps, and the exponents of their product."""
