"""The command line: thin commands over luthier.pipeline.train, which load torch only when they need it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli import use
from luthier.core.errors import InputError, LuthierError, Stopped
from luthier.core.shell import command
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
"""What typer makes of ctrl-C where no run is under way that could save itself."""
USAGE_ERROR: type[BaseException] = typer.BadParameter.__mro__[-4]
"""The base of all errors about the command line. It is click's up to typer 0.25 and typer's own later, and only typer
0.27.1 and newer give it a public name, so it is found above an error that all of them export."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"luthier {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, over the demo's recipe.", metavar="[KEY.PATH=VALUE]...")
    ] = None,
) -> None:
    """Fine-tune the embedded base on embedded reviews, offline, in two minutes."""
    from luthier.builtin import DEMO

    _train([str(DEMO), *(overrides or [])], {"run": "runs/demo"}, fresh=True)


@app.command()
def train(
    recipe: Annotated[
        list[str] | None,
        typer.Argument(
            help="A YAML recipe and key.path=value overrides, for example train.steps=100. A file whose name holds = "
            "counts as a file where it is there.",
            metavar="[RECIPE] [KEY.PATH=VALUE]...",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base model: folder, hub id, or builtin.")] = None,
    data: Annotated[str | None, typer.Option(help="File, folder, hub id, or builtin:NAME.")] = None,
    method: Annotated[str | None, typer.Option(help="How to tune; see luthier list methods.")] = None,
    task: Annotated[str | None, typer.Option(help="What to learn; see luthier list tasks.")] = None,
) -> None:
    """Train. The same command again goes on where it stopped."""
    _train(recipe or [], {"model": model, "data": data, "method": method, "task": task})


def _train(arguments: list[str], options: dict[str, str | None], *, fresh: bool = False) -> None:
    from luthier.cli.progress import Terminal, consent, console, starting
    from luthier.recipe.config import RunConfig
    from luthier.recipe.consent import refuse_foreign
    from luthier.recipe.identity import run_path

    recipe, overrides = split_arguments(arguments, options)
    notes: list[str] = []
    config = RunConfig.load(recipe, overrides, notes)
    told = refuse_foreign(recipe, config.model, config.evaluate, overrides, consent())
    if fresh:
        config = _fresh(config)
    terminal = Terminal(config.train.log_every)
    starting("demo" if fresh else "train", f"{config.method.name} on {config.sources}", run_path(config, recipe))
    for note in [*notes, *told]:
        terminal.note(note)
    from luthier.cli.show_result import show_result
    from luthier.pipeline.train import train

    try:
        result = train(config, recipe=recipe, progress=terminal)
    except Stopped as stop:
        terminal.train_ends()
        console.print(f"{stop}. To go on, give the same command again:")
        console.print(f"  [bold]{_same_command()}[/]", soft_wrap=True)
        raise typer.Exit(stop.exit_code) from None
    except BaseException:
        terminal.train_ends()
        raise
    show_result(result)


@app.command()
def check(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            help="A YAML recipe or the data itself (file, folder, hub id, builtin:NAME), and key.path=value overrides.",
            metavar="[RECIPE_OR_DATA] [KEY.PATH=VALUE]...",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Whose tokenizer counts: folder, hub id, or builtin.")] = None,
    task: Annotated[str | None, typer.Option(help="What to learn; see luthier list tasks.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; default runs/check-<recipe or data>.")] = None,
) -> None:
    """Look at the data before training: exit code 2 where train would stop at it, with every row at fault."""
    from luthier.cli.progress import Terminal, consent, show_check, starting
    from luthier.recipe.config import RunConfig
    from luthier.recipe.consent import refuse_foreign
    from luthier.recipe.identity import check_path

    source, overrides = split_arguments(data or [])
    recipe = source if source and source.suffix in (".yaml", ".yml") else None
    # As it was typed: a path object would drop a leading ./, which tells a file from a hub id.
    typed = next((argument for argument in data or [] if not is_override(argument)), None)
    overrides = given_options({"data": None if recipe else typed, "model": model, "task": task}) + overrides
    config = RunConfig.load(recipe, overrides)
    out = out or check_path(config, recipe)
    starting("check", config.sources, out)
    refuse_foreign(recipe, config.model, None, overrides, consent())
    from luthier.pipeline.check import check as check_data

    result = check_data(config, out, progress=Terminal())
    show_check(result)
    if result["stops"]:
        raise typer.Exit(2)


@app.command()
def plan(
    recipe: Annotated[
        list[str] | None,
        typer.Argument(help="As for train: a YAML recipe and overrides.", metavar="[RECIPE] [KEY.PATH=VALUE]..."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base model: folder, hub id, or builtin.")] = None,
    data: Annotated[str | None, typer.Option(help="File, folder, hub id, or builtin:NAME.")] = None,
    method: Annotated[str | None, typer.Option(help="How to tune; see luthier list methods.")] = None,
    task: Annotated[str | None, typer.Option(help="What to learn; see luthier list tasks.")] = None,
) -> None:
    """Say what memory and time a run will take before any weights are downloaded: exit code 2 where it will not fit."""
    from luthier.cli.progress import Terminal, consent, show_plan, starting
    from luthier.recipe.config import RunConfig
    from luthier.recipe.consent import refuse_foreign

    path, overrides = split_arguments(recipe or [], {"model": model, "data": data, "method": method, "task": task})
    config = RunConfig.load(path, overrides)
    starting("plan", f"{config.method.name} on {config.sources}")
    refuse_foreign(path, config.model, config.evaluate, overrides, consent())
    from luthier.pipeline.plan import plan as plan_run

    found = plan_run(config, progress=Terminal())
    show_plan(found)
    if found["fits"] is False:
        raise typer.Exit(2)


@app.command("compare")
def compare_(
    recipe: Annotated[
        list[str] | None,
        typer.Argument(
            help="As for train: a YAML recipe, or demo, and overrides.", metavar="[RECIPE] [KEY.PATH=VALUE]..."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base model: folder, hub id, or builtin.")] = None,
    data: Annotated[str | None, typer.Option(help="File, folder, hub id, or builtin:NAME.")] = None,
    task: Annotated[str | None, typer.Option(help="What to learn; see luthier list tasks.")] = None,
    methods: Annotated[str, typer.Option(help="all, or names with commas; see luthier list methods.")] = "all",
    budget: Annotated[str | None, typer.Option(help="Time for everything: 10m, 2h.", metavar="TIME")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, max=10**15, help="Training tokens of each run.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs of each method, with seeds one above another.")] = 1,
    tune: Annotated[bool, typer.Option("--tune", help="Search each method's rate and size first.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, max=1000, help="Runs at a time; as many as are faster.")] = None,
) -> None:
    """Train every method on the same base, data and tokens, and say which differences are real."""
    from luthier.cli.compare import compare_command

    path, overrides = split_arguments(recipe or [], {"model": model, "data": data, "task": task})
    compare_command(path, overrides, methods, budget, tokens, seeds, tune=tune, workers=workers)


@app.command()
def choose(
    recipe: Annotated[
        list[str] | None,
        typer.Argument(help="As for train: a YAML recipe and overrides.", metavar="[RECIPE] [KEY.PATH=VALUE]..."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base model: folder, hub id, or builtin.")] = None,
    data: Annotated[str | None, typer.Option(help="File, folder, hub id, or builtin:NAME.")] = None,
    task: Annotated[str | None, typer.Option(help="What to learn; see luthier list tasks.")] = None,
    variants: Annotated[int | None, typer.Option(help="Tuned models to be kept and served over one base.")] = None,
    latency: Annotated[str | None, typer.Option(help="Milliseconds a token, or merged: as fast as the base.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Of another machine's GPU (or CPU, with model.device=cpu), such as 12GB.")
    ] = None,
    devices: Annotated[int | None, typer.Option(help="How many of them there are.")] = None,
    time: Annotated[str | None, typer.Option(help="Longest training, such as 45min or 2h.")] = None,
    rows: Annotated[int | None, typer.Option(help="Training rows; then no data is read.")] = None,
    evidence: Annotated[
        list[Path] | None, typer.Option(help="A compare.json; runs/*/compare.json count anyway.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON and nothing else.")] = False,
) -> None:
    """Say which method to take, with reasons that can be checked; loads no weights. Exit code 2 where nothing fits."""
    from luthier.cli.choose import choose_command
    from luthier.planning.advisor.question import Wish

    wish = Wish.said(variants=variants, latency=latency, memory=memory, devices=devices, time=time, rows=rows)
    options = {"model": model, "data": data, "task": task}
    path, overrides = split_arguments(recipe or [], options)
    given = [*(recipe or []), *(word for key, value in options.items() if value for word in (f"--{key}", value))]
    choose_command(path, overrides, wish, evidence or [], given, as_json=as_json)


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete all of it.")] = False,
) -> None:
    """Show what was read and tokenized before and is kept for the next start; LUTHIER_CACHE says where."""
    from luthier.cli.progress import show_cache
    from luthier.data import cache as kept

    show_cache(str(kept.root()), [] if clear else kept.entries(), kept.clear() if clear else None)


def _fresh(config: Any) -> Any:
    """A demo always runs: the first free one of runs/demo, runs/demo-2, ..."""
    from luthier.runs.folder import RunFolder

    base, number = config.run, 1
    while RunFolder(Path(config.run)).result.is_file():
        number += 1
        config = config.model_copy(update={"run": f"{base}-{number}"})
    return config


def _same_command() -> str:
    return command("luthier", *sys.argv[1:])


def split_arguments(
    arguments: list[str], options: dict[str, str | None] | None = None
) -> tuple[Path | None, list[str]]:
    """(recipe or None, overrides): the recipe is the one argument that is no override.

    Options that were given come first among the overrides.
    """
    recipes = [argument for argument in arguments if not is_override(argument)]
    if len(recipes) > 1:
        raise InputError(
            f"one recipe is one run, these are {len(recipes)}: {', '.join(recipes)}", fix="key.path=value sets a value"
        )
    overrides = given_options(options or {}) + [argument for argument in arguments if is_override(argument)]
    return (Path(recipes[0]) if recipes else None), overrides


def is_override(argument: str) -> bool:
    """Is it key.path=value? A file of that very name that is there is a file, and so is what reads as a path."""
    key, equals, _ = argument.partition("=")
    return bool(equals) and not {"/", os.sep} & set(key) and not os.path.isfile(argument)  # noqa: PTH113 (it raises nothing)


def given_options(options: dict[str, str | None]) -> list[str]:
    """Options as overrides; a name or path counts as it stands, whatever YAML would make of it."""
    return [
        f"{key}={json.dumps(value, ensure_ascii=False) if key in ('model', 'data') else value}"
        for key, value in options.items()
        if value is not None
    ]


app.command()(use.evaluate)
app.command("export")(use.export_)
app.command()(use.serve)
app.command()(use.chat)


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help="methods, tasks, formats, evaluations, exports, data or models.")],
) -> None:
    """Name what there is of a kind, with a line about each."""
    from luthier.cli.explain import listing

    typer.echo(listing(kind))


@app.command()
def explain(
    kind: Annotated[
        str,
        typer.Argument(
            help="method, task, format, evaluation, export, the name of one, or a block of a recipe such as train."
        ),
    ],
    name: Annotated[str, typer.Argument(help="Which one of the kind, for example lora.")] = "",
) -> None:
    """Say what something is: idea, formula, paper, and every field."""
    from luthier.cli.explain import explanation

    typer.echo(explanation(kind, name))


def main() -> None:
    """Entry point: errors of ours become one message and an exit code; --debug anywhere shows the traceback."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    if len(sys.argv) == 1:
        sys.argv.append("--help")  # typer's no_args_is_help is an error here, and not the same one in every version
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for name in ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr.isatty() else "1")
    try:
        code = app(standalone_mode=False) or 0
    except Exception as error:
        code = _report(error, debug)
    if code == INTERRUPTED:
        print("stopped; the same command again goes on from the last checkpoint, if there is one", file=sys.stderr)
        code = 75
    sys.exit(code)


def _usage(kind: str, message: str) -> int:
    """A command line that typer does not understand, or that says nothing."""
    if kind == "NoArgsIsHelpError":
        print(message)
        return 0
    print(f"error: {message}\n  fix: luthier --help, or luthier COMMAND --help", file=sys.stderr)
    return 2


def _report(error: Exception, debug: bool) -> int:
    """Print one message; returns the exit code: 2 the user's input, 1 our fault."""
    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, typer.Abort):
        return 75
    if isinstance(error, USAGE_ERROR):
        return _usage(type(error).__name__, error.format_message() if hasattr(error, "format_message") else str(error))
    from luthier.cli.progress import show_error

    if isinstance(error, LuthierError):
        show_error(str(error))
        return error.exit_code
    from luthier.core.resources import explained

    if (told := explained(error)) is not None:
        show_error(str(told))
        return told.exit_code
    if isinstance(error, OSError) and error.errno is not None:
        show_error(f"{error.strerror}: {error.filename}" if error.filename else str(error))
        return 2
    show_error(f"{type(error).__name__}: {error}\n  This is our fault. --debug shows where; please report it.")
    return 1
