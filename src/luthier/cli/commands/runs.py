"""`luthier runs`: the runs of a folder."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[
        str, typer.Argument(help="Folder or URL to look in, also in its folders.", metavar="[FOLDER]")
    ] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print the runs as JSON.")] = False,
) -> None:
    """List runs: what became of each, its method, score and time. The one that changed last comes first.

    Examples:
        luthier runs
        luthier runs experiments --json
        luthier runs s3://bucket/experiments
    """
    from luthier.cli.terminal.show_runs import show_runs
    from luthier.core.errors import InputError
    from luthier.core.strict_json import to_json
    from luthier.runs.remote import is_url
    from luthier.runs.state import find_runs

    if not is_url(folder) and not Path(folder).is_dir():
        raise InputError(f"{folder} is no folder", fix="luthier runs FOLDER, where `luthier train` wrote its runs")
    found = find_runs(folder)
    if as_json:
        typer.echo(to_json([state.to_dict() for state in found], indent=1, ensure_ascii=False))
    else:
        show_runs(found, folder)
