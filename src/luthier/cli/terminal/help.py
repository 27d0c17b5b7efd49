"""`--help` of every command: usage, what it does, arguments, options and examples, in the language of the user."""

import shutil
from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

from luthier.cli.terminal.console import label, wrapped
from luthier.core.language import translated

WIDEST, NAMES = 100, 28
"""Widths in cells: of a page, and of the column with the names of its options."""
EXAMPLES = "Examples:"
"""What the last paragraph of a command's docstring begins with: commands follow, one a line."""
ANYWHERE = (
    ("--lang en|zh", "Language of messages and help; else LUTHIER_LANG, else the locale."),
    ("--debug", "Show the full traceback of an error."),
    ("--help", "Show the help of a command."),
)
CODES = (
    ("0", "done"),
    ("1", "an export or server does not answer as its run, or a bug in Luthier"),
    ("2", "the input is at fault, or does not fit: the message says how to fix it"),
    ("75", "stopped by ctrl-C; 143 by SIGTERM, 138 by SIGUSR1: rerun the same command to resume"),
)


class Command(TyperCommand):
    """A command with our help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write("\n".join(_command(ctx.command_path, self)))


class Group(TyperGroup):
    """All commands, with our help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write("\n".join(_group(ctx.command_path, self)))


def paragraphs(text: str) -> tuple[list[str], list[str]]:
    """(paragraphs of a docstring, the examples at its end)."""
    text, _, examples = text.partition(EXAMPLES)
    told = [" ".join(each.split()) for each in text.split("\n\n") if each.strip()]
    return told, [line.strip() for line in examples.splitlines() if line.strip()]


def _command(path: str, command: TyperCommand) -> Iterator[str]:
    texts, examples = paragraphs(command.help or "")
    shown = [each for each in command.params if not getattr(each, "hidden", False)]
    arguments = [each for each in shown if each.param_type_name == "argument"]
    options = [each for each in shown if each.param_type_name == "option"]
    yield _usage(path, *map(_argument, arguments), "[OPTIONS]")
    for text in texts:
        yield ""
        yield from _wrapped(translated(text))
    yield from _section("Arguments:", [(_argument(each), _about(each)) for each in arguments])
    rows = [(_option(each), _about(each)) for each in options]
    yield from _section("Options:", [*rows, *((name, translated(text)) for name, text in ANYWHERE)])
    yield from _examples(examples)


def _group(path: str, group: TyperGroup) -> Iterator[str]:
    texts, examples = paragraphs(group.help or "")
    yield _usage(path, "COMMAND", "[ARGUMENTS]...", "[OPTIONS]")
    for text in texts:
        yield ""
        yield from _wrapped(translated(text))
    helps = {name: paragraphs(command.help or "")[0] for name, command in group.commands.items()}
    yield from _section("Commands:", [(name, translated(texts[0]) if texts else "") for name, texts in helps.items()])
    own = [(_option(each), _about(each)) for each in group.params]
    yield from _section("Options:", [*own, *((name, translated(text)) for name, text in ANYWHERE)])
    yield from _section("Exit codes:", [(code, translated(text)) for code, text in CODES])
    yield from _examples(examples)


def _examples(lines: list[str]) -> Iterator[str]:
    if lines:
        yield ""
        yield translated(EXAMPLES)
        yield from (f"  {line}" for line in lines)


def _usage(*words: str) -> str:
    lead = label("Usage:")
    return wrapped(" ".join(words), _width(), first=lead, indent=" " * 4)


def _section(title: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    if not rows:
        return
    yield ""
    yield translated(title)
    column = 2 + min(NAMES, max(len(name) for name, _ in rows) + 2)
    for name, text in rows:
        head = f"  {name}".ljust(column)
        if len(name) + 4 > column:  # too long to stand beside its text
            yield f"  {name}"
            head = " " * column
        yield wrapped(text, _width(), first=head, indent=" " * column)


def _argument(parameter: Any) -> str:
    """`RUN`, `[RECIPE]`: a metavar may bring brackets of its own."""
    name: str = parameter.metavar or parameter.name.upper().replace("_", "-")
    return name if parameter.required or "[" in name else f"[{name}]"


def _option(parameter: Any) -> str:
    """`--model, --base MODEL`."""
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    word = parameter.metavar or parameter.name.rpartition("_")[2].upper()
    return names if parameter.is_flag else f"{names} {word}"


def _about(parameter: Any) -> str:
    """What a parameter is for, its default, and the variable that sets it."""
    said = [translated(" ".join((parameter.help or "").split()))]
    default = parameter.default
    if parameter.param_type_name == "option" and default not in (None, False, "") and not callable(default):
        said.append(
            f"[{label('default:')}{default:g}]" if isinstance(default, float) else f"[{label('default:')}{default}]"
        )
    if getattr(parameter, "show_envvar", False) and parameter.envvar:
        said.append(f"[${parameter.envvar}]")
    return " ".join(said)


def _wrapped(text: str) -> Iterator[str]:
    yield wrapped(text, _width())


def _width() -> int:
    return min(WIDEST, shutil.get_terminal_size((80, 24)).columns)
