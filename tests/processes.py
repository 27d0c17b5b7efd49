"""The command line in a process of its own that does not import torch once more.

A server process imports the libraries once, and each command is a fork of it (multiprocessing's forkserver): its own
memory, signals, streams and exit code, in a tenth of the time of a new interpreter.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
QUIET = ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY")
CONTEXT.set_forkserver_preload(["luthier", "torch", "transformers", "peft"])


def _main(arguments: list[str], cwd: str, env: dict[str, str], streams: Sequence[str]) -> None:
    """What the fork does: become `python -m luthier` with these arguments, folder, environment and streams."""
    for number, (path, mode) in enumerate(zip(streams, (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY), strict=True)):
        handle = os.open(path, mode)
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["luthier", *arguments]
    from luthier.cli.main import main

    main()


def serve() -> None:
    """Start the server, where it is not there yet, with the libraries as silent as the command line makes them."""
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(QUIET, "error"))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def start(arguments: Sequence[str], cwd: Path | None, env: Mapping[str, str], streams: Sequence[str]) -> BaseProcess:
    """Start `luthier ARGUMENTS`; `streams` are the files of standard input, output and errors."""
    made = CONTEXT.Process(target=_main, args=([*arguments], str(cwd or Path.cwd()), {**env}, [*streams]))
    serve()
    made.start()
    return made


def run(
    arguments: Sequence[str], *, cwd: Path | None, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run with captured text; TimeoutExpired where it takes more than `timeout` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder, name) for name in ("out", "err"))
        out.touch(), err.touch()
        process = start(arguments, cwd, env, (os.devnull, str(out), str(err)))
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([*arguments], timeout, out.read_text(), err.read_text())
        texts = [path.read_text(encoding="utf-8", errors="surrogateescape") for path in (out, err)]
        return subprocess.CompletedProcess([*arguments], process.exitcode or 0, *texts)
