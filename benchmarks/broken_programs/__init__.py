"""Published broken training programs, rebuilt in PyTorch: what is detected, named and repaired."""
