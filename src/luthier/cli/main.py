"""The command line: finds the commands, runs one, and turns errors into a message and an exit code."""

import importlib
import os
import pkgutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli import commands
from luthier.cli.terminal.arguments import as_typed_keys
from luthier.cli.terminal.help import Command, Group
from luthier.core import language
from luthier.core.entry_points import installed
from luthier.core.errors import InputError, LuthierError
from luthier.core.quiet import set_environment
from luthier.core.ranks import Followed, started
from luthier.core.version import __version__

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

INTERRUPTED = 130
"""Typer's exit code for ctrl-C outside of a run, which would save its state."""
USAGE_ERROR: type[BaseException] = typer.BadParameter.__mro__[-4]
"""The base class of all usage errors. It is click's up to typer 0.25 and typer's own later, and only typer 0.27.1 and
newer export it, so it is taken from the bases of an error that all of them export."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"luthier {__version__}")
        raise typer.Exit


ORDER = ["demo", "init", "check", "plan", "choose", "train", "runs", "watch", "track", "compare", "evaluate", "export"]
ORDER += ["ui", "launch", "serve", "chat", "list", "explain", "cache"]
"""In which the help shows the commands; those of other packages follow."""


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-tune language models: from a data file and a base model to a measured, usable model.

    Examples:
        luthier demo
        luthier init
        luthier train --data reviews.jsonl --model builtin --method lora
        luthier train --help
    """


package = commands.__name__
own = {module.name: f"{package}.{module.name}" for module in pkgutil.iter_modules(commands.__path__)}
found = {**installed(package), **own}  # entry points of that name in other packages, and every file of ours
for name in [*ORDER, *sorted(found.keys() - {*ORDER})]:
    app.command(name, cls=Command)(importlib.import_module(found[name]).command)


def main() -> None:
    """Run the command line: errors become one message and an exit code; --debug shows the traceback."""
    if started() and os.environ["RANK"] != "0":
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # rank 0 speaks for all
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        _choose_language()
    except InputError as error:
        sys.exit(_report(error, debug))
    if len(sys.argv) == 1:
        sys.argv.append("--help")  # typer's no_args_is_help raises an error that depends on its version
    set_environment()
    try:
        code = app(as_typed_keys(sys.argv[1:]), prog_name="luthier", standalone_mode=False) or 0
    except Exception as error:
        code = _report(error, debug)
    if code == INTERRUPTED:
        said = "stopped; rerun the same command to resume from the last checkpoint, if there is one"
        print(language.translated(said), file=sys.stderr)
        code = 75
    sys.exit(code)


def _choose_language() -> None:
    """Take `--lang NAME` out of the command line, wherever it stands. InputError if there is no such language."""
    for place, word in enumerate(sys.argv):
        option, equals, name = word.partition("=")
        if option == "--lang":
            name = name if equals else "".join(sys.argv[place + 1 : place + 2])
            try:
                language.speak(name)
            except ValueError as error:
                raise InputError(f"--lang: {error}") from None
            del sys.argv[place : place + (1 if equals else 2)]
            return


def _report(error: Exception, debug: bool) -> int:
    """Print one message; return the exit code: 2 for errors in the user's input, 1 for internal errors."""
    if debug:
        import traceback

        traceback.print_exception(error)
    from luthier.cli.terminal.console import show_error

    if isinstance(error, typer.Abort):
        return 75
    if isinstance(error, USAGE_ERROR):
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        message = message.replace("Value error, ", "")  # typer's words for a value that is not a choice
        show_error(str(InputError(message, fix="luthier --help, or luthier COMMAND --help")))
        return 2
    from luthier.core.resources import explained

    if isinstance(error, Followed):
        return error.exit_code
    known = error if isinstance(error, LuthierError) else explained(error)
    if known is not None:
        show_error(str(known))
        return known.exit_code
    if isinstance(error, OSError) and error.errno is not None:
        show_error(f"{error.strerror}: {error.filename}" if error.filename else str(error))
        return 2
    show_error(f"{type(error).__name__}: {error}\n  This is a bug in Luthier. --debug shows where; please report it.")
    return 1
