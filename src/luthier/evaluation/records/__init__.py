"""One record per held-out example: the model's answers, labels and losses that metrics read."""
