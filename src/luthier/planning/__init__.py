"""Memory and time of a run, foretold from its recipe and config.json before any weights are there."""
