"""What follows each layer, found by one pass."""
