"""Progress on the terminal: a bar with step, loss, tokens/s and time left; plain lines in a log file."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task
from rich.progress import Progress as Bar
from rich.prompt import Confirm, IntPrompt
from rich.table import Column
from rich.text import Text

from luthier.cli.terminal.console import console, safe
from luthier.core.errors import Stopped
from luthier.core.events import Progress
from luthier.core.language import filled, translated
from luthier.core.shell import redacted, shell_line
from luthier.core.units import clock, duration, gigabytes

LINE_EVERY = 30
"""Seconds between lines about slow work in a log file."""
REFRESH = 0.1
"""Seconds between two pictures of a bar."""
NARROW = 70
"""Terminal width below which the bar itself is left out: its texts come first."""
TEXTS: dict[str, Callable[[Task], str]] = {
    "steps": lambda task: (
        f"  step {int(task.completed)}/{task.total:.0f}  loss {task.fields['loss']}  {task.fields['speed']} tokens/s"
    ),
    "runs": lambda task: f"  {task.fields['count']} of {task.total:.0f} runs  {task.fields['text']}",
    "bytes": lambda task: f"  {_of(gigabytes, task)} {task.fields['text']}",
    "waiting": lambda task: " ",
}
"""What a bar says, by what it shows; of any other `what` it is a count."""


def _of(form: Callable[[float], str], task: Task) -> str:
    return form(task.completed) if task.total is None else f"{form(task.completed)}/{form(task.total)}"


class _Words(ProgressColumn):
    """The text of a bar, or its times."""

    max_refresh = None

    def __init__(self, text: Callable[[Task], str]) -> None:
        self.text = text
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        return Text.from_markup(translated(self.text(task)))


def _times(task: Task) -> str:
    took, left = clock(task.elapsed or 0), task.time_remaining
    return f"elapsed {took}" if left is None else f"elapsed {took}, left {clock(left)}"


class Terminal(Progress):
    """Shows a run on the terminal. Use it as a context, so that no bar outlives an error."""

    def __init__(self, log_every: int = 1, *, animated: bool = True) -> None:
        """`animated`: where nothing else is known, show at a terminal that work goes on."""
        self.log_every, self.animated = log_every, animated
        self.bar: Bar | None = None
        self.guard = threading.RLock()  # downloads report from threads of their own
        self.what = ""
        self.start = self.total = 0
        self.lasts = True  # False for a run that is over: no time is left
        self.began = self.last_line = time.perf_counter()
        _bars_of_others()
        _current[:] = [self]

    def __exit__(self, *_: object) -> None:
        self.close()

    def stage(self, text: str) -> None:
        self.close()
        self.began = self.last_line = time.perf_counter()
        console.say(f"[bold]>[/] {escape(redacted(translated(text, inside=True)))}")
        console.file.flush()
        self._wait()

    def note(self, text: str) -> None:
        console.say(f"  [dim]{safe(redacted(translated(text, inside=True)))}[/]")

    def warn(self, text: str) -> None:
        console.say(f"  [yellow]! {escape(redacted(translated(text, inside=True)))}[/]")

    def ask(self, question: str, answers: Sequence[str]) -> int | None:
        self.close()
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            return None
        console.say(f"[bold]?[/] {safe(translated(question))}")
        for number, answer in enumerate(answers, 1):
            console.say(f"  {number}. {safe(translated(answer))}")
        numbers = [str(number) for number in range(1, len(answers) + 1)]
        return IntPrompt.ask(f"  {translated('which?')}", console=console, choices=numbers, default=1) - 1

    def rows(self, done: int, total: int | None) -> None:
        if console.is_terminal and (self.what == "rows" or time.perf_counter() - self.began >= 1):
            self._count("rows", done, total)  # a short wait needs no bar of its own

    def measured(self, what: str, done: int, total: int) -> None:
        if console.is_terminal:
            self._count(what, done, total)
        elif self._line_is_due(done, total):
            left = self._left(done, total)
            console.print(
                f"  {filled('{0} of {1} {2}', f'{done:,}', f'{total:,}', translated(what))}  {filled('{0} left', left)}"
            )

    def runs(self, done: float, total: int, text: str) -> None:
        if console.is_terminal:
            self._update("runs", total, completed=done, text=escape(text), count=int(done))

    def said(self, text: str) -> None:
        console.say(f"  {escape(translated(text))}")

    def train_begins(self, start: int, steps: int) -> None:
        self.start, self.total = start, steps
        self.stage(f"training, {steps - start} steps")
        if console.is_terminal:
            self._update("steps", steps, completed=start, loss="-", speed="-")

    def step(self, record: dict[str, Any], tokens_per_second: float) -> None:
        step, speed = record["step"], f"{tokens_per_second:,.0f}"
        if console.is_terminal:
            self._update("steps", self.total, completed=step, loss=_number(record["loss"], ".3f"), speed=speed)
        elif step % self.log_every == 0 or step == self.total or self._line_is_due(step, self.total):
            self.last_line = time.perf_counter()
            text = (
                f"  step {step}/{self.total}  loss {_number(record['loss'], '.4f')}  lr {record['lr']:.2e}  "
                f"grad {_number(record['grad_norm'], '.2f')}  {speed} tokens/s"
            )
            left = self._left(step - self.start, self.total - self.start)
            console.print(
                f"{translated(text)}  {filled('{0} left', left)}" if self.lasts and step < self.total else text
            )
            console.file.flush()

    def evaluated(self, step: int, loss: float, best: bool) -> None:
        if best:
            console.print(f"  step {step}: held-out loss {loss:.4f} (best so far)")
        else:
            console.print(f"  step {step}: held-out loss {loss:.4f}")

    def train_ends(self) -> None:
        self.close()

    def outside(self, text: str, done: float, total: float | None, unit: str) -> None:
        """A bar of another library: a download, weights that are loaded."""
        if unit != "B":
            if total:
                self.measured(safe(text), int(done), int(total))
        elif console.is_terminal:
            self._update("bytes", total, completed=done, text=safe(text))
        elif total and self._line_is_due(done, total):
            left = self._left(done, total)
            console.print(f"  {gigabytes(done)} of {gigabytes(total)} {safe(text)}  {filled('{0} left', left)}")

    def close(self) -> None:
        """Take the bar away."""
        with self.guard:
            if self.bar is not None:
                _shown.clear()
                with LOCK:
                    self.bar.stop()
                self.bar, self.what = None, ""

    def _line_is_due(self, done: float, total: float) -> bool:
        now = time.perf_counter()
        if not 0 < done < total or now - self.last_line <= LINE_EVERY:  # before the first there is no estimate
            return False
        self.last_line = now
        return True

    def _left(self, done: float, total: float) -> str:
        """The time that is left, if the rest is as fast as the stage was so far."""
        return duration((time.perf_counter() - self.began) / max(1, done) * (total - done))

    def _wait(self) -> None:
        if self.animated and console.is_terminal:
            self._update("waiting", None)

    def _count(self, what: str, done: int, total: int | None) -> None:
        self._update(what, total, completed=done)
        if done == total:
            self.close()
            self._wait()

    def _update(self, what: str, total: float | None, **values: Any) -> None:
        """Update the bar for `what`, or open it."""
        with self.guard:
            self._open(what, total, values)
            assert self.bar is not None
            self.bar.update(self.bar.task_ids[0], total=total, **values)

    def _open(self, what: str, total: float | None, values: dict[str, Any]) -> None:
        """Open a bar, unless it is there: a text, the bar, the times."""
        if self.bar is None or self.what != what:
            self.close()
            self.what = what
            text = _Words(TEXTS.get(what, lambda task: f"  {_of(lambda n: f'{n:,.0f}', task)} {translated(what)}"))
            bars = (BarColumn(bar_width=None),) if console.width >= NARROW else ()
            columns = (text, SpinnerColumn()) if what == "waiting" else (text, *bars)
            own: dict[str, Any] = {"transient": what != "steps", "expand": what != "waiting", "auto_refresh": False}
            self.bar = Bar(*columns, _Words(_times), console=console, **own)
            self.bar.add_task(what, **{"total": total, **values})
            self.bar.start()
            _shown[:] = [self.bar]
            _animate()


LOCK = threading.Lock()
"""Held while a bar is drawn: no process is forked then, which would find the terminal's own lock closed forever."""
_shown: list[Bar] = []
_current: list[Terminal] = []


@cache
def _animate() -> None:
    """Draw the bar that is shown, ten times a second, whatever the program is waiting for."""

    def draw() -> None:
        while True:
            time.sleep(REFRESH)
            with LOCK:
                for bar in _shown:
                    bar.refresh()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=_forget)
    threading.Thread(target=draw, daemon=True, name="bar").start()


def _forget() -> None:
    """In a fork there is no bar: it belongs to the parent."""
    _shown.clear()
    LOCK.release()


@cache
def _bars_of_others() -> None:
    """Show the bars of other libraries, which are tqdm's, as those of the terminal: downloads, weights, tasks."""
    from tqdm.std import tqdm

    begin = tqdm.__init__

    def init(bar: Any, *given: Any, **options: Any) -> None:
        begin(bar, *given[:4], **{**options, "file": _Unseen()})

    def display(bar: Any, msg: str | None = None, pos: int | None = None) -> bool:
        if msg is None:
            _current[0].outside(str(bar.desc or "").removesuffix(": "), bar.n, bar.total, bar.unit)
        return True

    tqdm.__init__, tqdm.display = init, display


class _Unseen:
    """What tqdm takes for a screen, and writes its line ends to."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        pass

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def consent(given: bool = False) -> bool | Callable[[str], bool]:
    """Return what of a run folder's code and judge the user allows: all with the option, else what they confirm."""
    if given or not sys.stdin.isatty():
        return given

    @cache
    def ask(what: str) -> bool:
        console.say(f"[yellow]! {safe(translated(what, inside=True))}[/]")
        try:
            return Confirm.ask(f"  {translated('Allow it this time?')}", console=console, default=False)
        except EOFError:
            return False

    return ask


@contextmanager
def resumable(terminal: Terminal) -> Iterator[None]:
    """Close the progress bar at the end; if a signal stopped the run, print the command that resumes it."""
    try:
        with terminal:
            yield
    except Stopped as stop:
        console.say(f"{translated(str(stop))}. {translated('Rerun the same command to resume:')}")
        console.print(f"  [bold]{shell_line('luthier', *sys.argv[1:])}[/]", soft_wrap=True)
        raise typer.Exit(stop.exit_code) from None


def _number(value: float | None, form: str) -> str:
    """Format a value of a step; a skipped step has none."""
    return "NaN" if value is None else format(value, form)
