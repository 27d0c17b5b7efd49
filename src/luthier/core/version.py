"""The version of Luthier."""

__version__ = "0.1.0"
