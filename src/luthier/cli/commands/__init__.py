"""The commands of the terminal: one file each, by the name that is typed."""
