"""The embedded default: a small base model and data sets, usable offline."""

from pathlib import Path

BASE = Path(__file__).parent / "base"
"""Folder of the embedded base model, in Hugging Face's layout; its README.md is the model card."""

DATA = Path(__file__).parent / "data"
"""Folder of the embedded data sets, one folder each with train.jsonl and heldout.jsonl."""

PROBE = Path(__file__).parent / "probe.jsonl"
"""Short general texts to measure forgetting on; made by tools/probe/make.py."""

DEMO = Path(__file__).parent / "demo.yaml"
"""Recipe of `luthier demo`."""

DEMOS = {"builtin": DEMO, "smollm2": Path(__file__).parent / "demo-smollm2.yaml"}
"""Recipes of `luthier demo BASE`."""


def data_names() -> list[str]:
    """Names of the embedded data sets: builtin:NAME in a recipe."""
    return sorted(folder.name for folder in DATA.iterdir() if (folder / "train.jsonl").is_file())
