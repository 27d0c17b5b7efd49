"""Runs at s3://: a server that speaks S3 (moto), reached through s3fs as a user's is. `make test-s3` has both."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from tools.soak import differences

import luthier
from luthier.core.errors import Busy, InputError
from luthier.core.events import SILENT
from luthier.recipe.config import RunConfig
from luthier.runs import remote
from luthier.runs.remote import RemoteStore, local, mirrored, working_folder
from luthier.runs.state import find_runs
from tests.conftest import luthier as command
from tests.reliability.conftest import LORA, Heard, Start
from tests.reliability.test_remote import Machine, at, contents, machine, whole_at  # noqa: F401 (a fixture)

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("s3fs", "moto", "flask"))), reason="s3fs or moto[server] is not installed: make test-s3"
)
URL = "s3://runs/team/one"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with the bucket `runs`."""
    log = tmp_path_factory.mktemp("s3") / "log.txt"
    with log.open("w") as file:  # a pipe that nobody reads would fill up, and stop the server
        started = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", "0"], stdout=file, stderr=file)
    ends, found = time.monotonic() + 60, None
    while found is None and time.monotonic() < ends:
        time.sleep(0.1)
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
    assert found, log.read_text()
    yield found[0]
    started.terminate()
    started.wait()


@pytest.fixture(autouse=True)
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty bucket `runs`, and the variables by which a user says where it is and who may read it."""
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST")).close()
    variables = {"AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "name", "AWS_SECRET_ACCESS_KEY": "hidden-word"}
    for name, value in {**variables, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    fs = RemoteStore(URL).fs
    fs.mkdir("runs")


def test_a_run_at_s3_is_the_run_of_a_folder(whole: Path, start: Start, machine: Machine) -> None:  # noqa: F811
    start(URL, *LORA)
    here = working_folder(URL)
    assert differences(whole, here) == [] and at(URL) == contents(here)
    whole_at(URL)
    stored = RemoteStore(URL).fs
    assert not any(b"hidden-word" in stored.cat_file(path) for path in stored.find("runs"))
    machine("second")
    run = luthier.load(URL)
    assert run.finished and run.generate("Say number 3 and dog.", max_new_tokens=2) is not None
    [state] = find_runs("s3://runs")
    assert (state.run, state.state) == (URL, "finished")
    assert command("watch", URL).returncode == 0


def test_killed_it_goes_on_elsewhere(
    whole: Path,
    start: Start,
    shelf: Path,
    machine: Machine,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = [f"model={shelf / 'model'}", f"data={shelf / 'rows.jsonl'}", f"run={URL}", *LORA]
    from tests.reliability.conftest import COMMON

    done = command("train", *COMMON, *own, cwd=tmp_path, before=die_when_uploaded)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    machine("second")
    with pytest.raises(Busy, match="is at work on this run"):
        start(URL, *LORA)
    monkeypatch.setattr(remote, "STALE", 0.5)
    time.sleep(0.6)
    heard = Heard()
    start(URL, *LORA, progress=heard)
    assert any(line.startswith("resuming from step ") for line in heard.said)
    assert differences(whole, working_folder(URL)) == ["one: environment.json"], "it has another command"
    whole_at(URL)


def die_when_uploaded() -> None:
    """SIGKILL in the step after the first one whose checkpoint is in the bucket."""
    from luthier.training.trainer import Trainer

    log: Callable[..., None] = Trainer._log

    def dying(self: Trainer, record: dict[str, float]) -> None:
        log(self, record)
        ends = time.monotonic() + 60
        while record["step"] == 5 and time.monotonic() < ends:
            if (RemoteStore(URL).index() or {"step": 0})["step"] == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.02)

    Trainer._log = dying  # type: ignore[method-assign]


def test_of_two_that_begin_at_once_one_is_refused(machine: Machine) -> None:  # noqa: F811
    """The store itself lets only one of them make lock.json."""
    store = RemoteStore(URL)
    store.write(remote.LOCK, {"folder": "first"}, new=True)
    with pytest.raises(FileExistsError):
        store.write(remote.LOCK, {"folder": "second"}, new=True)
    assert store.read(remote.LOCK) == {"folder": "first"}


def test_a_damaged_object_and_a_missing_bucket_are_named(
    start: Start,
    machine: Machine,  # noqa: F811
) -> None:
    start(URL, *LORA, "train.steps=1")
    fs = RemoteStore(URL).fs
    path = next(each for each in fs.find("runs") if "+adapter_model.safetensors" in each)
    fs.pipe_file(path, fs.cat_file(path)[:-1] + b"\0")
    machine("second")
    wanted = r"files/.*adapter_model\.safetensors.* is damaged"
    with pytest.raises(InputError, match=wanted), mirrored(URL, working_folder(URL), SILENT):
        pytest.fail("the run began")
    for attempt in (lambda: start("s3://no-bucket/one", *LORA), lambda: local("s3://no-bucket/one")):
        with pytest.raises(InputError, match="no-bucket"):
            attempt()
    assert not fs.exists("no-bucket"), "a bucket was made"


def test_a_recipe_lies_in_a_bucket() -> None:
    RemoteStore(URL).fs.pipe_file("runs/recipe.yaml", b"data: builtin:reviews\nseed: 5\n")
    assert RunConfig.load("s3://runs/recipe.yaml").seed == 5
    with pytest.raises(InputError, match=r"s3://runs/other\.yaml: no such recipe"):
        RunConfig.load("s3://runs/other.yaml")


def test_a_server_that_is_gone_is_explained(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    with pytest.raises(InputError, match=r"s3://runs/team/one: \w+"):
        local(URL)
    s3fs.S3FileSystem.clear_instance_cache()
