"""Memory and time of a run, estimated from its recipe and config.json before any weights are there."""
