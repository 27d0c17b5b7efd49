"""Import a module of Luthier as soon as PEFT is imported, without importing PEFT here.

PEFT imports bitsandbytes and torchao where they are installed, so their messages are held back here as well.
"""

import importlib
import logging
import sys
import warnings
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NOISE = {
    # A faster kernel of another package is missing. Goes when bitsandbytes logs it on request only.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # What LLM.int8() is, logged by every layer at every evaluation. Goes when bitsandbytes logs it once.
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
    # Its kernels for GPUs are not for this machine. Goes when torchao looks first.
    "torchao": "Failed to load",
    "torchao.kernel.intmm": "Warning: Detected no triton",
    # torchao registers its enums with torch in a deprecated way. Goes when torchao stops doing so.
    "torch.utils._pytree": "%s is an Enum subclass",
}
"""Logger -> start of a message of it (bitsandbytes 0.50.2, torchao 0.18.0) of no use to a user."""


class _Finder(MetaPathFinder):
    """Stands in front of the import system and lets PEFT's own loader be followed by our registration."""

    def __init__(self, follows: str) -> None:
        self.follows = follows

    def find_spec(self, fullname: str, *args: Any) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        # Asked for does not mean imported: transformers only looks whether PEFT is there.
        found = (finder.find_spec(fullname, *args) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_follow(module: ModuleType) -> None:
                execute(module)
                importlib.import_module(self.follows)

            spec.loader.exec_module = execute_and_follow  # type: ignore[method-assign]
        return spec


def follow_peft(module: str) -> None:
    """Import `module`, which registers our layers, now where PEFT is there already, else when it comes."""
    for name in NOISE:
        logging.getLogger(name).addFilter(lambda record: not str(record.msg).startswith(NOISE[record.name]))
    # PEFT 0.21 asks transformers 5.23 by the old name. Goes when PEFT asks for is_activation_checkpointing.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    if "peft" in sys.modules:
        importlib.import_module(module)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(module))
