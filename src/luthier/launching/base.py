"""What every engine shares: the job, its options, the programs that it calls and the files that it writes."""

import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import InputError, MissingExtra
from luthier.core.files import write_text
from luthier.recipe.config import RunConfig

CONNECT_SECONDS = 5.0
"""Longest wait for an address to answer."""


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """Options of `luthier launch`; each engine takes some of them."""

    nodes: int = 1
    devices: int = 1
    """Processes on each node: one per GPU, or one per CPU where model.device is cpu."""
    partition: str = ""
    time: str = ""
    image: str = ""
    volume: str = ""
    address: str = ""
    workers: int = 1
    retries: int = 3
    """How often a worker that was lost is started again."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run to start elsewhere."""

    config: RunConfig
    run: Path
    """Absolute folder of the run."""
    options: LaunchOptions

    @property
    def on_gpu(self) -> bool:
        """Whether its processes ask for a GPU each: they do unless the recipe says model.device=cpu."""
        return self.config.model.device != "cpu"

    @property
    def name(self) -> str:
        """Name of the run folder in lower-case letters, digits and hyphens, which every engine accepts."""
        return re.sub(r"[^a-z0-9]+", "-", f"luthier-{self.run.name}".lower()).strip("-")[:50].strip("-")

    def write_recipe(self, folder: Path) -> None:
        """Write the resolved recipe, so that a later edit of the user's file does not stop a resume."""
        write_text(folder / "recipe.yaml", self.config.dump())


def call(words: Sequence[str], missing: str, **options: Any) -> str:
    """Return what a program prints. MissingExtra with the fix `missing` if it is absent, InputError if it fails.

    The message of a failure is the program's own last line.
    """
    if shutil.which(words[0]) is None:
        raise MissingExtra(f"{words[0]} is not installed on this machine", fix=missing)
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        said = lines[-1].removeprefix(f"{words[0]}: ").removeprefix("error: ")
        raise InputError(f"{words[0]}: {said}")
    return str(done.stdout).strip()


def check_address(option: str, host: str, port: int) -> None:
    """InputError unless something answers at this host and port within CONNECT_SECONDS."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except socket.gaierror:
        raise InputError(f"{option}: the host {host!r} cannot be found", fix="check its name, or give its IP") from None
    except (OSError, OverflowError) as error:
        why = f"{option}: nothing answers at {host}:{port} within {CONNECT_SECONDS:.0f} s ({error})"
        raise InputError(why, fix="check that it runs there and that no firewall is between") from None


def render(template: str, target: Path, **values: Any) -> None:
    """Write the file `target` from a template beside this module; the filter `shell` quotes a value."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    files = FileSystemLoader(Path(__file__).parent)
    layout: Any = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    templates = Environment(loader=files, undefined=StrictUndefined, **layout)
    templates.filters["shell"] = lambda value: shlex.quote(str(value))
    values |= {"python": sys.executable, "cwd": Path.cwd()}
    write_text(target, templates.get_template(template).render(values))
    target.chmod(0o755)
