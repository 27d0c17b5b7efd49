"""TensorBoard: event files beside the run, for `tensorboard --logdir runs/tensorboard`. Works offline.

The files are written by tensorboardX, which is small; the viewer is a package of its own (`pip install tensorboard`).
A resumed run replaces its event files by new ones with the whole course, so that each step stands in them once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from luthier.core.shell import shell_line
from luthier.tracking.base import START, Position, State, TrackedRun, Tracker, markdown


class TensorBoard(Tracker):
    """Event files for TensorBoard."""

    extra: ClassVar[str] = "tensorboard"
    packages: ClassVar[tuple[str, ...]] = ("tensorboardX", "PIL")

    folder: str = ""
    """Folder of the event files; empty: tensorboard beside the run folder."""

    _writer: Any = None

    def begin(self, run: TrackedRun) -> Position:
        from tensorboardX import SummaryWriter

        root, suffix = run.beside(self.folder, "tensorboard"), f".{run.id}"
        for old in root.glob(f"*/events.*{suffix}"):
            old.unlink()
        target = root / run.name
        if any(target.glob("events.*")):  # of a run that was deleted
            target = root / f"{run.name}-{run.id[:6]}"
        self._writer = SummaryWriter(str(target), flush_secs=5, filename_suffix=suffix)
        lines = "\n".join(f"| {key} | {value} |" for key, value in run.config.items())
        self._writer.add_text("config", f"| setting | value |\n|---|---|\n{lines}", 0)
        return START

    def log(self, step: int, values: Mapping[str, float], time: float | None = None) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step, walltime=time)

    def texts(self, step: int, name: str, texts: Mapping[str, str]) -> None:
        self._writer.add_text(name, markdown(texts), step)

    def image(self, step: int, name: str, file: Path) -> None:
        import numpy
        from PIL import Image

        with Image.open(file) as picture:
            self._writer.add_image(name, numpy.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def command(self, run: TrackedRun) -> str:
        return shell_line("tensorboard", "--logdir", run.shown(run.beside(self.folder, "tensorboard")))

    def finish(self, state: State, error: str) -> None:
        self._writer.add_text("state", f"{state} {error}".strip(), 0)
        self._writer.close()
