"""What a model scores on held-out rows: one file per evaluation."""
