"""The command line, or a program in Python, in a process of its own that does not import torch once more.

A server process imports the libraries once, and each command is a fork of it (multiprocessing's forkserver): its own
memory, signals, streams and exit code, in a tenth of the time of a new interpreter. What the imports themselves do is
not seen in a fork; a test of that starts an interpreter.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
QUIET = ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY")
CONTEXT.set_forkserver_preload(["tests.preload"])
Before = Callable[[], object]
"""A function of a test module that a new process calls before the command: it patches, or changes the process."""


def _main(
    arguments: list[str],
    cwd: str,
    env: dict[str, str],
    streams: Sequence[str],
    before: Before | None,
    code: str | None,
) -> None:
    """What the fork does: become `python -m luthier`, or `python -c CODE`, with these arguments, folder and so on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    os.setpgrp()  # so that a test can signal the command and its children
    for number, path in enumerate(streams):
        handle = os.open(path, os.O_RDWR)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin = os.fdopen(0)  # multiprocessing has closed the one there was
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    # torch makes its pool anew after a fork, at the first call and without a lock: two threads that load would race.
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(torch.get_num_threads())
    sys.argv = ["luthier" if code is None else "-c", *arguments]
    if before is not None:
        before()
    if code is not None:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        return
    from luthier.cli.main import main
    from luthier.cli.terminal import console

    for each in (console.console, console.errors):  # they took their width when the server imported them
        each.width = int(env.get("COLUMNS") or console.WIDE)
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


class Command:
    """`luthier ARGUMENTS` while it runs, much as subprocess.Popen: its output goes into files that can be read.

    With `code` it is `python -c CODE ARGUMENTS` instead.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        text: str = "",
        before: Before | None = None,
        code: str | None = None,
    ) -> None:
        """`text` is the standard input, `env` is added to the environment of the tests."""
        self.arguments = [*map(str, arguments)]
        self._folder = tempfile.TemporaryDirectory()
        self._in, self._out, self._err = (Path(self._folder.name, name) for name in ("in", "out", "err"))
        self._in.write_text(text), self._out.touch(), self._err.touch()
        streams = [str(path) for path in (self._in, self._out, self._err)]
        whole = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", **(env or {})}
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the server, which begins with the first command
        given = (self.arguments, str(cwd or Path.cwd()), whole, streams, before, code)
        self._process = CONTEXT.Process(target=_main, args=given)
        serve()
        self._process.start()
        self.pid = int(self._process.pid or 0)

    @property
    def out(self) -> str:
        """Standard output so far."""
        return self._out.read_text(encoding="utf-8", errors="surrogateescape")

    @property
    def err(self) -> str:
        """Standard error so far."""
        return self._err.read_text(encoding="utf-8", errors="surrogateescape")

    def wait_for(self, ready: Callable[[], object], seconds: float = 120) -> None:
        """Wait until `ready()` is true; fails, with the output, where the command ends before."""
        end = time.monotonic() + seconds
        while not ready():
            assert self._process.is_alive() and time.monotonic() < end, self.out + self.err
            time.sleep(0.005)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 300) -> int:
        """The exit code; the command is killed, and TimeoutExpired raised, after so many seconds."""
        self._process.join(timeout)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
            raise subprocess.TimeoutExpired(self.arguments, timeout, self.out, self.err)
        return self._process.exitcode or 0

    def result(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Wait for the end; what subprocess.run gives with captured text."""
        return subprocess.CompletedProcess(self.arguments, self.wait(timeout), self.out, self.err)


def python(code: str, *arguments: object, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -c CODE ARGUMENTS` in a fork, run to its end; `options` are those of `Command`."""
    return Command(arguments, code=code, **options).result(timeout)
