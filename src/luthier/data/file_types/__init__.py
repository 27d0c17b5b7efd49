"""Kinds of files that hold rows: one file each, by the suffix of a data file."""
