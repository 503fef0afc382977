"""Trials: candidates and the untouched network, under the same seeds and batches."""
