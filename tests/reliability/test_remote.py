"""Runs at a URL: one state or the next, whatever fails; and on another machine they go on bit for bit.

A machine is a cache folder of its own. `memory://` is a store in this process, `file://` one that a killed process
leaves behind; tests/reliability/test_s3.py has a server that speaks S3.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from tools.soak import differences

import luthier
from luthier.api.arguments import recipe_from
from luthier.core.errors import Busy, ConfigError, InputError, MissingExtra, NotUploaded
from luthier.core.events import SILENT
from luthier.pipeline.track import track
from luthier.recipe.config import RunConfig
from luthier.runs import remote
from luthier.runs.remote import RemoteStore, local, mirrored, working_folder
from luthier.runs.state import find_runs, state_of
from tests.conftest import luthier as command
from tests.reliability.conftest import COMMON, LORA, Heard, Start, forked, status
from tests.tracking.test_follower import Memory

Machine = Callable[[str], Path]
URL = "memory://bucket/runs/one"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01))
    monkeypatch.setattr(remote, "BEAT", 0.05)
    MemoryFileSystem.store.clear()
    yield
    MemoryFileSystem.store.clear()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Go to the machine of this name; returns its cache folder."""

    def go(name: str) -> Path:
        monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / name))
        return tmp_path / name

    go("first")
    return go


class Killed(BaseException):
    """As SIGKILL: nothing in the process gets a chance to clean up."""


class Faulty(MemoryFileSystem):
    """`faulty://`: a store of which `fault` is asked before each operation that changes something."""

    protocol = "faulty"
    fault: Callable[[str], None] = staticmethod(lambda what: None)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        type(self).fault(f"put {path}")
        super().pipe_file(path, value, mode=mode, **kwargs)

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        type(self).fault(f"put {rpath}")
        super().pipe_file(rpath, Path(lpath).read_bytes())

    def rm_file(self, path: str) -> None:
        type(self).fault(f"remove {path}")
        super().rm_file(path)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> type[Faulty]:
    """The class of `faulty://`, with an empty store and no fault."""
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    monkeypatch.setattr(Faulty, "store", {})
    monkeypatch.setattr(Faulty, "pseudo_dirs", [""])
    monkeypatch.setattr(Faulty, "fault", staticmethod(lambda what: None))
    return Faulty


def small_run(folder: Path, step: int, run: str = "a" * 32) -> None:
    """What stands in for a run: files that change, one that stays, and a checkpoint that takes the place of another."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    (folder / "checkpoints" / f"step-{step:06d}" / "weights").mkdir(parents=True)
    (folder / "checkpoints" / f"step-{step:06d}" / "weights" / "adapter.safetensors").write_bytes(bytes([step]) * 999)
    (folder / "run.json").write_text(json.dumps({"run": run, "recipe": None, "files": {}}))
    (folder / "recipe.yaml").write_text("seed: 0\n")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "loss": 1 / step}) + "\n")


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> content of each file of a run."""
    return {name: path.read_bytes() for name, path in remote._files_of(folder).items()}


def at(url: str) -> dict[str, bytes]:
    """The same of the run at a URL, as a machine that was never there finds it."""
    cache = os.environ["LUTHIER_CACHE"]
    os.environ["LUTHIER_CACHE"] = f"{cache}-other-{time.monotonic_ns()}"
    try:
        store, place = RemoteStore(url), working_folder(url)
        index = store.index()
        assert index is not None
        place.parent.mkdir(parents=True)
        remote._fetch(store, index, place, lambda name: True, SILENT)
        return contents(place)
    finally:
        os.environ["LUTHIER_CACHE"] = cache


def whole_at(url: str) -> None:
    """Nothing is at a URL but the index and what it names."""
    store = RemoteStore(url)
    index = store.index()
    assert index is not None and store.read(remote.LOCK) is None
    named = {remote._object(name, entry["sha256"]): entry["bytes"] for name, entry in index["files"].items()}
    assert store.sizes() == named


# --- a run, from begin to end ---


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_run_at_a_url_is_the_run_of_a_folder(
    scheme: str, whole: Path, start: Start, machine: Machine, tmp_path: Path
) -> None:
    url = URL if scheme == "memory" else f"file://{tmp_path}/store/one"
    heard = Heard()
    result = start(url, *LORA, progress=heard)
    here = working_folder(url)
    assert result["run"] == str(here) and differences(whole, here) == []
    assert f"run: {url}\n" in (here / "recipe.yaml").read_text()
    assert at(url) == contents(here)
    whole_at(url)
    assert sorted(each.name for each in here.parent.iterdir()) == [".lock", "one", "remote.json"]
    # On another machine it is finished too, and nothing is trained.
    machine("second")
    again, trained = Heard(), list[int]()
    again.at_step = trained.append
    assert start(url, *LORA, progress=again)["run"] == str(working_folder(url)) != result["run"]
    assert trained == [] and any("is finished" in line for line in again.said)


@pytest.mark.parametrize("last", [1, 4, 6])
def test_killed_it_goes_on_elsewhere_bit_for_bit(
    last: int, whole: Path, start: Start, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/store/one"

    def die(step: int) -> None:
        """Behind step `last` + 1, when the state of step `last` is at the URL."""
        ends = time.monotonic() + 60
        while step == last + 1:
            index = RemoteStore(url).index()
            if (index is not None and index["step"] == last) or time.monotonic() > ends:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)

    killed = forked(lambda: start(url, *LORA, progress=Heard(die)))
    assert status(killed) == -signal.SIGKILL
    machine("second")
    with pytest.raises(Busy, match=rf"process {killed} on .* is at work on this run(?s:.)*is free in (29\d|300) s"):
        start(url, *LORA)
    monkeypatch.setattr(remote, "STALE", 0.2)
    time.sleep(0.3)
    heard = Heard()
    start(url, *LORA, progress=heard)
    assert any("gave no sign of life for" in line for line in heard.said)
    assert f"resuming from step {last} of 8" in heard.said
    assert differences(whole, working_folder(url)) == []
    assert at(url) == contents(working_folder(url))
    # The first machine finds that another one went on, and takes the end from there.
    machine("first")
    heard = Heard()
    start(url, *LORA, progress=heard)
    assert any("another machine went on" in line and f"(step {last}" in line for line in heard.said)
    assert contents(working_folder(url)) == at(url)


def test_killed_it_goes_on_here_at_once(whole: Path, start: Start, machine: Machine, tmp_path: Path) -> None:
    """lock.json names the folder, whose lock the system has released: nobody has to wait."""
    url = f"file://{tmp_path}/store/one"
    die = Heard(lambda step: step == 5 and os.kill(os.getpid(), signal.SIGKILL))
    assert status(forked(lambda: start(url, *LORA, progress=die))) == -signal.SIGKILL
    assert RemoteStore(url).read(remote.LOCK) is not None
    heard = Heard()
    start(url, *LORA, progress=heard)
    assert "resuming from step 4 of 8" in heard.said
    assert differences(whole, working_folder(url)) == []
    whole_at(url)


def test_stopped_it_is_uploaded_first(whole: Path, start: Start, machine: Machine) -> None:
    stop = Heard(lambda step: step == 3 and signal.raise_signal(signal.SIGTERM))
    with pytest.raises(luthier.Stopped) as stopped:
        start(URL, *LORA, progress=stop)
    assert stopped.value.exit_code == 143
    machine("second")
    heard = Heard()
    start(URL, *LORA, progress=heard)
    assert "resuming from step 3 of 8" in heard.said
    assert differences(whole, working_folder(URL)) == []


def test_training_waits_for_no_upload(start: Start, machine: Machine, faulty: type[Faulty]) -> None:
    """The first upload ends when the last step is taken; were it waited for, it would fail and be warned of."""
    taken, order = threading.Event(), list[str]()

    def wait(what: str) -> None:
        if "/files/" in what and not order:
            order.append("upload" if taken.wait(60) else "upload did not end")
            order.append(what)

    faulty.fault = staticmethod(wait)
    heard = Heard(lambda step: taken.set() if step == 8 else None)
    start("faulty://bucket/one", *LORA, progress=heard)
    assert order[0] == "upload" and not any("failed" in line for line in heard.said)
    assert at("faulty://bucket/one") == contents(working_folder("faulty://bucket/one"))


def test_an_upload_that_fails_is_reported_and_made_good(
    whole: Path, start: Start, machine: Machine, faulty: type[Faulty]
) -> None:
    url, tries = "faulty://bucket/one", list[str]()

    def full(what: str) -> None:
        if "adapter_model" in what:
            tries.append(what)
            raise OSError("quota used up, see https://user:secret@host/")

    faulty.fault = staticmethod(full)
    heard = Heard(lambda step: time.sleep(0.1))
    with pytest.raises(NotUploaded, match=r"OSError: quota used up(?s:.)*rerun the same command") as raised:
        start(url, *LORA, progress=heard)
    assert raised.value.exit_code == 75 and "secret" not in str(raised.value)
    assert any("the run goes on and will try again" in line for line in heard.said)
    assert len(tries) >= 3 and RemoteStore(url).index() is None
    assert differences(whole, working_folder(url)) == []
    faulty.fault = staticmethod(lambda what: None)
    start(url, *LORA)
    assert at(url) == contents(working_folder(url))
    whole_at(url)


# --- one state or the next ---


@pytest.mark.parametrize("scheme", ["faulty", "file"])
def test_a_kill_at_any_operation_leaves_one_state_or_the_next(
    scheme: str, machine: Machine, faulty: type[Faulty], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if scheme == "file":  # the same faults before each write of files, half of which are made
        from fsspec.implementations.local import LocalFileSystem as Local

        put, pipe, move, rm = Local.put_file, Local.pipe_file, Local.mv, Local.rm_file

        def put_file(self: Any, lpath: str, rpath: str, **more: Any) -> None:
            try:
                Faulty.fault(f"put {rpath}")
            except Killed:
                Path(rpath).write_bytes(b"half")
                raise
            put(self, lpath, rpath, **more)

        def pipe_file(self: Any, path: str, value: bytes, **more: Any) -> None:
            try:
                Faulty.fault(f"put {path}")
            except Killed:
                Path(path).write_bytes(value[: len(value) // 2])
                raise
            pipe(self, path, value, **more)

        def mv(self: Any, one: str, two: str, **more: Any) -> None:
            Faulty.fault(f"move {two}")
            move(self, one, two, **more)

        def rm_file(self: Any, path: str) -> None:
            Faulty.fault(f"remove {path}")
            rm(self, path)

        for name, made in (("put_file", put_file), ("pipe_file", pipe_file), ("mv", mv), ("rm_file", rm_file)):
            monkeypatch.setattr(Local, name, made)
    operations, seen = 1, set[str]()
    at_operation = 0
    while at_operation < operations:
        url = f"faulty://bucket/{at_operation}" if scheme == "faulty" else f"file://{tmp_path}/store/{at_operation}"
        store, place, count = RemoteStore(url), working_folder(url), [0]
        hold = Mute(store)
        small_run(place, 1)
        mirror = remote.Mirror(store, place, hold, "me", SILENT)
        mirror.close()
        former = contents(place)
        small_run(place, 2)
        next_state = contents(place)
        assert at(url) == former and mirror.failure == ""

        def fault(what: str, count: list[int] = count, number: int = at_operation) -> None:
            count[0] += 1
            if count[0] > number:
                raise Killed(what)

        Faulty.fault = staticmethod(fault)
        second = remote.Mirror(store, place, hold, "me", SILENT)
        with monkeypatch.context() as silent:
            silent.setattr(threading, "excepthook", lambda args: None)
            second.close()
        Faulty.fault = staticmethod(lambda what: None)
        killed = count[0] > at_operation
        operations += killed
        found = at(url)
        assert found in (former, next_state), at_operation
        seen.add("former" if found == former else "next")
        if not killed:
            assert found == next_state
        # The next process makes it good, and nothing is left over.
        remote._clear(place)
        remote.Mirror(store, place, hold, "me", SILENT).close()
        assert at(url) == next_state
        whole_at(url)
        at_operation += 1
    assert at_operation >= 5 and seen == {"former", "next"}


class Mute(remote.Hold):
    """A hold without a lock, for one machine alone."""

    def __init__(self, store: RemoteStore) -> None:
        self.store, self.own, self.lost = store, "me", ""


def test_a_snapshot_is_of_one_moment(machine: Machine, faulty: type[Faulty]) -> None:
    """What is written, replaced or deleted while it is uploaded does not get into it."""
    url = "faulty://bucket/one"
    place = working_folder(url)
    small_run(place, 1)
    then, begun, go = contents(place), threading.Event(), threading.Event()

    def wait(what: str) -> None:
        begun.set()
        go.wait(60)

    faulty.fault = staticmethod(wait)
    mirror = remote.Mirror(RemoteStore(url), place, Mute(RemoteStore(url)), "me", SILENT)
    mirror.offer()
    assert begun.wait(60)
    small_run(place, 2)  # what was in the snapshot is deleted, replaced and added to
    states: dict[str, list[dict[str, bytes]]] = {"put": [], "remove": []}

    def look(what: str) -> None:
        if "step-000002" in what or (what.startswith("remove") and "/files/" in what):
            states[what.partition(" ")[0]].append(at(url))

    faulty.fault = staticmethod(look)
    go.set()
    mirror.close()
    assert states["put"] == [then], "the first upload is of the moment of its snapshot"
    assert states["remove"] == [contents(place)] * 2, "files go when no index names them"
    assert at(url) == contents(place) != then


def test_a_reader_of_a_state_that_is_replaced_gets_the_next_one(
    machine: Machine, faulty: type[Faulty], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "faulty://bucket/one"
    place = working_folder(url)
    small_run(place, 1)
    mirror = remote.Mirror(RemoteStore(url), place, Mute(RemoteStore(url)), "me", SILENT)
    mirror.close()
    get, replaced = RemoteStore.get, list[str]()

    def slow(self: RemoteStore, name: str, path: Path) -> None:
        if not replaced:
            replaced.append(name)
            small_run(place, 2)
            remote.Mirror(self, place, Mute(self), "me", SILENT).close()
        get(self, name, path)

    monkeypatch.setattr(RemoteStore, "get", slow)
    copy = local(url)
    assert (copy / "metrics.jsonl").read_bytes() == (place / "metrics.jsonl").read_bytes()
    assert [each.name for each in (copy / "checkpoints").iterdir()] == ["step-000002"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "index", "outside", "version"])
def test_what_is_damaged_is_named(damage: str, machine: Machine) -> None:
    place = working_folder(URL)
    small_run(place, 1)
    remote.Mirror(RemoteStore(URL), place, Mute(RemoteStore(URL)), "me", SILENT).close()
    store = MemoryFileSystem.store
    path = next(path for path in store if "adapter.safetensors" in path)
    assert path.startswith("/bucket/runs/one/files/checkpoints+step-000001+weights+adapter.safetensors.")
    whole, index = store[path].getvalue(), json.loads(store["/bucket/runs/one/index.json"].getvalue())
    fs = RemoteStore(URL).fs
    match damage:
        case "flipped":
            fs.pipe_file(path, bytes([whole[0] ^ 1]) + whole[1:])
        case "cut":
            fs.pipe_file(path, whole[:-1])
        case "missing":
            fs.rm_file(path)
        case "index":
            fs.pipe_file("/bucket/runs/one/index.json", b"{")
        case "outside":
            index["files"]["../../stolen"] = index["files"].pop("metrics.jsonl")
            fs.pipe_file("/bucket/runs/one/index.json", json.dumps(index).encode())
        case "version":
            fs.pipe_file("/bucket/runs/one/index.json", json.dumps({**index, "version": 2}).encode())
    machine("second")
    said = {"index": "index.json is not a JSON object", "outside": "index.json is damaged", "version": "of version 2"}
    said |= {"missing": "adapter.safetensors.* is missing"}
    wanted = said.get(damage, "adapter.safetensors.* is damaged")
    with pytest.raises(InputError, match=wanted) as raised, mirrored(URL, working_folder(URL), SILENT):
        pytest.fail("the run began")
    assert raised.value.fix
    assert not working_folder(URL).exists() and RemoteStore(URL).read(remote.LOCK) is None


# --- which of two ---


def test_two_machines_work_one_after_the_other(machine: Machine) -> None:
    with mirrored(URL, working_folder(URL), SILENT):
        held = RemoteStore(URL).read(remote.LOCK)
        assert held is not None and held.keys() == {"host", "pid", "time", "folder"}
        time.sleep(0.3)
        beaten = RemoteStore(URL).read(remote.LOCK)
        assert beaten is not None and beaten["time"] > held["time"], "no sign of life"
        with pytest.raises(Busy, match="another process here is at work"), mirrored(URL, working_folder(URL), SILENT):
            pytest.fail("two of one machine")
        machine("second")
        with pytest.raises(Busy, match=f"process {os.getpid()} on"), mirrored(URL, working_folder(URL), SILENT):
            pytest.fail("two machines")
    with mirrored(URL, working_folder(URL), SILENT):
        pass
    assert RemoteStore(URL).read(remote.LOCK) is None


def test_a_lock_is_held_where_a_store_cannot_refuse_to_overwrite(
    machine: Machine, faulty: type[Faulty], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, refused = "faulty://bucket/one", list[str]()

    def plain(self: Any, path: str, value: bytes, mode: str = "overwrite") -> None:
        if mode == "create":
            refused.append(path)
            raise NotImplementedError("A header you provided implies functionality that is not implemented")
        MemoryFileSystem.pipe_file(self, path, value, mode=mode)

    monkeypatch.setattr(Faulty, "pipe_file", plain)
    with mirrored(url, working_folder(url), SILENT):
        assert refused and RemoteStore(url).read(remote.LOCK) is not None
        machine("second")
        with pytest.raises(Busy), mirrored(url, working_folder(url), SILENT):
            pytest.fail("two machines")


def test_who_lost_the_run_stops_and_uploads_nothing_more(
    start: Start, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_takes_it(step: int) -> None:
        if step == 3:
            entry = {"host": "elsewhere", "pid": 7, "time": time.time(), "folder": "another"}
            RemoteStore(URL).write(remote.LOCK, entry)
            time.sleep(0.5)

    with pytest.raises(Busy, match="process 7 on elsewhere has taken this run over"):
        start(URL, *LORA, progress=Heard(another_takes_it))
    left = RemoteStore(URL).read(remote.LOCK)
    assert left is not None and left["pid"] == 7, "the lock of the other one was removed"
    index = RemoteStore(URL).index()
    assert index is None or index["step"] < 4


def test_it_says_which_of_two_is_taken(machine: Machine) -> None:
    def enter() -> list[str]:
        heard = Heard()
        with mirrored(URL, working_folder(URL), heard):
            pass
        return [line for line in heard.said if "taken" in line]

    place = working_folder(URL)
    small_run(place, 1)
    assert "there is no run at" in enter()[0]
    assert enter() == []
    small_run(place, 2)  # taken here, and not uploaded: the process was killed
    [said] = enter()
    assert "(step 2) is ahead of" in said and "(step 1)" in said
    mine = contents(place)
    assert at(URL) == mine
    machine("second")
    second = working_folder(URL)
    assert enter() == [] and contents(second) == mine
    small_run(second, 3)
    assert "(step 3) is ahead of" in enter()[0]
    machine("first")
    small_run(place, 4)  # it went on there as well
    [said] = enter()
    assert "another machine went on" in said and "(step 3) is taken, not the one" in said
    assert contents(place) == contents(second) == at(URL)
    # Another run in the folder is put aside, with all that it has.
    shutil.rmtree(place)
    small_run(place, 9, run="b" * 32)
    other = contents(place)
    [said] = enter()
    assert "is another one than" in said
    [aside] = [each for each in place.parent.iterdir() if each.is_dir() and each != place]
    assert aside.name in said and contents(aside) == other and contents(place) == at(URL)


# --- URLs and packages ---


@pytest.mark.parametrize(
    "url", ["s3://key:secret@bucket/x", "s3://secret@b/x", "memory://b/x?token=secret", "gs://b/x?key=secret#1"]
)
def test_a_url_with_credentials_is_refused_and_not_repeated(url: str, machine: Machine, tmp_path: Path) -> None:
    for attempt in (lambda: RunConfig.load(None, [f"run={url}"]), lambda: local(url), lambda: luthier.load(url)):
        with pytest.raises((ConfigError, InputError), match="credentials") as raised:
            attempt()
        assert "secret" not in str(raised.value)
    done = command("evaluate", url, cwd=tmp_path)
    assert done.returncode == 2 and "secret" not in done.stdout + done.stderr


def test_an_azure_container_is_no_user() -> None:
    assert remote.problem_of("abfss://container@account.dfs.core.windows.net/runs/a") == ""
    for url in ("s3://", "s3://bucket/../x", "s3:///"):
        assert "names no place" in remote.problem_of(url), url
    assert [remote.is_url(each) for each in ("C://x", "runs/a", "s3:/x", Path("s3://x"), "NAME=s3://b/x")] == [
        False
    ] * 5


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    import sys

    for package in ("s3fs", "gcsfs", "adlfs", "paramiko"):
        monkeypatch.setitem(sys.modules, package, None)
    for scheme in ("s3", "gs", "abfs", "sftp"):
        monkeypatch.delitem(_registry, scheme, raising=False)
    fixes = {
        "s3": "pip install 's3fs>=",
        "gs": "pip install gcsfs",
        "abfs": "pip install adlfs",
        "sftp": "pip install paramiko",
    }
    for scheme, fix in fixes.items():
        with pytest.raises(MissingExtra, match=f"{scheme}:// needs a package") as raised:
            local(f"{scheme}://bucket/run")
        assert fix in raised.value.fix
    with pytest.raises(InputError, match="s33:// cannot be opened"):
        local("s33://bucket/run")


def test_errors_of_a_store_are_explained(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> bytes:
        raise ConnectionError("no route to https://me:secret@host/")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    for attempt in (lambda: local(URL), lambda: mirrored(URL, working_folder(URL), SILENT).__enter__()):
        with pytest.raises(InputError, match="ConnectionError: no route") as raised:
            attempt()
        assert "credentials" in raised.value.fix and "secret" not in str(raised.value)


def test_only_a_run_that_trains_works_at_a_url(machine: Machine, tmp_path: Path) -> None:
    done = command("compare", "data=builtin:reviews", f"run={URL}", cwd=tmp_path)
    assert done.returncode == 2 and f"{URL} is a URL" in done.stderr


# --- a recipe at a URL ---

RECIPE = "memory://bucket/recipes/small.yaml"


def put(text: str) -> None:
    RemoteStore(RECIPE).fs.pipe_file("/bucket/recipes/small.yaml", text.encode())


def test_a_recipe_at_a_url_trains_the_run_of_a_recipe_in_a_file(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*COMMON, *LORA, f"model={shelf / 'model'}", f"data={shelf / 'rows.jsonl'}", "train.steps=2"]
    text = RunConfig.load(None, words).dump()
    Path("same.yaml").write_text(text)
    store = tmp_path / "store" / "small.yaml"
    store.parent.mkdir()
    store.write_text(text)
    done = command("train", f"file://{store}", cwd=tmp_path)
    assert done.returncode == 0 and Path("runs/small-lora/result.json").is_file(), done.stderr
    again = luthier.train(recipe=f"file://{store}", run="runs/small-lora", progress=False)
    assert again.path == Path("runs/small-lora"), "the same run, which is finished"
    luthier.train(recipe="same.yaml", run="runs/same", progress=False)
    wanted = ["small-lora: environment.json"]
    assert differences(Path("runs/same"), Path("runs/small-lora")) == wanted, "it has another command"
    put(text)
    assert luthier.plan(recipe=RECIPE, progress=False).steps == 2


@pytest.mark.parametrize(
    ("block", "key"),
    [
        ("model: ./base", "model.path"),
        ("data: rows.jsonl", "data.path"),
        ("data: {path: /rows.jsonl, validation: rows/held.csv}", "data.validation"),
        ("data: {path: /rows.jsonl, mix: [{path: ../more.jsonl}]}", "data.mix"),
    ],
)
def test_a_relative_path_in_it_is_refused_unless_the_command_line_gives_it(block: str, key: str) -> None:
    put(block)
    with pytest.raises(ConfigError, match=f"{key}: .* is relative, and a recipe at a URL lies in no folder") as raised:
        RunConfig.load(RECIPE)
    assert RECIPE in str(raised.value)
    own = "[{path: mine.jsonl}]" if key == "data.mix" else "mine.jsonl"
    assert "mine.jsonl" in RunConfig.load(RECIPE, [f"{key}={own}"]).dump()


@pytest.mark.parametrize("path", ["builtin:reviews", "owner/rows", "/all/rows.jsonl", "~/rows.jsonl"])
def test_a_path_that_is_the_same_everywhere_is_taken(path: str) -> None:
    put(f"data: {path}\nmodel: Qwen/Qwen2-0.5B")
    assert RunConfig.load(RECIPE).data.path == path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "small.yaml: no such recipe"),
        ("a: [", "small.yaml: no valid YAML"),
        ("train: {lrr: 1}", "small.yaml: one mistake"),
        ("# " + "x" * 2**20, "too much for a recipe"),
    ],
)
def test_what_is_wrong_with_it_names_the_url(text: str | None, said: str) -> None:
    if text is not None:
        put(text)
    with pytest.raises(InputError, match=said) as raised:
        RunConfig.load(RECIPE)
    assert "memory://bucket/recipes/small.yaml" in str(raised.value)


def test_code_that_it_names_is_not_run_unasked(tmp_path: Path) -> None:
    """As with a run folder: it may come from anybody."""
    (tmp_path / "check.py").write_text("def check(prompt, answer, reference): return True\n")
    check = f"evaluate.check={tmp_path / 'check.py'}"
    put(RunConfig.load(None, ["data=builtin:reviews", check]).dump())
    with pytest.raises(InputError, match="which nobody asked for on this command line") as raised:
        luthier.train(recipe=RECIPE, progress=False)
    assert check in raised.value.fix
    assert recipe_from({"evaluate": {"check": str(tmp_path / "check.py")}}, RECIPE, allow_code=False).config.evaluate
    assert recipe_from({}, RECIPE, allow_code=True).config.evaluate.check


# --- who reads a run ---


@pytest.fixture(scope="module")
def stored(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a finished run."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_CACHE", str(folder / "cache"))
        url = f"file://{folder}/store/runs/one"
        store = RemoteStore(url)
        mirror = remote.Mirror(store, whole, Mute(store), "me", SILENT)
        mirror.close()
        assert mirror.failure == ""
    return url


def test_python_reads_a_run_at_a_url(stored: str, machine: Machine, whole: Path) -> None:
    run = luthier.load(stored)
    assert run.finished and run.scores.to_dict() == luthier.load(whole).scores.to_dict()
    assert run.path.is_relative_to(machine("first")) and not any(
        each.is_file() for each in run.path.glob("checkpoints/**/*")
    )
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    fetched = luthier.load(stored)
    assert {path: path.stat().st_mtime_ns for path in fetched.path.rglob("*")} == before, "it was fetched again"
    assert fetched.generate("Say number 3 and dog.", max_new_tokens=3) == luthier.load(whole).generate(
        "Say number 3 and dog.", max_new_tokens=3
    )
    exported = run.export("adapter")
    assert exported.path.is_relative_to(run.path)
    url = at(stored)
    scores = run.evaluate(rows=1)
    assert scores.to_dict() != luthier.load(whole).scores.to_dict()
    assert at(stored) == url, "the run at the URL was changed"
    assert luthier.load(stored).path == run.path and exported.path.is_dir()


def test_every_command_reads_a_run_at_a_url(stored: str, machine: Machine, tmp_path: Path) -> None:
    env = {"LUTHIER_CACHE": str(tmp_path / "first")}
    folder = stored.rpartition("/")[0]
    for words, said in (
        (("runs", folder), "one"),
        (("runs", folder, "--json"), f'"run": "{stored}"'),
        (("watch", stored), "finished"),
        (("evaluate", stored, "evaluate.rows=1"), "report:"),
        (("cache",), "remote-"),
        (("export", stored, "--to", "adapter"), "exports/adapter"),
        (("chat", stored, "--prompt", "Say number 3 and dog.", "--max-new-tokens", "2"), ""),
        (("track", stored), "its recipe names no tracker"),
        (("cache", "--clear"), "0 MiB freed"),  # what was exported stays
    ):
        done = command(*words, cwd=tmp_path, env=env)
        assert said in done.stdout + done.stderr, done.stdout + done.stderr
        assert done.returncode == (2 if words[0] == "track" else 0), done.stdout + done.stderr
    missing = command("evaluate", f"{folder}/two", cwd=tmp_path, env=env)
    assert missing.returncode == 2 and f"there is no run at {folder}/two" in missing.stderr


def test_a_run_starts_from_one_at_a_url(stored: str, start: Start, machine: Machine, tmp_path: Path) -> None:
    start(tmp_path / "next", f"method.from_adapter={stored}", "train.steps=1")
    recipe = RunConfig.load(tmp_path / "next" / "recipe.yaml")
    assert recipe.method.model_dump()["from_adapter"] == str(local(stored) / "adapter")


def test_a_run_is_seen_while_it_trains_elsewhere(start: Start, machine: Machine) -> None:
    seen: list[Any] = []

    def look(step: int) -> None:
        if step == 6:
            ends = time.monotonic() + 60
            while (RemoteStore(URL).index() or {}).get("step", 0) < 5 and time.monotonic() < ends:
                time.sleep(0.01)
            seen.extend(find_runs("memory://bucket"))

    start(URL, *LORA, progress=Heard(look))
    [state] = seen
    assert (state.state, state.run, state.steps) == ("running", URL, 8) and state.step >= 5
    [state] = find_runs("memory://bucket")
    assert state.state == "finished" and state_of(local(URL, small=True)).step == 8


def test_a_run_at_a_url_is_sent_to_a_tracker(stored: str, machine: Machine) -> None:
    kept = Memory()
    track(stored, kept)
    assert sorted({step for step, _ in kept._log}) == [*range(1, 9)]
