"""Views of the horizon: how far back in time credit reaches."""
