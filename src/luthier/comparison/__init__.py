"""Every method on the same base, data and tokens, measured side by side."""
