"""Views of the time axis: error signals step by step, gates, and the horizon of credit."""
