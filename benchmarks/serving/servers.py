"""The servers that are compared: how each is started on the same model, and what it calls its models."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ADAPTERS = [f"lora-{number}" for number in range(1, 5)]


@dataclass(frozen=True)
class Arm:
    """A server with its settings."""

    about: str
    command: list[str]
    """MODEL, GGUF, ADAPTERS/NAME and PORT stand for what they say."""
    models: list[str] = field(default_factory=lambda: ["MODEL"])
    """Which are asked, in turns."""
    extra: dict[str, object] = field(default_factory=dict)
    """Fields of each request."""


LUTHIER = [sys.executable, "-m", "luthier", "serve", "--port", "PORT", "--dtype", "DTYPE", "--max-batch", "16"]
TRANSFORMERS = [
    str(Path(sys.executable).with_name("transformers")),
    "serve",
    "MODEL",
    "--port",
    "PORT",
    "--device",
    "cpu",
    "--dtype",
    "DTYPE",
]

ARMS = {
    "luthier": Arm("`luthier serve`, one merged model", [*LUTHIER, "merged=MODEL"], ["merged"]),
    "luthier-lora4": Arm(
        "`luthier serve`, four LoRA adapters over it", [*LUTHIER, *(f"ADAPTERS/{name}" for name in ADAPTERS)], ADAPTERS
    ),
    "transformers": Arm("`transformers serve`, as it comes", TRANSFORMERS),
    "transformers-cb": Arm(
        "`transformers serve --continuous-batching`",
        [*TRANSFORMERS, "--continuous-batching", "--cb-max-memory-percent", "0.3"],
    ),
    "llama.cpp": Arm(
        "llama.cpp's `llama-server`, bf16, 16 rows at a time",
        ["LLAMA_SERVER", "-m", "GGUF", "--port", "PORT", "--host", "127.0.0.1", "-np", "16", "-c", "32768", "-t", "2"],
        ["model"],
        {"cache_prompt": False, "ignore_eos": True},
    ),
}


def unmerged(method: str) -> Arm:
    """One adapter of a method over the base."""
    return Arm(f"`luthier serve`, one {method} adapter", [*LUTHIER, f"ADAPTERS/{method}"], [method])


def missing(arm: Arm, folder: Path) -> str:
    """Why this server cannot run here; nothing where it can."""
    if "LLAMA_SERVER" in arm.command and not shutil.which(os.environ.get("LLAMA_SERVER", "llama-server")):
        return "no llama-server: build llama.cpp, and name it in LLAMA_SERVER"
    if "GGUF" in arm.command and not (folder / "model.gguf").is_file():
        return f"no {folder}/model.gguf"
    return ""


@contextmanager
def running(arm: Arm, folder: Path, dtype: str) -> Iterator[tuple[str, list[str], float]]:
    """(address, names of its models, seconds until it answers) of a server that is stopped at the end."""
    port = _free()
    words = {
        "MODEL": str(folder / "model"),
        "GGUF": str(folder / "model.gguf"),
        "PORT": str(port),
        "DTYPE": dtype,
        "LLAMA_SERVER": os.environ.get("LLAMA_SERVER", "llama-server"),
        "ADAPTERS": str(folder / "adapters"),
    }

    def told(text: str) -> str:
        head, slash, rest = text.partition("/")
        key, equals, value = text.partition("=")
        return words[head] + slash + rest if head in words else key + equals + words.get(value, value)

    log = tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False)  # noqa: SIM115 (kept where it failed)
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(os.cpu_count())}
    began = time.perf_counter()
    server = subprocess.Popen(
        [told(word) for word in arm.command], stdout=log, stderr=log, env=os.environ | quiet, start_new_session=True
    )
    try:
        while not _answers(port):
            if server.poll() is not None or time.perf_counter() - began > 300:
                raise SystemExit(f"{arm.about} did not start:\n{Path(log.name).read_text()[-2000:]}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1", [told(name) for name in arm.models], time.perf_counter() - began
        if server.poll() is not None:
            raise SystemExit(f"{arm.about} died:\n{Path(log.name).read_text()[-2000:]}")
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    Path(log.name).unlink()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
