"""The classification head, which trains as a whole with every method: what it is called."""

HEADS = ("score", "classifier", "classification_head")
"""What transformers calls one."""
UNPACKED = [*HEADS, r".*\bpooler", "pre_classifier"]
"""Of a classifier: these train as a whole or start random, so they are never packed."""


def in_head(name: str) -> bool:
    """Does the parameter or module of that name belong to a classification head?"""
    return any(part in HEADS for part in name.split("."))
