"""Cures of structure: skips, normalisation, branches of residual blocks, recurrent layers."""
