"""The run folder: its files, their hashes, and where a run comes from."""
