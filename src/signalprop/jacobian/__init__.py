"""Jacobians between two sites: as a linear operator, their spectra, and what bounds them."""
