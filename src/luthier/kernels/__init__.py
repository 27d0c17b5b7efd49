"""Computations that are faster or smaller than the usual ones, and give the same numbers.

They know torch and transformers, and nothing of ours."""
