"""Runs at a URL that fsspec reads and writes: s3://bucket/name, gs://, abfs://, file://, memory://.

A run works in a folder of the cache and is uploaded from there. At its URL lie

    index.json   the files of the run, each with its bytes and SHA-256; written last, as a whole
    files/       the files, each named by its path and the first digits of its SHA-256, so none is ever overwritten
    lock.json    the process that works on the run

A reader therefore sees one state of the run or the next, and an upload that is killed leaves the former state whole.
Files that the index does not name are removed after it is written.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from luthier.core import files
from luthier.core.errors import Busy, InputError, MissingExtra, NotUploaded, did_you_mean, first_line, install
from luthier.core.events import SILENT, Listeners, Progress
from luthier.core.resources import no_space
from luthier.core.shell import redacted
from luthier.core.strict_json import to_json

BEAT, STALE = 30.0, 300.0
"""Seconds between two signs of life in lock.json, and without one after which another process takes the run over."""
WAITS = 2.0, 10.0
"""Seconds before an upload that failed is tried again; it is given up when all of them have passed."""
NICE = 19
"""Priority of the thread that uploads: the lowest."""
INDEX, LOCK, FILES, NOTES = "index.json", "lock.json", "files", "remote.json"
PATIENCE = 3600.0
"""Seconds to wait for another process that fetches the same run."""
VERSION = 1
"""Of the layout at a URL."""
WRITTEN_IN_PLACE = "metrics.jsonl", "loss.png"
"""Files of a run that change without a new file taking their name."""
NOT_UPLOADED = "exports"
"""The folder of a run that stays where it was made."""
BUCKETS = "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"
"""Schemes of stores without folders, where an object is there as a whole or not at all."""
RESTORE = "restore it from a copy; or delete it and rerun the command of the run on the machine that wrote it"
DEEPEST = 3
"""Levels below a URL in which runs are looked for."""
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://(.*)", re.DOTALL)  # one letter is a drive of Windows
_PART = re.compile(r"(?!\.)[^\\/\x00-\x1f]+")
_SHA = re.compile(r"[0-9a-f]{64}")


def is_url(given: object) -> bool:
    """Is it a URL, not a folder?"""
    return isinstance(given, str) and _URL.match(given) is not None


def problem_of(url: str) -> str:
    """Why a URL cannot be that of a run; empty where it can. The URL is not repeated, for it may hold a secret."""
    found = _URL.fullmatch(url)
    assert found is not None
    host = found[2].split("/", 1)[0]
    if "?" in found[2] or "#" in found[2] or ("@" in host and (":" in host or not found[1].startswith("abfs"))):
        return "a URL with a user, a password or a query is refused: give credentials by environment or configuration"
    if not found[2].strip("/") or {".", ".."} & set(found[2].split("/")):
        return "the URL names no place for a run: SCHEME://BUCKET/NAME"
    return ""


def _place(url: str, kind: str) -> Path:
    """The folder in the cache for a URL, whose own name is the last one of the URL."""
    url = url.rstrip("/")
    name = re.sub(r"[^\w.-]", "_", url.rpartition("/")[2]).lstrip(".") or "run"
    return files.cache_root() / f"{kind}-{hashlib.sha256(url.encode()).hexdigest()[:16]}" / name


def first_bytes(url: str, most: int) -> bytes | None:
    """At most so many bytes of a file at a URL; None where there is none. InputError where it cannot be read."""
    store = RemoteStore(url)
    with store.explained():
        try:
            return bytes(store.fs.cat_file(store.root, end=most))
        except FileNotFoundError:
            return None


def working_folder(url: str) -> Path:
    """The folder in which this machine works on the run at a URL."""
    return _place(url, "run")


class RemoteStore:
    """The place that a URL names."""

    def __init__(self, url: str) -> None:
        if what := problem_of(url):
            raise InputError(what)
        import fsspec

        self.url, self.scheme = url.rstrip("/"), url.partition("://")[0].lower()
        try:
            self.fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            package = re.search(r"(?:nstall (?:the )?|requires )[\"']?([\w\[\]-]+)", str(error))
            fix = f"pip install {package[1]}" if package else first_line(error)
            fix = install("s3") if self.scheme in ("s3", "s3a") else fix
            raise MissingExtra(f"{self.scheme}:// needs a package that is not installed", fix=fix) from None
        except ValueError as error:
            near = did_you_mean(self.scheme, fsspec.available_protocols())
            what = f"{self.scheme}:// cannot be opened{near}: {redacted(first_line(error))}"
            raise InputError(what, fix="s3://, gs://, abfs://, file://, or another scheme of fsspec") from None
        self.root = str(root).rstrip("/")

    @contextmanager
    def explained(self, place: Path | None = None) -> Iterator[None]:
        """Errors of the store, whatever their class, become InputError; a full disk at `place` stays one."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            if (full := no_space(error, place)) is not None:
                raise full from error
            what = f"{self.url}: {type(error).__name__}: {redacted(first_line(error))}"
            raise InputError(what, fix="check the URL, the network and the credentials") from error

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON object; None where it is not there."""
        try:
            found = json.loads(self.fs.cat_file(f"{self.root}/{name}"))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            fix = f"delete {name} there, or restore it from a copy"
            raise InputError(f"{self.url}/{name} is not a JSON object", fix=fix)
        return found

    def write(self, name: str, value: Mapping[str, Any], *, new: bool = False) -> None:
        """Write a JSON object as a whole. FileExistsError where it is to be `new` and is not."""
        text, path = (to_json(value, ensure_ascii=False, indent=1) + "\n").encode(), f"{self.root}/{name}"
        self._make(self.root)
        if new or self.scheme in BUCKETS:
            self.fs.pipe_file(path, text, mode="create" if new else "overwrite")
        else:
            self.fs.pipe_file(f"{path}.new", text)
            self.fs.mv(f"{path}.new", path)

    def sizes(self) -> dict[str, int]:
        """The files there -> bytes of each."""
        try:
            found = self.fs.ls(f"{self.root}/{FILES}", detail=True)
        except FileNotFoundError:
            return {}
        return {each["name"].rpartition("/")[2]: each["size"] or 0 for each in found}

    def put(self, path: Path, name: str) -> None:
        """Upload a file."""
        self._make(f"{self.root}/{FILES}")
        self.fs.put_file(str(path), f"{self.root}/{FILES}/{name}")

    def get(self, name: str, path: Path) -> None:
        """Download a file. InputError where it is not there."""
        try:
            self.fs.get_file(f"{self.root}/{FILES}/{name}", str(path))
        except FileNotFoundError:
            raise InputError(f"{self.url}/{FILES}/{name} is missing", fix=RESTORE) from None

    def remove(self, names: Iterable[str]) -> None:
        """Delete files; what fails is left for the next time."""
        for name in names:
            with suppress(Exception):
                self.fs.rm_file(f"{self.root}/{name}")

    def _make(self, folder: str) -> None:
        if self.scheme not in BUCKETS:
            self.fs.makedirs(folder, exist_ok=True)

    def index(self) -> dict[str, Any] | None:
        """The state at the URL; None where there is none yet. InputError where it is none that can be taken."""
        found = self.read(INDEX)
        if found is None:
            return None
        if found.get("version") != VERSION:
            what = f"{self.url}/{INDEX} is of version {found.get('version')!r}, and this Luthier reads {VERSION}"
            raise InputError(what, fix="install the version of Luthier that wrote it")
        try:
            whole = all(
                all(map(_PART.fullmatch, name.split("/"))) and _SHA.fullmatch(entry["sha256"]) and entry["bytes"] >= 0
                for name, entry in found["files"].items()
            )
            known = {"run": str, "step": int, "finished": bool, "time": float, "by": str}
            whole = whole and all(isinstance(found[key], kind) for key, kind in known.items())
        except (KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise InputError(f"{self.url}/{INDEX} is damaged", fix="restore it from a copy, or choose another URL")
        return found

    def runs_below(self, depth: int = DEEPEST) -> list[str]:
        """The URL of each run at this one and below it."""
        with self.explained():
            return [self.url + path.removeprefix(self.root) for path in self._runs(self.root, depth)]

    def _runs(self, path: str, depth: int) -> Iterator[str]:
        try:
            found = self.fs.ls(path or self.fs.root_marker, detail=True)
        except FileNotFoundError:
            return
        if any(each["name"].rstrip("/").endswith(f"/{INDEX}") for each in found):
            yield path
        elif depth:
            for each in sorted(each["name"].rstrip("/") for each in found if each["type"] == "directory"):
                yield from self._runs(each, depth - 1)


def _object(name: str, sha256: str) -> str:
    """The name at the URL of a file of the run."""
    return f"{name.replace('/', '+')}.{sha256[:16]}"


def _digest(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json(index, sort_keys=True).encode()).hexdigest()


def _files_of(folder: Path) -> dict[str, Path]:
    """Name -> path of each file of a run that is uploaded: no locks, and nothing that is half-written or damaged."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in found.items()
        if name.parts[0] != NOT_UPLOADED and not any(p.startswith(".") or p.endswith(".corrupt") for p in name.parts)
    }


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where it may change or the file system has no such names."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.name not in WRITTEN_IN_PLACE:
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)


def _step(names: Iterable[str]) -> int:
    """The step of the newest checkpoint among the files of a run."""
    return max((int(found[1]) for name in names if (found := re.match(r"checkpoints/step-(\d+)/", name))), default=0)


def _notes(place: Path) -> dict[str, Any]:
    """What is kept beside the folder of a run: its URL, and the state there that the folder was fetched from."""
    path = place.with_name(NOTES)
    return dict(files.read_object(path, f"delete {path.parent}")) if path.is_file() else {}


def _partial(place: Path) -> tuple[Path, Path]:
    """Where the new state of a folder is put together, and where the old one waits for it."""
    return place.with_name(".new.partial"), place.with_name(".old.partial")


def _replace(place: Path) -> None:
    """Let the new state of a folder take its place; what was exported there stays. A kill is made good by `_clear`."""
    new, old = _partial(place)
    if place.exists():
        place.rename(old)
    if (old / NOT_UPLOADED).is_dir():
        (old / NOT_UPLOADED).rename(new / NOT_UPLOADED)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _clear(place: Path) -> None:
    """Remove what a process that was killed left beside the folder of a run. Only for who holds its lock."""
    new, old = _partial(place)
    if old.is_dir() and new.is_dir() and not place.exists():
        _replace(place)
    for left in place.parent.glob(".*.partial"):
        shutil.rmtree(left, ignore_errors=True)


def _fetch(
    store: RemoteStore, index: dict[str, Any], place: Path, wanted: Callable[[str], bool], progress: Progress
) -> None:
    """Let the folder `place` hold this state, with the files that are `wanted`; those that it has are not fetched.

    It is replaced as a whole. InputError where a file is missing or damaged.
    """
    new, missing = _partial(place)[0], []
    for name, entry in index["files"].items():
        there, target = place / name, new / name
        target.parent.mkdir(parents=True, exist_ok=True)  # the name of a checkpoint says what is at the URL
        if there.is_file() and there.stat().st_size == entry["bytes"] and files.sha256(there) == entry["sha256"]:
            _link(there, target)
        elif wanted(name):
            missing.append((name, entry, target))
    if missing:
        size = sum(entry["bytes"] for _, entry, _ in missing) / 2**20
        progress.stage(f"fetching {len(missing)} files ({size:,.1f} MiB) of {store.url}")
    for name, entry, target in missing:
        named = _object(name, entry["sha256"])
        with store.explained(place):
            store.get(named, target)
        if target.stat().st_size != entry["bytes"] or files.sha256(target) != entry["sha256"]:
            what = f"{store.url}/{FILES}/{named} is damaged: it is not {name} as the run wrote it"
            raise InputError(what, fix=RESTORE)
        os.utime(target, (index["time"],) * 2)
    _replace(place)


def local(given: str | os.PathLike[str], progress: Progress = SILENT, *, small: bool = False) -> Path:
    """The folder that `given` names; for a URL a copy of the run there, in the cache, as it is now.

    The copy has no checkpoints, and with `small` only the files at the top of the run. What is written into it stays on
    this machine, until the run at the URL changes. InputError where there is no run, or a file is damaged.
    """
    if not is_url(given):
        return Path(given)
    store = RemoteStore(str(given))
    place = _place(store.url, "remote")
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    busy = Busy(f"{place.parent}: another process is fetching {store.url}", fix="wait for it")

    def wanted(name: str) -> bool:
        return "/" not in name if small else not name.startswith("checkpoints/")

    with files.lock(place.parent, busy, PATIENCE):
        _clear(place)
        with store.explained():
            index = store.index()
        while index is not None:
            state, needed = _digest(index), [name for name in index["files"] if wanted(name)]
            if _notes(place).get("state") == state and all((place / name).is_file() for name in needed):
                break
            try:
                _fetch(store, index, place, wanted, progress)
            except InputError:
                with store.explained():
                    now = store.index()
                if now == index:
                    raise
                index = now  # a new state has taken the place of the one that was read
                _clear(place)
            else:
                files.write_json(place.with_name(NOTES), {"url": store.url, "state": state})
        else:
            raise InputError(f"there is no run at {store.url}", fix="the URL that a run was trained with: run=URL")
        os.utime(place.parent)  # it was used
    return place


def copied_from(place: Path) -> str:
    """The URL that a folder is a copy of; empty where it is none."""
    return str(_notes(place).get("url", "")) if place.parent.name.startswith("remote-") else ""


def at_work(url: str) -> bool:
    """Is a process at work on the run at a URL?"""
    store = RemoteStore(url)
    with store.explained():
        holder = store.read(LOCK)
    return holder is not None and _silence(holder) < STALE


def _silence(holder: Mapping[str, Any]) -> float:
    """Seconds since the last sign of life of a process that holds a run; without end where it left none."""
    last = holder.get("time")
    return time.time() - last if isinstance(last, int | float) else float("inf")


def _who(holder: Mapping[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')}"


class Hold:
    """lock.json at a URL: keeps other machines out of the run, and shows them a sign of life every BEAT seconds."""

    def __init__(self, store: RemoteStore, own: str, progress: Progress) -> None:
        """Busy where another machine works on the run. `own` names the folder here: its lock keeps processes out."""
        self.store, self.own, self.lost, self._ended = store, own, "", threading.Event()
        with store.explained():
            holder = store.read(LOCK)
            if holder is not None and holder.get("folder") != own:
                if (silence := _silence(holder)) < STALE:
                    raise self._busy(holder)
                silent = f"for {silence:,.0f} s" if silence < float("inf") else "at all"
                progress.warn(f"{store.url}: {_who(holder)} gave no sign of life {silent}; the run is taken over")
            try:
                store.write(LOCK, self._entry(), new=holder is None)
            except FileExistsError:  # another one was faster
                pass
            except Exception:  # a store that cannot refuse to overwrite; or it fails once more
                store.write(LOCK, self._entry())
            holder = store.read(LOCK) or {}
            if holder.get("folder") != own:
                raise self._busy(holder)
        self._thread = threading.Thread(target=self._beat, daemon=True, name="luthier-hold")
        self._thread.start()

    def _entry(self) -> dict[str, Any]:
        return {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time(), "folder": self.own}

    def _busy(self, holder: Mapping[str, Any]) -> Busy:
        left = STALE - _silence(holder)
        wait = f"stop it, or wait: without a sign of life the run is free in {left:,.0f} s; or choose another run=URL"
        return Busy(f"{self.store.url}: {_who(holder)} is at work on this run", fix=wait)

    def check(self) -> None:
        """Busy where another machine has taken the run over, because this one gave no sign of life for too long."""
        if not self.lost:
            self._look()
        if self.lost:
            what = f"{self.store.url}: {self.lost} has taken this run over, because it saw no sign of life from here"
            raise Busy(what, fix="let it go on; what was trained here since the last upload is not at the URL")

    def _look(self) -> None:
        holder = self.store.read(LOCK)
        if holder is not None and holder.get("folder") != self.own:
            self.lost = _who(holder)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT) and not self.lost:
            with suppress(Exception):  # the network may be back at the next beat
                self._look()
                if not self.lost and not self._ended.is_set():
                    self.store.write(LOCK, self._entry())

    def release(self) -> None:
        """Let other machines work on the run."""
        self._ended.set()
        self._thread.join(BEAT)  # it may be in the middle of a write
        with suppress(Exception):
            self._look()
            if not self.lost:
                self.store.remove([LOCK])


class Mirror(Progress):
    """Uploads a run while it trains: a listener that makes a snapshot, and a thread that uploads it.

    A snapshot that waits is replaced by a newer one, so training never waits for an upload.
    """

    def __init__(self, store: RemoteStore, place: Path, hold: Hold, own: str, report: Progress) -> None:
        self.store, self.place, self.hold, self.own, self.report = store, place, hold, own, report
        self.failure = ""
        """Why the last upload failed; empty where it did not."""
        self._reported, self._count = "", 0
        self._waiting: Path | None = None
        self._known: dict[tuple[str, int, int], str] = {}
        """(name, bytes, time of change) -> SHA-256: a checkpoint that stays is read once."""
        self._changed, self._last, self._stop = threading.Condition(), False, threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="luthier-upload")
        self._thread.start()

    def saved(self, step: int) -> None:
        """A checkpoint is whole."""
        self._offer_or_warn()

    def evaluated(self, step: int, loss: float, best: bool) -> None:
        """The held-out loss was measured."""
        self._offer_or_warn()

    def record(self, line: dict[str, Any]) -> None:
        """A step was taken. Busy where another machine has taken the run over."""
        if self.hold.lost:
            self.hold.check()
        if (failure := self.failure) and failure != self._reported:
            self.report.warn(f"the upload to {self.store.url} failed: {failure}; the run goes on and will try again")
        self._reported = failure

    def _offer_or_warn(self) -> None:
        try:
            self.offer()
        except OSError as error:
            self.report.warn(f"nothing was uploaded to {self.store.url}: {error}")

    def offer(self) -> None:
        """Let the thread upload the run as it is now."""
        if not (self.place / "recipe.yaml").is_file():
            return  # the run failed before it began
        self._count += 1
        snapshot = self.place.with_name(f".{self._count}.partial")
        for name, path in _files_of(self.place).items():
            _link(path, snapshot / name)
        with self._changed:
            self._waiting, former = snapshot, self._waiting
            self._changed.notify()
        if former is not None:
            shutil.rmtree(former, ignore_errors=True)

    def close(self) -> None:
        """Upload the run as it is now, and wait for it."""
        self.report.stage(f"uploading to {self.store.url}")
        self.offer()
        with self._changed:
            self._last = True
            self._changed.notify()
        self._thread.join()

    def abandon(self) -> None:
        """Upload nothing more."""
        self._stop.set()
        with self._changed:
            self._last = True
            self._changed.notify()

    def _work(self) -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._last)
                snapshot, self._waiting = self._waiting, None
            if snapshot is None or self._stop.is_set():
                return
            self._try(snapshot)
            shutil.rmtree(snapshot, ignore_errors=True)

    def _try(self, snapshot: Path) -> None:
        for wait in (*WAITS, None):
            try:
                self._upload(snapshot)
                self.failure = ""
                return
            except Exception as error:
                self.failure = redacted(f"{type(error).__name__}: {first_line(error)}")
                if wait is None or isinstance(error, Busy) or self._stop.wait(wait):
                    return

    def _upload(self, snapshot: Path) -> None:
        names = _files_of(snapshot)
        hashes = {name: self._sha(name, path) for name, path in names.items()}
        entries = {name: {"bytes": path.stat().st_size, "sha256": hashes[name]} for name, path in names.items()}
        there, objects = self.store.sizes(), {_object(name, hashes[name]): path for name, path in names.items()}
        for named, path in objects.items():
            if self._stop.is_set():
                return
            if there.get(named) != path.stat().st_size:
                self.store.put(path, named)
        index: dict[str, Any] = {"version": VERSION, "run": _run_of(snapshot), "step": _step(names)}
        index |= {"finished": "result.json" in names, "time": time.time(), "by": self.own, "files": entries}
        self.hold.check()
        if self._stop.is_set():
            return
        before = self.store.read(INDEX)
        if before is None or {**before, "time": index["time"]} != index:
            self.store.write(INDEX, index)
        self.store.remove(f"{FILES}/{each}" for each in there if each not in objects)

    def _sha(self, name: str, path: Path) -> str:
        status = path.stat()
        key = (name, status.st_size, status.st_mtime_ns)
        if key not in self._known:
            self._known[key] = files.sha256(path)
        return self._known[key]


def _run_of(place: Path) -> str:
    return str(files.read_object(place / "run.json")["run"])


@contextmanager
def mirrored(url: str, place: Path, progress: Progress) -> Iterator[Progress]:
    """Within, the run in the folder `place` is also at `url`: what is there is fetched first, and what is new uploaded.

    Nothing is done where `url` is no URL. Listeners of the run are reported to by what is yielded. Busy where another
    process works on the run, NotUploaded where all went well but the last upload.
    """
    if not is_url(url):
        yield progress
        return
    store = RemoteStore(url)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    busy = Busy(f"{store.url}: another process here is at work on this run", fix="wait for it or stop it, or run=URL_2")
    with files.lock(place.parent, busy):
        _clear(place)
        notes = _notes(place) or {"url": store.url, "folder": secrets.token_hex(8), "state": ""}
        files.write_json(place.with_name(NOTES), notes)
        hold = Hold(store, notes["folder"], progress)
        try:
            _settle(store, place, notes, progress)
            progress.note(f"the run works in {place} and is uploaded to {store.url}")
            mirror = Mirror(store, place, hold, notes["folder"], progress)
            try:
                yield Listeners(progress, mirror)
                mirror.close()
            except Exception:
                if not hold.lost:
                    with suppress(OSError):  # why the run stopped matters more
                        mirror.close()
                if mirror.failure:
                    progress.warn(f"the upload to {store.url} failed: {mirror.failure}; the run is in {place}")
                raise
            finally:
                mirror.abandon()
            if mirror.failure:
                what = f"the run is finished in {place}, and its upload to {store.url} failed: {mirror.failure}"
                raise NotUploaded(what, fix="rerun the same command, which uploads what is missing")
        finally:
            hold.release()


def _settle(store: RemoteStore, place: Path, notes: dict[str, Any], progress: Progress) -> None:
    """Let the folder hold the state at the URL, unless it is that state or goes on from it; says which is taken."""
    with store.explained():
        index = store.index()
    here = (place / "recipe.yaml").is_file()
    if index is None:
        if here:
            progress.note(f"there is no run at {store.url}; the one in {place} is taken, and uploaded")
        return
    theirs, state = f"the run at {store.url} (step {index['step']})", _digest(index)
    if here:
        names = _files_of(place)
        own, step = f"the one in {place} (step {_step(names)})", _step(names)
        if _run_of(place) != index["run"]:
            aside = place.with_name(f"{place.name}-{time.strftime('%Y%m%d-%H%M%S')}")
            progress.warn(f"{theirs} is another one than {own}: it is taken, and the folder is renamed to {aside.name}")
            place.rename(aside)
        elif notes["folder"] == index["by"] or notes["state"] == state:
            if step > index["step"] or ("result.json" in names) > index["finished"]:
                progress.note(f"{own} is ahead of {theirs}: it is taken, and uploaded")
            return
        else:
            progress.warn(f"another machine went on with the run: {theirs} is taken, not {own}")
    _fetch(store, index, place, lambda name: True, progress)
    files.write_json(place.with_name(NOTES), {**notes, "state": state})
