"""Rules about signal and units over depth, and what they rest on."""
