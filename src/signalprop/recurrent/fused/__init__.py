"""Recurrent layers over all steps in one kernel, for accelerators."""
