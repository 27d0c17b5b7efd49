"""Trackers of a run: one file each, by the name it has in `train.track`."""
