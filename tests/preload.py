"""What the server of `tests/processes.py` imports: all of Luthier, and what its commands import while they work."""

import importlib
import pkgutil

import luthier

for module in pkgutil.walk_packages(luthier.__path__, "luthier."):
    if module.name not in ("luthier.__main__",) and ".guard" not in module.name:
        importlib.import_module(module.name)
importlib.import_module("resvg_py")
for name in ("llama", "qwen2", "bert"):
    importlib.import_module(f"transformers.models.{name}.modeling_{name}")
