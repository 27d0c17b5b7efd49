"""Luthier fine-tunes language models: from a data file and a base model to a measured, usable model."""

from luthier.core.import_hook import follow_peft
from luthier.core.version import __version__

__all__ = ["__version__"]

follow_peft("luthier.methods.layers")
