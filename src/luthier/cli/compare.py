"""`luthier compare` on the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from luthier.core.errors import Stopped
from luthier.core.shell import command
from luthier.recipe.config import RunConfig


def compare_command(
    recipe: Path | None,
    overrides: Sequence[str],
    methods: str,
    budget: str | None,
    tokens: int | None,
    seeds: int,
    *,
    tune: bool,
    workers: int | None,
) -> None:
    """Compare, show the table, and say where the page is."""
    from luthier.builtin import DEMO
    from luthier.cli.progress import Terminal, consent, console, starting
    from luthier.recipe.consent import refuse_foreign

    if recipe == Path("demo") and not recipe.is_file():  # a folder of that name is no recipe
        recipe, overrides = DEMO, ["run=runs/compare-demo", *overrides]
    terminal = Terminal()
    config = RunConfig.load(recipe, overrides)
    starting("compare", f"methods {methods} on {config.sources}")
    for note in refuse_foreign(recipe, config.model, config.evaluate, overrides, consent()):
        terminal.note(note)
    from luthier.cli.show_compare import show
    from luthier.comparison.budget import seconds_of
    from luthier.comparison.compare import compare
    from luthier.comparison.runner import CompareConfig

    wish = CompareConfig(methods, None if budget is None else seconds_of(budget), tokens, seeds, tune, workers)
    try:
        found = compare(config, wish, recipe=recipe, progress=terminal)
    except Stopped as stop:
        terminal.train_ends()
        console.print(f"{stop}. To go on, give the same command again:")
        console.print(f"  [bold]{command('luthier', *sys.argv[1:])}[/]", soft_wrap=True)
        raise typer.Exit(stop.exit_code) from None
    except BaseException:
        terminal.train_ends()
        raise
    show(found)
