"""Computations that are faster or smaller than the usual ones, and give the same numbers to rounding."""
