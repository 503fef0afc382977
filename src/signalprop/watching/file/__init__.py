"""The run file: one SQLite file that a training writes and others read meanwhile."""
