"""Lines on the terminal in the language of the user: wrapped at a screen, one a line in a file. Loads nothing heavy."""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from luthier.core.language import translated
from luthier.core.shell import redacted, redacted_command, shown

WIDE = 140
"""Width of a table in a file."""
LEAD = re.compile(r"\s*(?:[!+>-] )?")
"""The indentation of a wrapped line."""
CHINESE = "\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef"
"""Characters that a line may end behind: Chinese, and its punctuation."""
CLOSING = "，。：；？！、）】》”’…"
"""What no line begins with."""
UNIT = re.compile(rf"\s*(?:[{CHINESE}“‘（《【]|[^\s{CHINESE}]+)[{CLOSING}]*|\s+$")
"""What stays in one line, with the blanks before it: a word, or a Chinese character with the punctuation after it."""


class Lines(Console):
    """A console that wraps messages between words with a hanging indent; in a file each is one line, for grep."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, **options})
        if not self.is_terminal:
            self.soft_wrap = True
            self.width = int(os.environ.get("COLUMNS") or WIDE)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does, a sentence in the language of the user.

        Use soft_wrap=True for text to copy, such as commands: it stays as it is and gets no line breaks.
        """
        if options or len(objects) != 1 or not isinstance(objects[0], str):
            super().print(*objects, **options)
        else:
            self.say(translated(objects[0]))

    def say(self, markup: str) -> None:
        """Print what is in the language of the user already."""
        text = Text.from_markup(markup)
        if self.soft_wrap:
            super().print(text)
            return
        for line in text.split(allow_blank=True):
            lead = LEAD.match(line.plain)
            assert lead is not None
            first, rest = line.divide([lead.end()])
            for start, end in breaks(rest.plain, max(20, self.width - lead.end())):
                part = rest[start:end]
                part.rstrip()
                super().print(first + part)
                first = Text(" " * lead.end())


console, errors = Lines(), Lines(stderr=True)
COLORS = {"better": "green", "worse": "red", "within noise": "dim"}
"""Color of a difference that was tested."""


def breaks(text: str, width: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each line of a text of at most `width` cells; a Chinese character fills two.

    Lines end between words and behind Chinese characters. A word that is longer than a line is cut.
    """
    begin, end, used = 0, 0, 0
    for unit in UNIT.finditer(text):
        word = unit[0] if unit.start() > begin else unit[0].lstrip()
        if used + cell_len(word.rstrip()) > width and end > begin:
            yield begin, end
            begin, used, word = unit.end() - len(unit[0].lstrip()), 0, unit[0].lstrip()
        while cell_len(word) > width:
            cut = next(n for n in range(len(word), 0, -1) if cell_len(word[:n]) <= width)
            begin_of_word = unit.end() - len(word)
            yield begin, begin_of_word + cut
            begin, used, word = begin_of_word + cut, 0, word[cut:]
        used, end = used + cell_len(word), unit.end()
    yield begin, len(text)


def wrapped(text: str, width: int, *, first: str = "", indent: str = "") -> str:
    """A paragraph in lines of at most `width` cells: `first` stands before the first, `indent` before the others."""
    parts = [text[start:end].rstrip() for start, end in breaks(text, max(20, width - cell_len(indent)))]
    return "\n".join(f"{indent if number else first}{part}" for number, part in enumerate(parts))


class _Translated(Table):
    """A table whose sentences are in the language of the user; a cell of one word may be a name, and stays."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        said = (translated(cell) if isinstance(cell, str) and " " in cell else cell for cell in cells)
        super().add_row(*said, **options)


def table(*columns: str, wrap: bool = True) -> Table:
    """Return a table without borders; columns whose name begins with > are aligned right."""
    made = _Translated(box=SIMPLE, pad_edge=False)
    for name in columns:
        side = "right" if name.startswith(">") else "left"
        made.add_column(translated(name.removeprefix(">")), justify=side, no_wrap=not wrap)  # type: ignore[arg-type]
    return made


def label(text: str) -> str:
    """A word with a colon in the language of the user, and the blank behind it; a Chinese colon has none."""
    said = translated(text)
    return said if said.endswith("：") else f"{said} "


def starting(command: str, words: Sequence[str] = ()) -> None:
    """Print the first line of a command as it was typed, before anything is read or loaded, which takes seconds."""
    given = shlex.join(redacted_command(words or sys.argv[2:]))
    console.print(Text.assemble((f"luthier {command}", "bold"), f": {shown(given)}"), soft_wrap=True)
    console.file.flush()


def safe(text: str) -> str:
    """Return text of the data without markup and characters that could move the cursor."""
    return escape(shown(text))


def show_error(text: str) -> None:
    """Print a message to standard error; its fix may be copied, so it gets no line breaks."""
    sys.stdout.flush()
    what, *fixes = re.split(r"\n(?=  fix: )", redacted(text))
    errors.say(f"[bold red]{label('error:')}[/]{escape(translated(what, inside=True))}")
    for fix in fixes:
        said = translated(fix.removeprefix("  fix: "), inside=True)
        errors.print(f"  {label('fix:')}{escape(said)}", soft_wrap=True)
