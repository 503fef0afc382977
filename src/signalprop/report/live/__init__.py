"""The live page of runs: a small server for one person's own machine, and its page."""
