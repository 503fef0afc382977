"""Several processes that train one model together: their sums are one, and one of them writes."""
