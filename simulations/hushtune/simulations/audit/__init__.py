"""An empirical lower bound on epsilon, beside the upper bound that the accountant claims."""
