"""The list of runs: what is read, what is read again, and what a click changes."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import psutil
import pytest
from starlette.testclient import TestClient

from luthier.core.errors import Busy
from luthier.runs.folder import RunFolder
from luthier.ui.index import NoRun, RunIndex
from tests.ui.conftest import write_run


def test_runs_are_listed_with_score_and_curve(root: Path) -> None:
    index = RunIndex(root)
    index.refresh()
    runs = {run["id"]: run for run in index.runs()}
    first = runs["first"]
    assert (first["state"], first["tuned"], first["low"], first["high"], first["base"]) == (
        "finished",
        0.75,
        0.7,
        0.8,
        0.5,
    )
    assert len(first["spark"]) == 20 and first["spark"][0] == 4
    assert runs["deep/second"]["method"] == "bitfit" and runs["deep/second"]["state"] == "killed"


def test_only_what_changed_is_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = RunIndex(root)
    version = index.refresh()
    read: list[str] = []
    from luthier.ui import index as module

    honest = module.state_of
    monkeypatch.setattr(module, "state_of", lambda path, history: read.append(path.name) or honest(path, history))
    assert index.refresh() == version
    assert "first" not in read
    write_run(root / "third")
    assert index.refresh() > version
    assert "third" in read and "first" not in read


def test_a_running_run_is_followed(root: Path) -> None:
    index = RunIndex(root)
    index.refresh()
    folder = RunFolder(root / "deep" / "second")
    with folder.held():
        index.refresh()
        assert index.state("deep/second").state == "running"
        before = index.version
        with folder.metrics.open("a") as file:
            file.write(json.dumps({"step": 21, "loss": 0.1, "tokens": 1, "seconds": 1}) + "\n")
        assert index.refresh() > before
        assert index.state("deep/second").step == 21
        with pytest.raises(Busy):
            index.delete("deep/second")
    index.refresh()
    assert index.state("deep/second").state == "killed"


def test_a_deleted_run_lies_in_the_bin(root: Path) -> None:
    index = RunIndex(root)
    index.refresh()
    place = index.delete("first")
    assert (place / "result.json").is_file() and place.is_relative_to(root / ".ui" / "bin")
    assert [run["id"] for run in index.runs()] == ["deep/second"]
    with pytest.raises(NoRun):
        index.folder("first")


def test_tags_are_kept(client: TestClient, root: Path) -> None:
    client.get("/api/runs")
    assert client.post("/api/run/tags", params={"id": "first"}, json=["best", "best", " ", "x" * 90]).status_code == 200
    tags = {run["id"]: run["tags"] for run in client.get("/api/runs").json()["runs"]}
    assert tags["first"] == ["best", "x" * 40]
    again = RunIndex(root)
    assert again.tags()["first"] == ["best", "x" * 40]


def test_a_damaged_run_is_named_and_hides_no_other(client: TestClient, root: Path) -> None:
    (root / "first" / "result.json").write_text("{broken")
    runs = {run["id"]: run for run in client.get("/api/runs").json()["runs"]}
    assert runs["first"]["state"] == "damaged" and "JSON" in runs["first"]["why"]
    assert "deep/second" in runs
    assert client.get("/api/run", params={"id": "first"}).status_code == 200


def test_nothing_is_sent_where_nothing_changed(client: TestClient) -> None:
    found = client.get("/api/runs").json()
    assert client.get("/api/runs", params={"since": found["version"]}).json() == {
        "version": found["version"],
        "runs": None,
    }


def test_an_empty_folder_has_no_runs(tmp_path: Path) -> None:
    index = RunIndex(tmp_path / "none")
    assert index.refresh() == 0 and index.runs() == []


def test_a_run_of_another_machine_is_running_while_it_writes(client: TestClient, root: Path) -> None:
    folder = RunFolder(root / "deep" / "second")
    (folder.path / ".lock").touch()  # nobody holds it here
    held_there = {"host": "another-machine", "pid": os.getpid(), "born": psutil.Process().create_time()}
    (folder.path / ".holder").write_text(json.dumps(held_there))

    def state() -> str:
        runs = {run["id"]: run for run in client.get("/api/runs").json()["runs"]}
        return str(runs["deep/second"]["state"])

    assert state() == "running"
    stopped = client.post("/api/run/stop", params={"id": "deep/second"})
    assert stopped.status_code == 400 and "another-machine" in stopped.json()["error"]["message"]
    assert client.delete("/api/run", params={"id": "deep/second"}).status_code == 409
    hour_ago = time.time() - 3600
    for path in (folder.path / ".holder", folder.metrics):
        os.utime(path, (hour_ago, hour_ago))
    assert state() == "killed"
    with folder.metrics.open("a") as file:  # it goes on
        file.write(json.dumps({"step": 21, "loss": 0.1, "tokens": 1, "seconds": 1}) + "\n")
    assert state() == "running"
    (folder.path / ".holder").write_text(json.dumps({**held_there, "host": socket.gethostname(), "born": 0}))
    assert state() == "killed"  # a process of this machine would hold the lock


def test_a_run_that_is_resumed_says_so_when_it_is_asked_alone(client: TestClient, root: Path) -> None:
    def state() -> str:
        return str(client.get("/api/run", params={"id": "deep/second"}).json()["state"]["state"])

    assert state() == "killed"
    with RunFolder(root / "deep" / "second").held():
        assert state() == "running"
