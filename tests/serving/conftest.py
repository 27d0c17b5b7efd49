"""Small models with adapters of every kind on disk, and a server over them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.methods import zoo


@pytest.fixture(scope="session")
def adapter(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of an adapter whose every weight was moved, over the small model of that kind."""
    made: dict[tuple[str, str, int], Path] = {}

    def make(name: str, kind: str = "llama", seed: int = 9) -> Path:
        import transformers

        if (name, kind, seed) not in made:
            base = model_folder(kind)
            folder = tmp_path_factory.mktemp("adapter") / f"{name.split(maxsplit=1)[0]}-{seed}"
            method, model = zoo.attached(name, kind, model=transformers.AutoModelForCausalLM.from_pretrained(base))
            zoo.shake(model, 0.3, seed)
            folder.mkdir()
            method.save(model, folder)
            settings = json.loads((folder / "adapter_config.json").read_text())
            settings["base_model_name_or_path"] = str(base)
            (folder / "adapter_config.json").write_text(json.dumps(settings))
            made[name, kind, seed] = folder
        return made[name, kind, seed]

    return make


@pytest.fixture(scope="session")
def serving() -> Iterator[Callable[..., str]]:
    """Start a server over an engine in this process; its address."""
    import uvicorn

    from luthier.serving.http.server import application

    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(engine: Any, **options: Any) -> str:
        app = application(engine, **options)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
            assert thread.is_alive()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join(10)
