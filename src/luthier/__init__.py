"""Luthier fine-tunes language models: from a data file and a base model to a measured, usable model."""

from __future__ import annotations

__version__ = "0.1.0"

from luthier import peft_hook

peft_hook.install()
