"""Views of trials: what helps, the lines to paste, and all that was tried."""
