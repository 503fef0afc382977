"""Rules over time, and what they rest on."""
