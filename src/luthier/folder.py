"""The run folder: everything that evaluate, chat, resume and export need, under fixed names.

recipe.yaml      the resolved recipe; loading it gives the same run
environment.json versions, machine, command
data.json        account of every row, format, template, fingerprint
refused.jsonl    rows left out by policy, whole, with the reason
metrics.jsonl    a line per step, a line per evaluation
before.json      the base's scores and answers on the validation rows
checkpoints/     step-000100/..., each whole or not there
adapter/         the result in PEFT's format (method full: model/), with tokenizer and template
predictions.jsonl  what base and tuned model say on each validation row
loss.png report.html result.json
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from luthier.config import RunConfig
from luthier.data.store import Refusal
from luthier.errors import InputError, did_you_mean

PACKAGES = ("luthier", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "datasets")
MAY_CHANGE = (
    "run", "train.log_every", "train.keep", "evaluate.batch_size", "evaluate.generate", "data.workers", "data.cache",
)  # fmt: skip
"""Keys that another value of which leaves the run the same."""


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.data = path / "data.json"
        self.refused = path / "refused.jsonl"
        self.metrics = path / "metrics.jsonl"
        self.before = path / "before.json"
        self.checkpoints = path / "checkpoints"
        self.predictions = path / "predictions.jsonl"
        self.result = path / "result.json"
        self.loss_png = path / "loss.png"
        self.report = path / "report.html"

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """The folder of a finished or interrupted run; InputError where it is none."""
        folder = cls(path)
        if not folder.recipe.is_file():
            near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
            what = "is no run folder (it has no recipe.yaml)" if path.is_dir() else f"does not exist{near}"
            raise InputError(f"{path} {what}", mend="give the folder that `luthier train` printed")
        return folder

    def config(self) -> RunConfig:
        """The recipe of the run."""
        return RunConfig.load(self.recipe)

    def weights(self) -> Path:
        """The finished weights; InputError where the run has not finished."""
        for name in ("adapter", "model"):
            if (self.path / name).is_dir() and self.result.is_file():
                return self.path / name
        raise InputError(f"{self.path}: the run has no finished weights yet", mend=f"luthier train {self.recipe}")

    def start(self, config: RunConfig) -> bool:
        """Make the folder, or find a run of the same recipe in it: True then. InputError names what differs."""
        if self.recipe.is_file():
            before, now = _flat(self.config().model_dump(mode="json")), _flat(config.model_dump(mode="json"))
            changed = [k for k in sorted(before | now) if before.get(k) != now.get(k) and k not in MAY_CHANGE]
            if changed:
                shown = "".join(f"\n  - {key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in changed)
                raise InputError(
                    f"{self.path} holds a run of another recipe:{shown}",
                    mend="choose another folder with run=DIR, or delete this one",
                )
            return True
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"run: cannot make the folder {self.path}: {error.strerror}", mend="run=DIR") from None
        strangers = [entry.name for entry in self.path.iterdir()]
        if strangers:
            raise InputError(
                f"{self.path} is not empty and no run of Luthier's ({', '.join(strangers[:3])})", mend="run=DIR"
            )
        write_json(self.path / "environment.json", environment())
        write_text(self.recipe, config.dump())
        return False

    def remove(self) -> None:
        """Delete the folder, and the parents that held nothing else."""
        shutil.rmtree(self.path, ignore_errors=True)
        for parent in self.path.parents:
            if not parent.is_dir() or any(parent.iterdir()) or parent.resolve() == Path.cwd():
                return
            try:
                parent.rmdir()
            except OSError:  # a mount point, or no right to: cleaning up must not hide why it was needed
                return

    def log(self, record: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a line cut short by a kill is left out."""
        records = []
        if self.metrics.is_file():
            for line in self.metrics.read_text(encoding="utf-8").splitlines():
                try:
                    records.append(json.loads(line))
                except ValueError:
                    continue
        return records

    def keep_refusals(self, refusals: Iterable[Refusal]) -> None:
        """Write refused.jsonl."""
        write_jsonl(self.refused, map(asdict, refusals))

    def refusals(self) -> Iterator[Refusal]:
        """The lines of refused.jsonl."""
        if self.refused.is_file():
            with self.refused.open(encoding="utf-8") as lines:
                for line in lines:
                    yield Refusal(**json.loads(line))

    def rewind(self, step: int) -> None:
        """Drop metrics after `step`: a resumed run writes them again."""
        kept = [record for record in self.history() if record["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))


def run_path(config: RunConfig, recipe: Path | None) -> Path:
    """`run=DIR`, or runs/<recipe or data>-<method>."""
    return Path(config.run) if config.run else Path("runs") / f"{_stem(config, recipe)}-{config.method.name}"


def check_path(config: RunConfig, recipe: Path | None) -> Path:
    """runs/check-<recipe or data>: beside the runs, for a run begins in an empty folder."""
    return Path("runs") / f"check-{_stem(config, recipe)}"


def _stem(config: RunConfig, recipe: Path | None) -> str:
    data = "-".join(filter(None, (Path(config.data.path.replace(":", "-")).stem or "run", config.data.subset)))
    return recipe.stem if recipe else data


def environment() -> dict[str, Any]:
    """Versions, machine and command of this process; no user names, keys or tokens."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "packages": versions,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader never sees half of it."""
    staging = path.with_name(f".{path.name}.staging")
    staging.write_text(text, encoding="utf-8")
    staging.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file as a whole."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Replace a JSON-lines file as a whole."""
    staging = path.with_name(f".{path.name}.staging")
    with staging.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    staging.replace(path)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
