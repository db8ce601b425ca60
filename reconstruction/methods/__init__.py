"""Iterative methods as generators of iterates, with what they share: subsets, surrogates, priors' solvers, stopping."""
