"""What the server of `tests/processes.py` imports: all of Luthier, and what its commands import while they work."""

import gc
import importlib
import os
import pkgutil

import pytest
import torch

import luthier
from luthier.planning import machine
from tests import shortcuts

for module in pkgutil.walk_packages(luthier.__path__, "luthier."):
    if module.name not in ("luthier.__main__",) and ".guard" not in module.name:
        importlib.import_module(module.name)
importlib.import_module("resvg_py")
for name in ("llama", "qwen2", "bert"):
    importlib.import_module(f"transformers.models.{name}.modeling_{name}")
machine.speed("cpu", torch.float32)  # a third of a second in each process that plans
if shortcuts.FOLDER in os.environ:
    shortcuts.take(pytest.MonkeyPatch())

gc.freeze()  # a fork would copy what its collections look through
