"""The base model: load it, look at it."""
