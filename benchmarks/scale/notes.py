"""What a rank notes behind each step: the tensors that it holds, its resident memory, and the time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


def resident() -> int:
    """Bytes of the largest resident set of this process since the last call (Linux)."""
    status = Path("/proc/self/status").read_text().splitlines()
    Path("/proc/self/clear_refs").write_text("5")
    return int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) * 1024


def local(tensor: Any) -> int:
    """Bytes of a tensor, or of this rank's part of it."""
    return int(getattr(tensor, "to_local", lambda: tensor)().nbytes)


class Notes:
    """A file of one rank: a line for each step, and at last one for what came behind the steps."""

    def __init__(self, file: Path) -> None:
        self.file, self.gradients = file, 0

    def before(self, model: Any) -> None:
        """Call it while the gradients are there."""
        self.gradients = sum(local(each.grad) for each in model.parameters() if each.grad is not None)

    def step(self, model: Any, optimizer: Any, **more: Any) -> None:
        """Call it when a step is taken."""
        states = [value for state in optimizer.state.values() for value in state.values() if hasattr(value, "nbytes")]
        held = {"weights": sum(map(local, model.parameters())), "gradients": self.gradients}
        held |= {"optimizer": sum(map(local, states))}
        self._write(**held, seconds=time.monotonic(), processor=time.process_time(), **more)

    def end(self) -> None:
        """Call it when everything is saved."""
        self._write()

    def _write(self, **line: Any) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps({**line, "resident": resident()}) + "\n")
