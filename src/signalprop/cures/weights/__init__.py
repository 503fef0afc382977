"""Cures that draw or scale weights."""
