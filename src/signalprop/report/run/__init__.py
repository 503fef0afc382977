"""How a recorded run is shown: the same figures for the report, the terminal and the live page."""
