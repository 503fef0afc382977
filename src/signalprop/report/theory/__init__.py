"""Views of what mean-field theory expects."""
