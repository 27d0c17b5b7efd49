"""Optimizers: one file each, by the name it has in `train.optimizer`."""
