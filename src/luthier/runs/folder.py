"""The run folder: everything that evaluate, chat, resume and export need, under fixed names."""

import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from luthier.core import files
from luthier.core.errors import Busy, InputError, did_you_mean
from luthier.core.resources import no_access
from luthier.core.shell import shell_line
from luthier.core.strict_json import to_json
from luthier.data.store import Refusal
from luthier.evaluation.records.settings import EvaluateConfig
from luthier.models.settings import ModelConfig
from luthier.runs.provenance import base_hashes, changes, environment, local_copy
from luthier.runs.remote import local

FIRST = {".lock", ".holder", "environment.json", "run.json"}
FIRST |= {f".{name}.staging" for name in ("environment.json", "run.json", "recipe.yaml")}
"""What a process that was killed at the very start can have left: no reason to refuse the folder."""


class Ledger:
    """run.json: which run a folder is, and hashes of the files that decide what comes of it.

    A hash here is no signature: it finds a file that was edited, cut short or swapped with another run's, and does not
    stop anyone who also edits run.json. A folder from before there was a run.json is taken as it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, recipe: dict[str, Any]) -> None:
        """Give the folder the identity of a new run with this recipe."""
        files.write_json(self.path, {"run": secrets.token_hex(16), "recipe": recipe, "files": {}})

    def read(self) -> dict[str, Any]:
        """{"run", "recipe", "files"}; run is "" where the folder has no run.json."""
        if not self.path.is_file():
            return {"run": "", "recipe": None, "files": {}}
        fix = "restore it from a copy, or delete it: then nothing is known of edited files"
        found = files.read_object(self.path, fix)
        if [type(found[key]) for key in ("run", "recipe", "files")] != [str, dict, dict]:
            raise InputError(f"{self.path}: 'run' must be text, 'recipe' and 'files' objects")
        return found

    @property
    def run(self) -> str:
        """Identity of the run, which its checkpoints and its adapter also carry."""
        return str(self.read()["run"])

    def commit(self, path: Path) -> None:
        """Let what stands in `files.staging_of(path)` take its name, and keep its hash.

        The hash is kept first, beside that of the file it replaces: a kill between the two leaves either file known.
        """
        if self.path.is_file():
            entries = self.read()
            hashes = [files.sha256(file) for file in (files.staging_of(path), path) if file.is_file()]
            files.write_json(self.path, {**entries, "files": {**entries["files"], path.name: hashes}})
        files.put(path)

    def fault(self, path: Path) -> str:
        """What is wrong with a file of the run; empty where it is as the run wrote it, or nothing is known of it."""
        known = self.read()["files"].get(path.name)
        if not path.is_file():
            return "is missing" if known else ""
        try:
            return "was changed after the run wrote it" if known and files.sha256(path) not in known else ""
        except PermissionError as error:
            raise no_access(error) from None
        except OSError as error:
            return f"cannot be read: {error.strerror}"


class RunFolder:
    """Paths and small files of one run; its weights lie in adapter/ (method full: model/), in PEFT's format."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"  # the resolved recipe; loading it gives the same run
        self.environment = path / "environment.json"  # versions, machine, command, hashes of the base
        self.ledger = Ledger(path / "run.json")
        self.data = path / "data.json"  # account of every row, format, template, fingerprint
        self.held_out = path / "held_out.jsonl"  # the held-out rows with their tokens
        self.refused = path / "refused.jsonl"  # rows left out by policy, whole, with the reason
        self.plan = path / "plan.json"  # what the recipe left open, as decided; planned memory and time
        self.metrics = path / "metrics.jsonl"  # a line per step, a line per evaluation
        self.samples = path / "samples.jsonl"  # what the model answered to a few prompts at each evaluation
        self.before = path / "before.json"  # the base's scores and answers on the held-out rows
        self.checkpoints = path / "checkpoints"  # step-000100/..., each whole or not there
        self.predictions = path / "predictions.jsonl"  # what base and tuned model say on each held-out row
        self.loss_png = path / "loss.png"
        self.report = path / "report.html"
        self.result = path / "result.json"
        self.trackers = path / "trackers.json"  # what each tracker has of the run
        self.harness = path / "harness.json"  # what lm-evaluation-harness measured

    @classmethod
    def existing(cls, given: str | os.PathLike[str]) -> "RunFolder":
        """The folder of a finished or interrupted run, for a URL a copy of it; InputError where it is none."""
        path = local(given)
        folder = cls(path)
        if not folder.recipe.is_file():
            near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
            what = "is no run folder (it has no recipe.yaml)" if path.is_dir() else f"does not exist{near}"
            raise InputError(f"{path} {what}", fix="give the folder that `luthier train` printed")
        return folder

    def weights(self) -> Path:
        """The finished weights, whole as they were written; InputError where they are damaged or not there yet."""
        train = shell_line("luthier", "train", self.recipe)
        for name in ("adapter", "model"):
            if (self.path / name).is_dir() and self.result.is_file():
                if what := files.fault(self.path / name, run=self.ledger.run, others=True):
                    raise InputError(f"{self.path / name} is damaged: {what}", fix=self._restore(self.result))
                return self.path / name
        missing = "adapter or model folder" if self.result.is_file() else self.result.name
        raise InputError(f"{self.path}: the run has no finished weights yet: there is no {missing}", fix=train)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and keep every other process out. The system lets go of it when this process dies."""
        why = f"{self.path}: another process is at work on this run"
        busy = Busy(why, fix="wait for it or stop it, or choose another folder with run=DIR")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            strangers = [] if self.recipe.is_file() else sorted({each.name for each in self.path.iterdir()} - FIRST)
            if strangers:
                what = f"is not empty and no run of Luthier's ({', '.join(strangers[:3])})"
                raise InputError(f"{self.path} {what}", fix="run=DIR")
            lock = files.lock(self.path, busy)
        except OSError as error:
            raise InputError(
                f"run: cannot write in the folder {self.path}: {error.strerror}",
                fix="run=DIR where it is to be trained; a finished run of another user has to be copied first",
            ) from None
        with lock:
            for left in self.path.glob(".*.staging"):  # of a process that was killed
                left.unlink()
            own = psutil.Process()
            told = {"host": socket.gethostname(), "pid": own.pid, "born": own.create_time()}
            (self.path / ".holder").write_text(to_json(told), encoding="utf-8")
            try:
                yield
            finally:
                (self.path / ".holder").unlink(missing_ok=True)

    def holder(self) -> int | None:
        """Number of the process that holds the folder; None where there is none, or not on this machine."""
        try:
            told = self._holder()
            alive = told["host"] == socket.gethostname() and psutil.Process(told["pid"]).create_time() == told["born"]
            return int(told["pid"]) if alive else None
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            return None

    def other_host(self) -> str:
        """Name of the machine that held the folder last; empty where it is this one, or nothing is known."""
        try:
            host = str(self._holder()["host"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return "" if host == socket.gethostname() else host

    def _holder(self) -> Any:
        return json.loads((self.path / ".holder").read_text(encoding="utf-8"))

    def write_json(self, path: Path, value: Any) -> None:
        """Replace a JSON file of the run as a whole, and keep its hash."""
        files.write_json(path, value, self.ledger.commit)

    def write_jsonl(self, path: Path, rows: Iterable[Any]) -> None:
        """Replace a JSON-lines file of the run as a whole, and keep its hash."""
        files.write_jsonl(path, rows, self.ledger.commit)

    def checked(self, path: Path) -> Path:
        """`path`, a file of the run, where it is as the run wrote it; InputError else."""
        if what := self.ledger.fault(path):
            raise InputError(f"{path} {what}", fix=self._restore(path))
        return path

    def read_json(self, path: Path) -> files.JsonObject:
        """What stands in a JSON file of the run; InputError where it is not as the run wrote it."""
        return files.read_object(self.checked(path), self._restore(path))

    def _restore(self, path: Path) -> str:
        if path == self.result:
            again = f"{shell_line('rm', path)} && {shell_line('luthier', 'train', self.recipe)}"
            return f"{again}: it is written again from the checkpoint"
        return f"restore {path.name} from a copy of the run, or train in another folder: run=DIR"

    def changes(self) -> list[str]:
        """What of versions and machine is not as at the start."""
        return changes(self._environment())

    def changed_check(self, evaluate: EvaluateConfig) -> list[str]:
        """That evaluate.check is not the file with which the run was started, where that is so."""
        then, now = self._environment().get("check"), checked(evaluate).get("check")
        if evaluate.check is None or then in (None, now):
            return []
        return [f"evaluate.check: {evaluate.check} has SHA-256 {now}; the file at the start had {then}"]

    def refuse_another_base(self, model: ModelConfig, source: str) -> None:
        """Keep hashes of the base's files, or compare them with those kept. InputError where the base is another."""
        there, kept = local_copy(source, model.revision), self._environment()
        if there is None:
            return
        now = base_hashes(there, weights=model.init == "pretrained")
        if "base" not in kept:
            self.write_json(self.environment, {**(kept or environment()), "base": now})
            return
        then = kept["base"]
        # What was fetched since into the snapshot of a commit is no change.
        names = then.keys() | now.keys() if there == Path(source) else then.keys()
        if changed := sorted(name for name in names if then.get(name) != now.get(name)):
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise InputError(
                f"model.path: {model.path} is not the base that the run was started from; changed: "
                f"{', '.join(changed[:5])}{more}",
                fix="restore the base, or start another run with run=ANOTHER_DIR",
            )

    def refuse_another_start(self, adapter: Path) -> None:
        """Keep a hash of the adapter that the run starts from, or compare. InputError where the adapter is another."""
        kept = self._environment()
        files_there = [each for each in sorted(adapter.glob("adapter_*")) if each.is_file()]
        now = {each.name: files.sha256(each) for each in files_there}
        if "start" not in kept:
            self.write_json(self.environment, {**kept, "start": now})
        elif kept["start"] != now:
            message = f"method.from_adapter: {adapter} is not the adapter that the run was started from"
            raise InputError(message, fix="restore it, or start another run with run=ANOTHER_DIR")

    def base_hashes(self) -> dict[str, str] | None:
        """A hash of each file of the base, where they are known."""
        return self._environment().get("base")

    def _environment(self) -> dict[str, Any]:
        return self.read_json(self.environment) if self.checked(self.environment).is_file() else {}

    def remove(self) -> None:
        """Delete the folder, and the parents that held nothing else."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):  # not empty, a mount point, or no right to: that must not hide why it was needed
            for parent in self.path.parents:
                if parent.resolve() == Path.cwd():
                    return
                parent.rmdir()

    def log(self, record: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl; numbers that are not finite become null."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(to_json(record) + "\n")

    def sync_metrics(self) -> None:
        """Wait until metrics.jsonl is on the disk: a checkpoint must not outlive the lines that led to it."""
        if self.metrics.is_file():
            files.sync(self.metrics)

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a line cut short by a kill is left out."""
        there = self.metrics.is_file()
        return self.records(self.metrics.read_text(encoding="utf-8", errors="replace")) if there else []

    @staticmethod
    def records(text: str) -> list[dict[str, Any]]:
        """The whole lines of a metrics.jsonl."""
        found = []
        for line in text.splitlines():
            with suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("step"), int):
                    found.append(record)
        return found

    def keep_refusals(self, refusals: Iterable[Refusal]) -> None:
        """Write refused.jsonl."""
        files.write_jsonl(self.refused, map(asdict, refusals))

    def refusals(self) -> Iterator[Refusal]:
        """The lines of refused.jsonl."""
        if self.refused.is_file():
            yield from (Refusal(**each) for each in files.read_jsonl(self.refused))

    def rewind(self, step: int, *, measured: bool = True) -> int:
        """Drop metrics after `step`: a resumed run writes them again. Returns how many steps have no line.

        Without `measured` the evaluation of that step is dropped too.
        """
        history = self.history()
        kept = [r for r in history if r["step"] < step or (r["step"] == step and (measured or "loss" in r))]
        last = step if measured else step - 1
        files.write_text(self.metrics, "".join(to_json(record) + "\n" for record in kept))
        if self.samples.is_file():
            said = [line for line in self.records(self.samples.read_text(encoding="utf-8")) if line["step"] <= last]
            files.write_jsonl(self.samples, said)
        return step - len({record["step"] for record in kept if "loss" in record})


def checked(evaluate: EvaluateConfig) -> dict[str, str]:
    """What environment.json keeps of the code that measures."""
    file = None if evaluate.check is None else Path(evaluate.check)
    return {"check": files.sha256(file)[:12]} if file is not None and file.is_file() else {}
