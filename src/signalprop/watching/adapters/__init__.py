"""A watched run in other tools: trainers it attaches to, and dashboards that are told the same."""
