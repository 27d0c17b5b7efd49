"""A run that answers."""
