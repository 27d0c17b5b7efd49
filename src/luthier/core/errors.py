"""What Luthier raises on purpose: each message says what is wrong, where, and the fix."""

import difflib
import shlex
import shutil
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

EXTRAS = {
    "quantize": ("bitsandbytes>=0.50",),
    "languages": ("py3langid>=0.4",),
    "datasets": ("datasets>=4.0",),
    "modelscope": ("modelscope>=1.20",),
    "scores": ("rouge-score>=0.1.2", "sacrebleu>=2.4,<3"),
    "harness": ("lm-eval>=0.4.9",),
    "torchao": ("torchao>=0.18",),
    "onnx": ("onnx>=1.23", "onnxscript>=0.7.2", "onnxruntime>=1.32"),
    "serve": ("fastapi>=0.120", "uvicorn>=0.35"),
    "ui": ("fastapi>=0.120", "uvicorn>=0.35"),
    "gguf": ("llama-cpp-python>=0.3.30",),
    "swanlab": ("swanlab[dashboard]>=0.10.3", "pillow>=10"),
    "tensorboard": ("tensorboardX>=2.6.5", "pillow>=10"),
    "wandb": ("wandb>=0.31", "pillow>=10"),
    "mlflow": ("mlflow>=3.17",),
    "trackio": ("trackio>=0.43", "pillow>=10"),
    "s3": ("s3fs>=2025.3",),
    "ray": ("ray[train]>=2.60",),
}
"""The optional packages of pyproject.toml. Messages name these, since no registry has a package luthier with extras."""


class LuthierError(Exception):
    """Base of every error that is raised on purpose; the command line prints it without a traceback.

    `fix` is what to type or change instead, `exit_code` what the command line returns.
    """

    exit_code = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        self.message, self.fix = message, fix
        super().__init__(f"{message}\n  fix: {fix}" if fix else message)

    def _render_traceback_(self) -> list[str]:
        """What IPython and Jupyter show of it: the message and the fix, not the way through our code."""
        from luthier.core.language import translated

        return [f"\x1b[31m{type(self).__name__}\x1b[0m: {translated(str(self))}"]


class InputError(LuthierError):
    """The user's input is at fault."""

    exit_code = 2


class ConfigError(InputError):
    """One or more mistakes in a recipe or its overrides, each with its key."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.problems = problems
        count = "one mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        super().__init__("\n".join([f"{source}: {count}", *(f"  - {problem}" for problem in problems)]))


class UnknownPlugin(InputError):
    """A name that no file and no entry point has."""

    def __init__(self, kind: str, name: str, known: list[str], beyond: str = "") -> None:
        hint, names = did_you_mean(name, known), ", ".join(known)
        super().__init__(f"unknown {kind} {name!r}{hint}; choose one of: {names}{beyond and f'; {beyond}'}")


class IncompletePlugin(LuthierError):
    """A plugin that lacks what every member of its family must have."""


class DataError(InputError):
    """A data file, or a row of it, that cannot be used."""


class TemplateError(InputError):
    """A chat template that cannot carry the loss mask."""


class ModelError(InputError):
    """A model folder or hub id that cannot be loaded."""


class MissingExtra(InputError):
    """A package that this part needs is not installed, or cannot serve on this machine."""


class NoSpace(InputError):
    """The disk is full; what was written before is whole."""


class OutOfMemory(InputError):
    """The memory of the machine or of its GPU is full; the weights before that step are kept."""


class Diverged(InputError):
    """Loss or gradient is not finite; the weights before that step are kept."""


class Busy(InputError):
    """Another process is at work on the same run folder."""


class NotUploaded(LuthierError):
    """A run is finished, and its last upload failed: the same command uploads it."""

    exit_code = 75


class Unproved(LuthierError):
    """An export or a live endpoint does not answer as its run does."""


class CannotMerge(LuthierError):
    """The method's weights do not fold into the base model."""


class Stopped(LuthierError):
    """A signal asked for a stop; the state of the last whole step is saved. The exit code is 75, 138 or 143."""

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest known name, or nothing."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def require_package(package: str, why: str, fix: str) -> None:
    """Raise MissingExtra, with these words, if the package is not installed."""
    if find_spec(package) is None:
        raise MissingExtra(why, fix=fix)


def first_line(error: Exception) -> str:
    """The first line of an error of another library; the name of its type where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def install(extra: str) -> str:
    """Command that installs the packages of an extra beside Luthier, whichever environment is active in the shell."""
    found = shutil.which("pip")
    own = found is not None and Path(found).parent == Path(sys.executable).parent
    return install_anywhere(extra) if own else f"{shlex.quote(sys.executable)} -m {install_anywhere(extra)}"


def install_anywhere(extra: str) -> str:
    """The same for pages and records that others may read: it names no folder of this machine."""
    return shlex.join(["pip", "install", *EXTRAS[extra]])
