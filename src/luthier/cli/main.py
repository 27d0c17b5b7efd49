"""The command line: thin commands over luthier.pipeline that load torch only when they need it."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli import use
from luthier.core.errors import InputError, LuthierError
from luthier.core.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine-tune language models: from a data file and a base model to a measured, usable model.",
    epilog="Any command with --debug shows the full traceback of an error.",
)

Recipe = Annotated[
    list[str] | None,
    typer.Argument(
        help="A YAML recipe and key.path=value overrides, for example train.steps=100. A file whose name contains = "
        "is read as a file if it exists.",
        metavar="[RECIPE] [KEY.PATH=VALUE]...",
    ),
]
Model = Annotated[str | None, typer.Option(help="Base model: folder, hub id, or builtin.")]
Data = Annotated[str | None, typer.Option(help="File, folder, hub id, or builtin:NAME.")]
Method = Annotated[str | None, typer.Option(help="Fine-tuning method; see luthier list methods.")]
Task = Annotated[str | None, typer.Option(help="What to learn; see luthier list tasks.")]

INTERRUPTED = 130
"""Typer's exit code for ctrl-C outside of a run, which would save its state."""
USAGE_ERROR: type[BaseException] = typer.BadParameter.__mro__[-4]
"""The base class of all usage errors. It is click's up to typer 0.25 and typer's own later, and only typer 0.27.1 and
newer export it, so it is taken from the bases of an error that all of them export."""


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
        list[str] | None,
        typer.Argument(help="key.path=value overrides of the demo's recipe.", metavar="[KEY.PATH=VALUE]..."),
    ] = None,
) -> None:
    """Fine-tune the built-in base on built-in reviews, offline, in two minutes."""
    from luthier.builtin import DEMO

    _train([str(DEMO), *(overrides or [])], {"run": "runs/demo"}, fresh=True)


@app.command()
def train(
    recipe: Recipe = None, model: Model = None, data: Data = None, method: Method = None, task: Task = None
) -> None:
    """Train. Rerun the same command to resume a stopped run."""
    _train(recipe or [], {"model": model, "data": data, "method": method, "task": task})


def _train(arguments: list[str], options: dict[str, str | None], *, fresh: bool = False) -> None:
    from luthier.cli.progress import Terminal, consent, resumable, starting
    from luthier.recipe.config import RunConfig
    from luthier.recipe.consent import refuse_foreign
    from luthier.recipe.identity import run_path

    recipe, overrides = split_arguments(arguments, options)
    notes: list[str] = []
    config = RunConfig.load(recipe, overrides, notes)
    notes += refuse_foreign(recipe, config.model, config.evaluate, overrides, consent())
    if fresh:
        config = _fresh(config)
    terminal = Terminal(config.train.log_every)
    starting("demo" if fresh else "train", f"{config.method.name} on {config.sources}", run_path(config, recipe))
    for note in notes:
        terminal.note(note)
    from luthier.cli.show_result import show_result
    from luthier.pipeline.train import train

    with resumable(terminal):
        show_result(train(config, recipe=recipe, progress=terminal))


@app.command()
def check(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            help="A YAML recipe or the data itself (file, folder, hub id, builtin:NAME), and key.path=value overrides.",
            metavar="[RECIPE_OR_DATA] [KEY.PATH=VALUE]...",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model whose tokenizer to use: folder, hub id, or builtin.")] = None,
    task: Task = None,
    out: Annotated[Path | None, typer.Option(help="Output folder (default: runs/check-<recipe or data>).")] = None,
) -> None:
    """Check the data before training: exit code 2 if train would stop, with every row that is at fault."""
    from luthier.cli.progress import Terminal, consent, show_check, starting
    from luthier.recipe.config import RunConfig
    from luthier.recipe.consent import refuse_foreign
    from luthier.recipe.identity import check_path

    source, overrides = split_arguments(data or [])
    recipe = source if source and source.suffix in (".yaml", ".yml") else None
    # Not a Path, which would drop a leading ./ that distinguishes a file from a hub id.
    typed = next((argument for argument in data or [] if not is_override(argument)), None)
    overrides = given_options({"data": None if recipe else typed, "model": model, "task": task}) + overrides
    config = RunConfig.load(recipe, overrides)
    out = out or check_path(config, recipe)
    starting("check", config.sources, out)
    refuse_foreign(recipe, config.model, None, overrides, consent())
    from luthier.pipeline.check import check as check_data

    found = check_data(config, out, progress=Terminal())
    show_check(found)
    if found["stops"]:
        raise typer.Exit(2)


@app.command()
def plan(
    recipe: Recipe = None, model: Model = None, data: Data = None, method: Method = None, task: Task = None
) -> None:
    """Estimate memory and time of a run before any weights are downloaded: exit code 2 if it will not fit."""
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
    model: Model = None,
    data: Data = None,
    task: Task = None,
    methods: Annotated[str, typer.Option(help="all, or comma-separated names; see luthier list methods.")] = "all",
    budget: Annotated[str | None, typer.Option(help="Time limit for all runs: 10m, 2h.", metavar="TIME")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, max=10**15, help="Training tokens of each run.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs of each method, with consecutive seeds.")] = 1,
    tune: Annotated[bool, typer.Option("--tune", help="First search each method's learning rate and size.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, max=1000, help="Parallel runs (default: auto).")] = None,
) -> None:
    """Train every method on the same base, data and tokens, and test which differences are significant."""
    from luthier.builtin import DEMO
    from luthier.cli.progress import Terminal, consent, resumable, starting
    from luthier.recipe.config import RunConfig
    from luthier.recipe.consent import refuse_foreign

    path, overrides = split_arguments(recipe or [], {"model": model, "data": data, "task": task})
    if path == Path("demo") and not path.is_file():  # a folder of that name is not a recipe
        path, overrides = DEMO, ["run=runs/compare-demo", *overrides]
    terminal = Terminal()
    config = RunConfig.load(path, overrides)
    starting("compare", f"methods {methods} on {config.sources}")
    for note in refuse_foreign(path, config.model, config.evaluate, overrides, consent()):
        terminal.note(note)
    from luthier.cli.show_compare import show
    from luthier.comparison.budget import seconds_of
    from luthier.comparison.compare import compare
    from luthier.comparison.runner import CompareConfig

    options = CompareConfig(methods, None if budget is None else seconds_of(budget), tokens, seeds, tune, workers)
    with resumable(terminal):
        show(compare(config, options, recipe=path, progress=terminal))


@app.command()
def choose(
    recipe: Recipe = None,
    model: Model = None,
    data: Data = None,
    task: Task = None,
    variants: Annotated[int | None, typer.Option(help="Tuned models to keep and serve over one base.")] = None,
    latency: Annotated[str | None, typer.Option(help="Max ms per token, or 'merged' (as fast as the base).")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory of another machine's GPU (or CPU, with model.device=cpu), such as 12GB.")
    ] = None,
    devices: Annotated[int | None, typer.Option(help="Number of such GPUs.")] = None,
    time: Annotated[str | None, typer.Option(help="Time limit of training, such as 45min or 2h.")] = None,
    rows: Annotated[int | None, typer.Option(help="Training rows, instead of reading data.")] = None,
    evidence: Annotated[
        list[Path] | None, typer.Option(help="A compare.json; runs/*/compare.json are always used.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the result, as JSON.")] = False,
) -> None:
    """Recommend a method, with verifiable reasons, without loading weights; exit code 2 if nothing fits."""
    from luthier.cli.progress import Terminal, consent, console, starting
    from luthier.core.events import Progress
    from luthier.core.strict_json import to_json
    from luthier.planning.advisor.question import Wish
    from luthier.recipe.config import RunConfig
    from luthier.recipe.consent import refuse_foreign

    wish = Wish.said(variants=variants, latency=latency, memory=memory, devices=devices, time=time, rows=rows)
    options = {"model": model, "data": data, "task": task}
    path, overrides = split_arguments(recipe or [], options)
    given = [*(recipe or []), *(word for key, value in options.items() if value for word in (f"--{key}", value))]
    config = RunConfig.load(path, overrides)
    if not as_json:
        starting("choose", f"a method for {config.sources}")
    from luthier.pipeline.choose import choose as rank
    from luthier.planning.advisor.commands import show

    refuse_foreign(path, config.model, None, overrides, consent())
    progress = Progress() if as_json else Terminal()
    found = rank(config, wish, evidence=evidence or [], given=given, progress=progress)
    if as_json:
        typer.echo(to_json(found, indent=1, ensure_ascii=False))
    else:
        show(found, console)
    if not found["ranked"]:
        raise typer.Exit(2)


@app.command()
def cache(clear: Annotated[bool, typer.Option("--clear", help="Delete all of it.")] = False) -> None:
    """Show the cache of tokenized data; LUTHIER_CACHE sets its folder."""
    from luthier.cli.progress import show_cache
    from luthier.data import cache as kept

    show_cache(str(kept.root()), [] if clear else kept.entries(), kept.clear() if clear else None)


def _fresh(config: Any) -> Any:
    """Use the first unused folder of runs/demo, runs/demo-2, ..., so that a demo always runs."""
    from luthier.runs.folder import RunFolder

    base, number = config.run, 1
    while RunFolder(Path(config.run)).result.is_file():
        number += 1
        config = config.model_copy(update={"run": f"{base}-{number}"})
    return config


def split_arguments(
    arguments: list[str], options: dict[str, str | None] | None = None
) -> tuple[Path | None, list[str]]:
    """Return (recipe or None, overrides, options first): the recipe is the one argument that is not an override."""
    recipes = [argument for argument in arguments if not is_override(argument)]
    if len(recipes) > 1:
        raise InputError(
            f"one recipe is one run, these are {len(recipes)}: {', '.join(recipes)}", fix="key.path=value sets a value"
        )
    overrides = given_options(options or {}) + [argument for argument in arguments if is_override(argument)]
    return (Path(recipes[0]) if recipes else None), overrides


def is_override(argument: str) -> bool:
    """Is it key.path=value? An existing file of that name is a file, and so is anything with a slash in the key."""
    key, equals, _ = argument.partition("=")
    return bool(equals) and not {"/", os.sep} & set(key) and not os.path.isfile(argument)  # noqa: PTH113 (never raises)


def given_options(options: dict[str, str | None]) -> list[str]:
    """Return options as overrides; names and paths are quoted, so that YAML reads them as text."""
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
    """List the names of a kind, each with a description."""
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
    name: Annotated[str, typer.Argument(help="Name, for example lora.")] = "",
) -> None:
    """Explain a name: idea, formula, paper, and every field."""
    from luthier.cli.explain import explanation

    typer.echo(explanation(kind, name))


def main() -> None:
    """Run the command line: errors become one message and an exit code; --debug shows the traceback."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    if len(sys.argv) == 1:
        sys.argv.append("--help")  # typer's no_args_is_help raises an error that depends on its version
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for name in ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
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
        print(f"error: {message}\n  fix: luthier --help, or luthier COMMAND --help", file=sys.stderr)
        return 2
    from luthier.cli.progress import show_error
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
