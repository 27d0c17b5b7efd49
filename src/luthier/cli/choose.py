"""`luthier choose` on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from luthier.core.strict_json import to_json
from luthier.planning.advisor.question import Wish
from luthier.recipe.config import RunConfig


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
    from luthier.cli.progress import Terminal, consent, console, starting

    config = RunConfig.load(recipe, overrides)
    if not as_json:
        starting("choose", f"a method for {config.sources}")
    from luthier.core.events import Progress
    from luthier.pipeline.choose import choose as rank
    from luthier.planning.advisor.commands import show
    from luthier.recipe.consent import refuse_foreign

    refuse_foreign(recipe, config.model, None, overrides, consent())
    found = rank(
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
