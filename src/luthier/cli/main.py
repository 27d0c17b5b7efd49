"""The command line: finds the commands, runs one, and turns errors into a message and an exit code."""

import importlib
import os
import pkgutil
import sys
from typing import Annotated

import typer

from luthier.cli import commands
from luthier.core.entry_points import installed
from luthier.core.errors import LuthierError
from luthier.core.quiet import set_environment
from luthier.core.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine-tune language models: from a data file and a base model to a measured, usable model.",
    epilog="Any command with --debug shows the full traceback of an error.",
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


ORDER = "demo train check plan choose compare evaluate export serve chat list explain cache"
"""In which the help shows the commands; those of other packages follow."""


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


package, order = commands.__name__, ORDER.split()
own = {module.name: f"{package}.{module.name}" for module in pkgutil.iter_modules(commands.__path__)}
found = {**installed(package), **own}  # entry points of that name in other packages, and every file of ours
for name in [*order, *sorted(found.keys() - order)]:
    app.command(name)(importlib.import_module(found[name]).command)


def main() -> None:
    """Run the command line: errors become one message and an exit code; --debug shows the traceback."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    if len(sys.argv) == 1:
        sys.argv.append("--help")  # typer's no_args_is_help raises an error that depends on its version
    set_environment()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr.isatty() else "1")
    try:
        code = app(standalone_mode=False) or 0
    except Exception as error:
        code = _report(error, debug)
    if code == INTERRUPTED:
        print("stopped; rerun the same command to resume from the last checkpoint, if there is one", file=sys.stderr)
        code = 75
    sys.exit(code)


def _report(error: Exception, debug: bool) -> int:
    """Print one message; return the exit code: 2 for errors in the user's input, 1 for internal errors."""
    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, typer.Abort):
        return 75
    if isinstance(error, USAGE_ERROR):
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        message = message.replace("Value error, ", "")  # typer's words for a value that is not a choice
        print(f"error: {message}\n  fix: luthier --help, or luthier COMMAND --help", file=sys.stderr)
        return 2
    from luthier.cli.terminal.progress import show_error
    from luthier.core.resources import explained

    known = error if isinstance(error, LuthierError) else explained(error)
    if known is not None:
        show_error(str(known))
        return known.exit_code
    if isinstance(error, OSError) and error.errno is not None:
        show_error(f"{error.strerror}: {error.filename}" if error.filename else str(error))
        return 2
    show_error(f"{type(error).__name__}: {error}\n  This is a bug in Luthier. --debug shows where; please report it.")
    return 1
