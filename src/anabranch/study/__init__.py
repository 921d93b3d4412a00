"""Studies: a grid of runs with several seeds, their comparison, and its report."""
