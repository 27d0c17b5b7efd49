"""The chat command: a dialogue on the terminal with one model or two side by side, answers streamed."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from luthier.cli.progress import Terminal, console, show_error
from luthier.core.errors import LuthierError, did_you_mean
from luthier.recipe.consent import Allow
from luthier.rendering.example import Message
from luthier.serving.dialogue import Speaker, is_endpoint, open_speakers
from luthier.serving.settings import Asking

WIDE = 100
"""Columns of a terminal from which two answers stand beside each other."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(slots=True)
class Side:
    """One who answers, and the dialogue with them."""

    label: str
    speaker: Speaker
    opening: list[Message]
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.anew()

    def anew(self) -> None:
        """Forget what was said."""
        self.messages = list(self.opening)


@dataclass(slots=True)
class Answer:
    """What one side says, as it comes."""

    label: str
    text: str = ""
    error: Exception | None = None
    done: bool = False

    @property
    def shown(self) -> str:
        """The text without what could move the cursor of a terminal."""
        return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", self.text) if console.is_terminal else self.text


COMMANDS = ["/help", "/new", "/quit", "/exit"]
HELP = "say something; /new starts a new dialogue, /quit or ctrl-D ends, // begins a message with a slash"

Show = Callable[[Sequence[Answer], int, str], None]
"""Called with all answers, the number of the one that grew or ended, and its new piece."""


def talk(
    given: str,
    *,
    base: bool = False,
    beside: str | None = None,
    model: str | None = None,
    prompt: str | None = None,
    system: str = "",
    asking: Asking | None = None,
    allow_code: Allow = False,
) -> None:
    """Answer one prompt, the lines of a pipe, or a person, until the end of the input."""
    terminal = Terminal()
    if prompt is None:
        what = given if beside is None else f"{given} and, beside it, {beside}"
        verb = "asking" if is_endpoint(given) else "loading"
        terminal.stage(f"{verb} {what}{' (the untouched base)' if base else ''}")
    speakers = open_speakers(given, base=base, beside=beside, model=model, told=terminal.warn, allow_code=allow_code)
    opening = [Message("system", system)] if system else []
    equal = len({speaker.name for speaker in speakers}) < len(speakers)
    sides = [
        Side(f"{number}: {speaker.name}" if equal else speaker.name, speaker, opening)
        for number, speaker in enumerate(speakers, start=1)
    ]
    if prompt is not None:
        _ask(sides, prompt, asking or Asking())
        return
    _converse(sides, asking or Asking(), terminal)


def _converse(sides: Sequence[Side], asking: Asking, terminal: Terminal) -> None:
    """Line by line until the end. A person may go on after an error, a pipe may not."""
    person = sys.stdin.isatty()
    if person:
        with suppress(ImportError):
            import readline  # noqa: F401  # lines can be edited, and called back
        terminal.note(HELP)
    elif hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    while (line := _line(person)) is not None:
        match line.strip():
            case "":
                continue
            case "/quit" | "/exit":
                return
            case "/new":
                for side in sides:
                    side.anew()
                if person:
                    terminal.note("a new dialogue")
            case text if person and text.startswith("/") and not text.startswith("//"):
                command = text.split()[0]
                unknown = f"there is no command {command}{did_you_mean(command, COMMANDS)}; "
                terminal.note(HELP if command == "/help" else unknown + HELP)
            case text:
                _answer(sides, text.removeprefix("/") if text.startswith("//") else text, asking, person)


def _answer(sides: Sequence[Side], text: str, asking: Asking, person: bool) -> None:
    """Ask, and survive what goes wrong where a person can ask again."""
    try:
        _ask(sides, text, asking)
    except KeyboardInterrupt:  # ctrl-C stops an answer, not the dialogue
        console.out(" ...")
    except LuthierError as error:
        if not person:
            raise
        show_error(str(error))


def _line(person: bool) -> str | None:
    """What is typed or piped in next; None at the end."""
    try:
        return input(_asked_by() if person else "")
    except (EOFError, KeyboardInterrupt):
        if person:
            print()
        return None


def _asked_by() -> str:
    """What stands before a typed line; readline must know which of its signs take no room."""
    return "\001\033[1m\002you:\001\033[0m\002 " if console.color_system else "you: "


def _ask(sides: Sequence[Side], text: str, asking: Asking) -> None:
    """Let every side answer at once, and show it. Who fails forgets the question; the first fault is raised."""
    for side in sides:
        side.messages.append(Message("user", text))
    answers = [Answer(side.label) for side in sides]
    try:
        if len(sides) == 1:
            _gather(sides, answers, asking, _in_line)
        elif console.is_terminal and console.width >= WIDE:
            _in_columns(sides, answers, asking)
        else:
            _gather(sides, answers, asking, _InTurn())
    finally:
        for side, answer in zip(sides, answers, strict=True):
            if answer.done and answer.error is None:
                side.messages.append(Message("assistant", answer.text.strip()))
            else:
                side.messages.pop()
    for answer in answers:
        if answer.error is not None:
            raise answer.error


def _gather(sides: Sequence[Side], answers: Sequence[Answer], asking: Asking, show: Show) -> None:
    """Hear all sides at once, each in a thread of its own, until all have ended. Leaving it stops them."""
    heard: SimpleQueue[tuple[int, str | Exception | None]] = SimpleQueue()
    stop = threading.Event()

    def hear(number: int, side: Side) -> None:
        said = side.speaker.say(list(side.messages), asking)
        try:
            for piece in said:
                if stop.is_set():
                    return
                heard.put((number, piece))
            heard.put((number, None))
        except Exception as error:  # it belongs to the thread that shows it
            heard.put((number, error))
        finally:
            getattr(said, "close", lambda: None)()

    for number, side in enumerate(sides):
        threading.Thread(target=hear, args=(number, side), daemon=True).start()
    try:
        while not all(answer.done for answer in answers):
            number, what = heard.get()
            answer, piece = answers[number], ""
            if isinstance(what, str):
                before = len(answer.shown)
                answer.text += what
                piece = answer.shown[before:]
            else:
                answer.done, answer.error = True, what
            show(answers, number, piece)
    finally:
        stop.set()


def _out(text: str) -> None:
    console.out(text, end="", highlight=False)
    sys.stdout.flush()


def _in_line(answers: Sequence[Answer], number: int, piece: str) -> None:
    """The one answer, as it comes."""
    if not answers[number].done:
        _out(piece)
    elif answers[number].error is None or answers[number].text:
        _out("\n")


class _InTurn:
    """Two answers, the second below the first; what the second says meanwhile waits for its turn."""

    def __init__(self) -> None:
        self.turn, self.begun = 0, False

    def __call__(self, answers: Sequence[Answer], number: int, piece: str) -> None:
        if number != self.turn:
            return
        self._say(answers[number], piece)
        while self.turn < len(answers) and answers[self.turn].done:
            self.turn, self.begun = self.turn + 1, False
            _out("\n")
            if self.turn < len(answers):
                self._say(answers[self.turn], answers[self.turn].shown)

    def _say(self, answer: Answer, piece: str) -> None:
        if not self.begun:
            console.print(Text(f"{answer.label}: ", style="bold"), end="")
            self.begun = True
        _out(piece)


def _in_columns(sides: Sequence[Side], answers: Sequence[Answer], asking: Asking) -> None:
    """Two answers beside each other; where they outgrow the screen their ends are shown, and all of them at last."""
    screen = Console(highlight=False)
    with Live(console=screen, refresh_per_second=12, transient=True, vertical_overflow="crop") as live:

        def show(answers: Sequence[Answer], number: int, piece: str) -> None:
            live.update(_columns(screen, answers, last=screen.height - 4))

        try:
            _gather(sides, answers, asking, show)
        finally:
            live.update(Text(""))
    screen.print(_columns(screen, answers))
    screen.print()


def _columns(screen: Console, answers: Sequence[Answer], last: int | None = None) -> Table:
    """A table with a column for each answer; `last` keeps only so many lines of each."""
    table = Table.grid(padding=(0, 2), expand=True)
    width = screen.width // len(answers) - 2
    for _ in answers:
        table.add_column(ratio=1, overflow="fold")
    table.add_row(*(Text(answer.label, style="bold") for answer in answers))
    shown = []
    for answer in answers:
        lines = Text(answer.shown).wrap(screen, width)
        shown.append(Text("\n").join(lines[-last:] if last else lines))
    table.add_row(*shown)
    return table
