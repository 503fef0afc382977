"""Cures that swap activations, whether modules or functions."""
