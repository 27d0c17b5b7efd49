"""What has become of a run, read from its folder while it works or later: nothing in the folder changes."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from luthier.core import files
from luthier.core.errors import Busy, InputError
from luthier.core.strict_yaml import parse_yaml
from luthier.runs.folder import RunFolder
from luthier.runs.remote import RemoteStore, at_work, copied_from, is_url, local

State = Literal["running", "finished", "stopped", "killed", "damaged"]
"""running: a process holds the folder. stopped: all steps are in a checkpoint. killed: steps after it are lost."""
DEEPEST = 3
"""Levels of folders below the first in which runs are looked for: those of a comparison lie deeper than others."""

LATELY = 600.0
"""Seconds without a new line in which a run of another machine counts as running: steps and evaluations take less."""


@dataclass(frozen=True, slots=True)
class RunState:
    """One run, as a list of runs shows it."""

    run: str
    """Its folder."""
    state: State
    method: str = ""
    model: str = ""
    data: str = ""
    step: int = 0
    """Optimizer steps taken."""
    steps: int | None = None
    """Optimizer steps of the whole run, where they are known."""
    loss: float | None = None
    """Of the last step."""
    held_out_loss: float | None = None
    """As measured last."""
    metric: str = ""
    """The score that ranks; empty until the run is finished."""
    base: float | None = None
    tuned: float | None = None
    seconds: float = 0.0
    """Of training."""
    changed: float = 0.0
    """When the run wrote last, in seconds since 1970."""
    why: str = ""
    """What is damaged."""

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return asdict(self)


class MetricsReader:
    """The lines of metrics.jsonl as they are added; from the first one again where the file was replaced."""

    def __init__(self, path: Path) -> None:
        self.path, self.at, self.file = path, 0, 0
        self.replaced = False
        """Whether what was returned last begins at the first line of another file."""

    def new(self) -> list[dict[str, Any]]:
        """The whole lines that were not returned yet. A line that is still being written is left for later."""
        self.replaced = False
        try:
            with self.path.open("rb") as file:
                now = self.path.stat()
                if now.st_ino != self.file or now.st_size < self.at:  # a resumed run writes another file
                    self.at, self.file, self.replaced = 0, now.st_ino, True
                file.seek(self.at)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self.at += len(whole)
        return RunFolder.records(whole.decode("utf-8", errors="replace"))


class History:
    """The lines of metrics.jsonl of a run that may still write them: `update` reads what is new."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.reader = folder, MetricsReader(folder.metrics)
        self.lines: list[dict[str, Any]] = []

    def update(self) -> list[dict[str, Any]]:
        """Lines that were not there before; all of them where the file is another one now."""
        new = self.reader.new()
        if self.reader.replaced:
            self.lines = []
        self.lines += new
        return new

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The lines of steps."""
        return [line for line in self.lines if "loss" in line]

    @property
    def evaluations(self) -> list[tuple[int, float]]:
        """(step, held-out loss) of each evaluation with a finite loss."""
        found = [(line["step"], line["validation_loss"]) for line in self.lines if "validation_loss" in line]
        return [(step, loss) for step, loss in found if loss is not None]


def find_runs(place: str | Path) -> list[RunState]:
    """Every run below a folder or a URL, the one that changed last first."""
    if isinstance(place, str) and is_url(place):
        found = [_state_at(url) for url in RemoteStore(place).runs_below()]
    else:
        found = [state_of(path) for path in run_folders(Path(place))]
    return sorted(found, key=lambda state: -state.changed)


def _state_at(url: str) -> RunState:
    try:
        return replace(state_of(local(url, small=True)), run=url)
    except InputError as error:
        return RunState(url, "damaged", why=error.message.split("\n")[0])


def run_folders(folder: Path, depth: int = DEEPEST) -> Iterator[Path]:
    """Every folder of a run below `folder`."""
    for path in sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")):
        run = RunFolder(path)
        if run.recipe.is_file() and (run.environment.is_file() or run.ledger.path.is_file()):
            yield path
        elif depth > 1:
            yield from run_folders(path, depth - 1)


def is_held(folder: RunFolder) -> bool:
    """Is a process at work on the run? Of a copy: on the run at its URL.

    A lock may not be seen on another machine that has the folder mounted: there it counts what was written lately.
    """
    if url := copied_from(folder.path):
        return at_work(url)
    if not (folder.path / ".lock").exists():
        return False
    try:
        with files.lock(folder.path, Busy("")):
            pass
    except Busy:
        return True
    except OSError:  # a folder of another user, or mounted to be read only
        pass
    return bool(folder.other_host()) and time.time() - _written(folder) < LATELY


def _written(folder: RunFolder) -> float:
    """When the run's process wrote last, in seconds since 1970, by the clock of whoever has the disk."""
    signs = (folder.path / ".holder", folder.metrics, folder.samples, folder.before, folder.checkpoints)
    return max((each.stat().st_mtime for each in signs if each.exists()), default=0.0)


def state_of(path: Path, history: History | None = None) -> RunState:
    """The state of the run in a folder; `damaged` where its files cannot be read."""
    folder = RunFolder(path)
    changed = max((each.stat().st_mtime for each in (folder.metrics, folder.result) if each.exists()), default=0.0)
    changed = changed or path.stat().st_mtime
    try:
        return _read(folder, history or History(folder), changed)
    except (InputError, OSError, KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        return RunState(str(path), "damaged", changed=changed, why=str(error).split("\n")[0])


def _read(folder: RunFolder, history: History, changed: float) -> RunState:
    recipe = folder.ledger.read()["recipe"] or parse_yaml(folder.recipe.read_text(encoding="utf-8"))
    history.update()
    steps, evaluations = history.steps, history.evaluations
    facts: dict[str, Any] = {
        "run": str(folder.path),
        "method": recipe["method"]["name"],
        "model": recipe["model"]["path"],
        "data": recipe["data"]["path"],
        "step": steps[-1]["step"] if steps else 0,
        "steps": _planned_steps(folder, recipe),
        "loss": next((line["loss"] for line in reversed(steps) if line["loss"] is not None), None),
        "held_out_loss": evaluations[-1][1] if evaluations else None,
        "seconds": sum(line.get("seconds") or 0.0 for line in history.lines),
        "changed": changed,
    }
    if folder.result.is_file():
        result = folder.read_json(folder.result)
        metric = result.get("primary_metric") or result.get("headline") or ""
        sides = {side: (result.get(side) or {}).get(metric) for side in ("base", "tuned")}
        facts |= {side: score["value"] for side, score in sides.items() if score} | {"metric": metric}
        return RunState(state="finished", **{**facts, "step": result["steps"], "seconds": result["train_seconds"]})
    if is_held(folder):
        return RunState(state="running", **{**facts, "changed": time.time()})
    names = [each.name.removeprefix("step-") for each in folder.checkpoints.glob("step-*")]
    saved = max((int(name) for name in names if name.isdigit()), default=0)
    return RunState(state="stopped" if 0 < facts["step"] <= saved else "killed", **facts)


def _planned_steps(folder: RunFolder, recipe: Mapping[str, Any]) -> int | None:
    """Steps of the whole run, by the recipe or as plan.json has them."""
    if recipe["train"]["steps"]:
        return int(recipe["train"]["steps"])
    steps = files.read_object(folder.plan).get("steps") if folder.plan.is_file() else None
    return steps if isinstance(steps, int) else None
