"""Recurrence in Python: loops over cells, and the layers of `nets`."""
