"""`luthier chat`: a conversation on the terminal with one model or two side by side, answers streamed."""

import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from luthier.cli.terminal.console import console, show_error
from luthier.cli.terminal.progress import Terminal
from luthier.core.errors import LuthierError, did_you_mean
from luthier.core.language import translated
from luthier.recipe.consent import Allow
from luthier.rendering.example import Message
from luthier.serving.backends import ChatBackend, is_endpoint, open_backends
from luthier.serving.engine.requests import SamplingParams

WIDE = 100
"""Terminal width from which two answers are shown in columns."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
COMMANDS = ["/help", "/new", "/quit", "/exit"]
HELP = "type a message; /new starts a new conversation, /quit or ctrl-D ends, // begins a message with a slash"


@dataclass(slots=True)
class Speaker:
    """One model, the conversation with it, and its current answer."""

    label: str
    backend: ChatBackend
    messages: list[Message]
    text: str = ""
    error: Exception | None = None
    done: bool = False
    printed: int = -1
    """Characters of the answer on the terminal; -1 before its label."""

    @property
    def shown(self) -> str:
        """The answer without characters that could move a terminal's cursor."""
        return CONTROL.sub("\N{REPLACEMENT CHARACTER}", self.text) if console.is_terminal else self.text


def talk(
    given: str,
    *,
    untuned: bool = False,
    base: str | None = None,
    beside: str | None = None,
    model: str | None = None,
    drop_layers: int = 0,
    prompt: str | None = None,
    system: str = "",
    sampling: SamplingParams | None = None,
    allow_code: Allow = False,
) -> None:
    """Answer one prompt, or the lines of a pipe or a terminal until the end of the input."""
    terminal = Terminal()
    sampling = sampling or SamplingParams(seed=0)
    if prompt is None:
        what = given if beside is None else f"{given} and, beside it, {beside}"
        verb = "connecting to" if is_endpoint(given) else "loading"
        terminal.stage(f"{verb} {what}{' (the base model)' if untuned else ''}")
    which: Any = {"untuned": untuned, "base": base, "beside": beside, "model": model}
    which["drop_layers"] = drop_layers
    with terminal:
        backends = open_backends(given, **which, notify=terminal.warn, allow_code=allow_code)
    opening = [Message("system", system)] if system else []
    equal = len({backend.name for backend in backends}) < len(backends)
    sides = [
        Speaker(f"{number}: {backend.name}" if equal else backend.name, backend, list(opening))
        for number, backend in enumerate(backends, start=1)
    ]
    if prompt is not None:
        _answer(sides, prompt, sampling)
    else:
        _converse(sides, opening, sampling, terminal)


def _converse(
    sides: Sequence[Speaker], opening: Sequence[Message], sampling: SamplingParams, terminal: Terminal
) -> None:
    """Answer line by line. After an error, a user at a terminal can go on, a pipe cannot."""
    interactive = sys.stdin.isatty()
    for line in _lines(interactive, terminal):
        match line.strip():
            case "":
                continue
            case "/quit" | "/exit":
                return
            case "/new":
                for side in sides:
                    side.messages = list(opening)
                if interactive:
                    terminal.note("a new conversation")
            case text if interactive and text.startswith("/") and not text.startswith("//"):
                command = text.split()[0]
                unknown = f"unknown command {command}{did_you_mean(command, COMMANDS)}; "
                terminal.note(HELP if command == "/help" else unknown + HELP)
            case text:
                try:
                    _answer(sides, text.removeprefix("/") if text.startswith("//") else text, sampling)
                except KeyboardInterrupt:  # ctrl-C stops an answer, not the conversation
                    console.out(" ...")
                except LuthierError as error:
                    if not interactive:
                        raise
                    show_error(str(error))


def _lines(interactive: bool, terminal: Terminal) -> Iterator[str]:
    """Yield the lines of the input until its end."""
    if interactive:
        with suppress(ImportError):
            import readline  # noqa: F401  # line editing and history
        terminal.note(HELP)
    elif hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    # readline needs marks around the characters of a prompt that take no space.
    who = translated("you:")
    prompt = f"\001\033[1m\002{who}\001\033[0m\002 " if console.color_system else f"{who} "
    while True:
        try:
            line = input(prompt if interactive else "")
        except (EOFError, KeyboardInterrupt):
            if interactive:
                print()
            return
        yield line


def _answer(sides: Sequence[Speaker], text: str, sampling: SamplingParams) -> None:
    """Let all sides answer at the same time and show it. A side that fails forgets the message; the error is raised."""
    for side in sides:
        side.messages.append(Message("user", text))
        side.text, side.error, side.done, side.printed = "", None, False, -1
    try:
        if len(sides) > 1 and console.is_terminal and console.width >= WIDE:
            _in_columns(sides, sampling)
        else:
            _stream(sides, sampling, lambda: _print_in_turn(sides))
    finally:
        for side in sides:
            if side.done and side.error is None:
                side.messages.append(Message("assistant", side.text.strip()))
            else:
                side.messages.pop()
    for side in sides:
        if side.error is not None:
            raise side.error


def _stream(sides: Sequence[Speaker], sampling: SamplingParams, show: Callable[[], None]) -> None:
    """Read all answers, each in its own thread, and call `show` as they grow; an exception here stops them."""
    received: SimpleQueue[tuple[Speaker, str | Exception | None]] = SimpleQueue()
    stop = threading.Event()

    def read(side: Speaker) -> None:
        stream = side.backend.stream(list(side.messages), sampling)
        try:
            for piece in stream:
                if stop.is_set():
                    return
                received.put((side, piece))
            received.put((side, None))
        except Exception as error:  # raised again by the thread that shows it
            received.put((side, error))
        finally:
            getattr(stream, "close", lambda: None)()

    for side in sides:
        threading.Thread(target=read, args=(side,), daemon=True).start()
    try:
        while not all(side.done for side in sides):
            side, what = received.get()
            if isinstance(what, str):
                side.text += what
            else:
                side.done, side.error = True, what
            show()
    finally:
        stop.set()


def _print_in_turn(sides: Sequence[Speaker]) -> None:
    """Print what came since the last call, one answer below the other: a later one waits until those before it end."""
    for side in sides:
        if side.printed < 0 and len(sides) > 1:
            console.print(Text(f"{side.label}: ", style="bold"), end="")
        ended = side.done and (len(sides) > 1 or side.error is None or side.text)
        text = side.shown + ("\n" if ended else "")
        console.out(text[max(0, side.printed) :], end="", highlight=False)
        sys.stdout.flush()
        side.printed = len(text)
        if not side.done:
            return


def _in_columns(sides: Sequence[Speaker], sampling: SamplingParams) -> None:
    """Show two answers next to each other; if they outgrow the screen, only their ends until they are complete."""
    screen = Console(highlight=False)
    with Live(console=screen, refresh_per_second=12, transient=True, vertical_overflow="crop") as live:
        try:
            _stream(sides, sampling, lambda: live.update(_columns(screen, sides, last=screen.height - 4)))
        finally:
            live.update(Text(""))
    screen.print(_columns(screen, sides))
    screen.print()


def _columns(screen: Console, sides: Sequence[Speaker], last: int = 0) -> Table:
    """Return a table with a column for each answer; `last` limits it to so many lines."""
    table = Table.grid(padding=(0, 2), expand=True)
    for _ in sides:
        table.add_column(ratio=1, overflow="fold")
    table.add_row(*(Text(side.label, style="bold") for side in sides))
    wrapped = [Text(side.shown).wrap(screen, screen.width // len(sides) - 2) for side in sides]
    table.add_row(*(Text("\n").join(lines[-last:]) for lines in wrapped))
    return table
