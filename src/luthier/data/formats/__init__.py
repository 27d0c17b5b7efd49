"""How a row becomes an example: one file per format."""
