"""Cures of the program: its modes, data, targets, loss, optimizer and precision."""
