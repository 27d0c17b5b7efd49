"""Two hosts, as two network namespaces joined by a cable: a run trains over it, and ends by itself when it is cut."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from luthier.core.ranks import LIMIT
from tests.conftest import alpaca_rows, write_jsonl
from tests.training.test_training import curve

pytestmark = pytest.mark.skipif(
    not os.environ.get("LUTHIER_HOSTS"), reason="make test-hosts: needs root and Debian's iproute2"
)
HOSTS = {"luthier-a": "10.77.0.1", "luthier-b": "10.77.0.2"}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def cable() -> Iterator[str]:
    """The name of the first host's end of the cable."""
    assert shutil.which("ip"), "apt-get install iproute2"
    for name in HOSTS:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        ip("netns", "add", name)
    ip("link", "add", "cable-a", "netns", "luthier-a", "type", "veth", "peer", "name", "cable-b", "netns", "luthier-b")
    for name, address in HOSTS.items():
        ip("-n", name, "address", "add", f"{address}/24", "dev", f"cable-{name[-1]}")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", f"cable-{name[-1]}", "up")
    yield "cable-a"
    for name in HOSTS:
        ip("netns", "delete", name)


def start(number: int, overrides: list[str], log: Path) -> subprocess.Popen[bytes]:
    """One host of the run, in its namespace."""
    name = list(HOSTS)[number]
    words = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    words += ["--node-rank", str(number), "--nproc-per-node", "1", "--master-addr", HOSTS["luthier-a"]]
    words += ["--master-port", "29511", "-m", "luthier", "train", *overrides]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": f"cable-{name[-1]}", LIMIT: "8", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=log.open("wb"), stderr=subprocess.STDOUT)


def test_two_hosts_train_and_a_cut_cable_ends_both(
    model_folder: Callable[..., Path], tmp_path: Path, cable: str
) -> None:
    data, run = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(21)), tmp_path / "run"
    recipe = ["--model", str(model_folder("llama")), "--data", str(data), "--method", "lora", "data.validation=none"]
    recipe += ["train.steps=100000", "train.batch_size=6", "train.save_every=5", f"run={run}"]
    hosts = [start(number, recipe, tmp_path / f"{number}.log") for number in range(2)]
    try:
        until = time.monotonic() + 120
        while (len(curve(run)) if (run / "metrics.jsonl").is_file() else 0) < 12 and time.monotonic() < until:
            assert all(host.poll() is None for host in hosts), (tmp_path / "0.log").read_text()[-3000:]
            time.sleep(0.1)
        assert len(curve(run)) >= 12, "they train over the cable"
        ip("-n", "luthier-a", "link", "set", cable, "down")
        logs = [tmp_path / "0.log", tmp_path / "1.log"]
        until = time.monotonic() + 60
        while not all("no sign of life for 8 s" in log.read_text() for log in logs) and time.monotonic() < until:
            time.sleep(0.2)
    finally:
        for host in hosts:
            host.kill()
    said = [log.read_text() for log in logs]  # torchrun itself, on the host that is cut off, waits for longer
    assert "error: rank 1 (host" in said[0] and "gave no sign of life for 8 s" in said[0], said[0][-3000:]
    assert "rank 0 (host" in said[1] and "gave no sign of life for 8 s" in said[1], said[1][-3000:]
    assert sorted((run / "checkpoints").glob("step-*")), "what was saved is there"
    alone = [sys.executable, "-m", "luthier", "train", *recipe, "train.log_every=1"]
    with (tmp_path / "alone.log").open("wb") as log:
        again = subprocess.Popen(alone, stdout=log, stderr=subprocess.STDOUT)
        before = len(curve(run))
        until = time.monotonic() + 90
        while len(curve(run)) <= before and time.monotonic() < until:
            time.sleep(0.1)
        again.terminate()
        assert again.wait(timeout=60) == 143
    assert "resuming from step" in (tmp_path / "alone.log").read_text()
