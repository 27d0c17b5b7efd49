"""Start a run on other machines: one file an engine."""
