"""`luthier choose` on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from luthier.choosing.question import Wish
from luthier.config import RunConfig
from luthier.strict_json import to_json


def choose_command(
    recipe: Path | None,
    overrides: Sequence[str],
    wish: Wish,
    evidence: Sequence[Path],
    given: Sequence[str],
    *,
    as_json: bool,
) -> None:
    """Choose, and show it: exit code 2 where nothing fits."""
    from luthier.terminal import Terminal, consent, console, starting

    config = RunConfig.load(recipe, overrides)
    if not as_json:
        starting("choose", f"a method for {config.sources}")
    from luthier import run
    from luthier.choosing.words import show
    from luthier.consent import refuse_foreign
    from luthier.training.progress import Progress

    refuse_foreign(recipe, config.model, None, overrides, consent())
    found = run.choose(
        config,
        wish,
        evidence=evidence,
        given=given,
        progress=Progress() if as_json else Terminal(),
    )
    if as_json:
        typer.echo(to_json(found, indent=1, ensure_ascii=False))
    else:
        show(found, console)
    if not found["ranked"]:
        raise typer.Exit(2)
