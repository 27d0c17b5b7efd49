"""How to tune: one file per method."""
