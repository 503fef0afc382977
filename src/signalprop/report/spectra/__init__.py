"""Views of what was measured of Jacobians."""
