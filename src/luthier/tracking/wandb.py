"""Weights & Biases: files beside the run for `wandb sync`, or sent at once. Offline by default.

A resumed run that was not sent yet replaces its files by new ones with the whole course, so that each step is sent
once. Error reports, hardware statistics, code and git are switched off. Online, `wandb login` or WANDB_API_KEY say who
you are.
"""

import shutil
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, ClassVar, Literal

from luthier.core.shell import shell_line
from luthier.tracking.base import START, Position, State, TrackedRun, Tracker


class WandB(Tracker):
    """A run in Weights & Biases."""

    extra: ClassVar[str] = "wandb"
    packages: ClassVar[tuple[str, ...]] = ("wandb", "PIL")
    quiet: ClassVar[Mapping[str, str]] = {"WANDB_ERROR_REPORTING": "false"}

    mode: Literal["offline", "online"] = "offline"
    """offline: for `wandb sync`; online: sent at once."""
    entity: str | None = None
    """User or team on the server; none: your default."""
    folder: str = ""
    """Folder that gets a folder wandb with its files; empty: the one that the run folder is in."""

    _run: Any = None

    def begin(self, run: TrackedRun) -> Position | None:
        import wandb

        folder = run.beside(self.folder, "")
        for old in folder.glob(f"wandb/offline-run-*-{run.id}"):
            if self.mode == "offline" and not list(old.glob("*.synced")):
                shutil.rmtree(old)
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        own: dict[str, Any] = {"name": run.name, "id": run.id, "project": self.project, "entity": self.entity}
        self._run = wandb.init(
            **own, mode=self.mode, resume="allow", dir=str(folder), config=dict(run.config), settings=settings
        )
        return START if self.mode == "offline" else None

    def log(self, step: int, values: Mapping[str, float], time: float | None = None) -> None:
        self._run.log({**values, **({"_timestamp": time} if time else {})}, step=step)

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def texts(self, step: int, name: str, texts: Mapping[str, str]) -> None:
        import wandb

        rows = [
            f"<dt>{escape(caption)}<dd style='white-space:pre-wrap'>{escape(text)}" for caption, text in texts.items()
        ]
        self._run.log({name: wandb.Html(f"<dl>{''.join(rows)}</dl>")}, step=step)

    def image(self, step: int, name: str, file: Path) -> None:
        import wandb

        self._run.log({name: wandb.Image(str(file))}, step=step)

    def page(self, step: int, name: str, file: Path) -> None:
        import wandb

        self._run.log({name: wandb.Html(file.read_text(encoding="utf-8"), inject=False)}, step=step)

    def command(self, run: TrackedRun) -> str:
        written = run.shown(run.beside(self.folder, "")).glob(f"wandb/offline-run-*-{run.id}")
        return shell_line("wandb", "sync", *written) if self.mode == "offline" else ""

    def finish(self, state: State, error: str) -> None:
        self._run.summary.update({"state": state, **({"error": error} if error else {})})
        self._run.finish(exit_code=int(state != "finished"))
