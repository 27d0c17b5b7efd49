"""SwanLab: a local dashboard (`swanlab watch runs/swanlog`), files to send later, or swanlab.cn. Local by default.

SwanLab continues an experiment on its server only. A resumed run in the modes local and offline therefore replaces its
experiment by a new one with the whole course, read from metrics.jsonl, so that each step stands in it once. Nothing
about the machine, the folder, git or the terminal is collected for SwanLab. Online, `swanlab login` or SWANLAB_API_KEY
say who you are.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

from luthier.core.shell import shell_line
from luthier.tracking.base import START, Position, State, TrackedRun, Tracker

STATES = {"finished": "success", "stopped": "aborted", "failed": "crashed"}


class SwanLab(Tracker):
    """A SwanLab experiment."""

    extra: ClassVar[str] = "swanlab"
    packages: ClassVar[tuple[str, ...]] = ("swanlab", "swanboard", "PIL")

    mode: Literal["local", "offline", "online"] = "local"
    """local: for `swanlab watch`; offline: for `swanlab sync`; online: sent to swanlab.cn at once."""
    folder: str = ""
    """Folder of its files; empty: swanlog beside the run folder."""

    _run: Any = None

    def begin(self, run: TrackedRun) -> Position | None:
        import swanlab

        folder, resumed = run.beside(self.folder, "swanlog"), {}
        if self.mode == "online":
            resumed = {"resume": "allow"}
        else:
            self._remove(folder, run.id)
        off = dict.fromkeys(("hardware", "runtime", "requirements", "conda", "git", "swanlab", "monitor"), False)
        settings = swanlab.Settings(probe=off, terminal={"proxy_type": "none"}, interactive=False)
        if self.mode == "local":  # it asks its database before each value whether somebody has stopped the run there
            from swanlab.deprecated.local import LocalCallbacker

            LocalCallbacker._check_exp_status = lambda _: None
        with _silent():
            self._run = swanlab.init(
                mode=self.mode,
                log_dir=str(folder),
                project=self.project,
                name=run.name,
                id=run.id,
                config=dict(run.config),
                settings=settings,
                **resumed,
            )
        return None if self.mode == "online" else START

    def _remove(self, folder: Path, run: str) -> None:
        """Remove the experiment that an earlier process wrote of this run."""
        for old in folder.glob(f"run-*-{run}"):
            if self.mode == "local" and (folder / "runs.swanlab").is_file():
                from swanboard.db import connect
                from swanboard.db.models import Chart, Experiment, Source

                connect(path=str(folder), autocreate=True)
                Experiment.delete().where(Experiment.run_id == old.name).execute()
                # Charts over several experiments stay behind, and one that is left without any breaks the next.
                several, left = Chart.project_id.is_null(False), Chart.id.not_in(Source.select(Source.chart_id))
                Chart.delete().where(several & left).execute()
            shutil.rmtree(old)

    def log(self, step: int, values: Mapping[str, float], time: float | None = None) -> None:
        self._run.log(dict(values), step=step)

    def texts(self, step: int, name: str, texts: Mapping[str, str]) -> None:
        import swanlab

        # without a caption its page shows nothing
        self._run.log({name: [swanlab.Text(text, caption=caption) for caption, text in texts.items()]}, step=step)

    def image(self, step: int, name: str, file: Path) -> None:
        import swanlab

        self._run.log({name: swanlab.Image(str(file))}, step=step)

    def page(self, step: int, name: str, file: Path) -> None:
        self._run.save(str(file), base_path=str(file.parent), policy="now")

    def command(self, run: TrackedRun) -> str:
        folder = run.shown(run.beside(self.folder, "swanlog"))
        known = {"local": ("watch", folder), "offline": ("sync", *folder.glob(f"run-*-{run.id}"))}
        return shell_line("swanlab", *known[self.mode]) if self.mode in known else ""

    def finish(self, state: State, error: str) -> None:
        with _silent():
            self._run.finish(state=STATES[state], error=error or ("stopped" if state == "stopped" else None))


@contextmanager
def _silent() -> Iterator[None]:
    """Without SwanLab's greeting between the lines of the terminal; it has no setting for that."""
    from swanlab.sdk.internal.pkg import console

    console.c.quiet = True
    try:
        yield
    finally:
        console.c.quiet = False
