"""`luthier serve` as a user starts and stops it, and what it refuses before it loads anything."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import luthier
from tests.processes import Command


def test_it_starts_answers_and_stops_with_exit_code_0(adapter: Callable[..., Path]) -> None:
    server = Command(["serve", f"mine={adapter('lora')}", adapter("houlsby"), "--port", "0"])
    server.wait_for(lambda: "listening on" in server.out)
    told = server.out
    assert "mine (lora): in one batch with the others" in told and "in batches of its own" in told
    url = told.split("listening on ")[1].split()[0]
    body = json.dumps({"model": "mine", "prompt": "Is it", "max_tokens": 3, "temperature": 0}).encode()
    request = urllib.request.Request(f"{url}/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.loads(answer.read())["usage"]["completion_tokens"] <= 3
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0 and "stopped" in server.out and "Traceback" not in server.err


def test_a_port_in_use_and_an_open_door_are_refused_at_once(adapter: Callable[..., Path]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        began = time.monotonic()
        found = luthier("serve", adapter("lora"), "--port", port)
    assert (
        found.returncode == 2 and f"127.0.0.1:{port} cannot be bound" in found.stderr and "loading" not in found.stderr
    )
    assert "--port" in found.stderr and time.monotonic() - began < 60
    found = luthier("serve", adapter("lora"), "--host", "0.0.0.0")
    assert found.returncode == 2 and "needs an API key" in found.stderr and "LUTHIER_API_KEY" in found.stderr


def test_runs_that_cannot_be_served_are_named(tmp_path: Path, adapter: Callable[..., Path]) -> None:
    found = luthier("serve", tmp_path / "nothing")
    assert found.returncode == 2 and "does not exist" in found.stderr
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/recipe.yaml").write_text("model: builtin\ndata: builtin:reviews\n")
    found = luthier("serve", tmp_path / "begun")
    assert found.returncode == 2 and "no finished weights yet" in found.stderr and "luthier train" in found.stderr
    found = luthier("serve", adapter("lora"), adapter("lora", "qwen2"))
    assert found.returncode == 2 and "adapters for different bases" in found.stderr


def test_a_run_whose_base_has_moved_or_changed_is_refused(
    tmp_path: Path, model_folder: Callable[..., Path], alpaca_file: Path
) -> None:
    import shutil

    from luthier.core.errors import InputError
    from luthier.pipeline.train import train
    from luthier.recipe.config import RunConfig
    from luthier.serving.engine.engine import Engine

    base = tmp_path / "base"
    shutil.copytree(model_folder(), base)
    train(
        RunConfig.load(
            None,
            [
                f"model={base}",
                f"data={alpaca_file}",
                "train.steps=2",
                f"run={tmp_path / 'run'}",
                "evaluate.generate=0",
                "evaluate.forgetting=false",
            ],
        )
    )
    engine = Engine.open([str(tmp_path / "run")])
    engine.close()
    assert list(engine.models) == ["base", "run"]
    config = base / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    with pytest.raises(InputError, match=r"is not the base that the run was started from; changed: config\.json"):
        Engine.open([str(tmp_path / "run")])
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is not a folder"):
        Engine.open([str(tmp_path / "run")])
