"""Changes to a network, or to its training, that treat findings; and trials that prove them."""
