"""Runs on the terminal: a list of them, and one that is followed while it works."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from luthier.cli.terminal.console import console, safe, table
from luthier.cli.terminal.curve import braille_curve
from luthier.cli.terminal.progress import Terminal
from luthier.core.language import filled, translated
from luthier.core.shell import shell_line
from luthier.core.units import clock, duration
from luthier.reports.run_report import figure
from luthier.runs.folder import RunFolder
from luthier.runs.remote import is_url, local
from luthier.runs.state import History, RunState, State, state_of

STYLES: dict[State, str] = {
    "running": "bold green",
    "finished": "green",
    "stopped": "yellow",
    "killed": "red",
    "damaged": "bold red",
}
WIDE, WIDER = 96, 110
"""Terminal widths from which the list has data and base of each run."""
TICK, REMOTE_TICK = 0.5, 5.0
"""Seconds between two looks at a run that works, in a folder and at a URL."""
LAST = 50
"""Steps whose mean time says how long the rest will take."""


def show_runs(found: Sequence[RunState], folder: str) -> None:
    """A table of runs: state, method, score with the base's, time of training, and age."""
    if not found:
        console.print(f"  there is no run in {safe(folder)}")
        return
    width = console.width
    more = [*(["base"] if width >= WIDER else []), *(["data"] if width >= WIDE else [])]
    shown = table("run", "state", "method", *more, "score", ">time", ">ago", wrap=False)
    for column in (shown.columns[0], *shown.columns[3 : 3 + len(more)]):
        column.no_wrap, column.overflow = False, "fold"  # long names make more lines, and cut nothing off
    for state in found:
        facts = {"base": state.model, "data": state.data}
        below = state.run != folder and Path(state.run).is_relative_to(folder)
        shown.add_row(
            safe(str(Path(state.run).relative_to(folder)) if below else state.run),
            f"[{STYLES[state.state]}]{translated(state.state)}[/]",
            state.method,
            *(safe(Path(facts[each]).name) for each in more),
            _score(state),
            duration(state.seconds) if state.seconds else "",
            "" if state.state == "running" else _age(time.time() - state.changed),
        )
    console.print(shown)
    for state in found:
        if state.why:
            console.print(f"  [red]{safe(state.run)}: {safe(state.why)}[/]")


def _age(seconds: float) -> str:
    return f"{seconds / 86400:.0f} d" if seconds > 2 * 86400 else duration(max(0.0, seconds))


def _score(state: RunState) -> str:
    """The score that ranks, before and after; of a run that is not finished its step and loss."""
    if state.metric and state.tuned is not None:
        before = "" if state.base is None else f"{figure(state.metric, state.base)} → "
        return f"{translated(state.metric.replace('_', ' '))} {before}{figure(state.metric, state.tuned)}"
    if state.state == "damaged":
        return ""
    whole = f"/{state.steps}" if state.steps else ""
    return f"{translated('step')} {state.step}{whole}" + (
        f", {translated('loss')} {state.loss:.3f}" if state.loss else ""
    )


def follow(given: str) -> State:
    """Show a run until it ends, and how it ended. InputError where there is none."""
    path = local(given, small=True)
    history = History(RunFolder.existing(path))
    state = state_of(path, history)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(screen(state, history, console.width, console.height), refresh=True)
                if state.state != "running":
                    break
                _wait(given)
                state = state_of(path, history)
    else:
        state = _lines(given, path, state, history)
    _end(state)
    return state.state


def screen(state: RunState, history: History, width: int, height: int) -> RenderableType:
    """The curve above, the latest figures below, for a terminal of so many cells."""
    facts = f"  {state.run}: {state.method}, {state.model}, {state.data}"
    title = Text.assemble((translated(state.state), STYLES[state.state]), facts)
    losses = [(line["step"], line["loss"]) for line in history.steps if line["loss"] is not None]
    steps = max(state.steps or 0, state.step, 1)
    drawn = braille_curve(losses, history.evaluations, steps, min(width, 120), max(6, min(20, height - 7)))
    title.no_wrap, drawn.no_wrap = True, True
    return Group(title, drawn, *map(Text.from_markup, _figures(state, history)))


def _figures(state: RunState, history: History) -> list[str]:
    """Lines of figures: step, loss and speed; held-out loss; times."""
    whole = f"/{state.steps}" if state.steps else ""
    if not history.steps:
        return [f"  {translated('no step is taken yet')}"]
    last = history.steps[-1]
    tokens = sum(line["tokens"] for line in history.steps)
    speed = tokens / max(1e-9, sum(line["seconds"] for line in history.steps))
    loss = "NaN" if last["loss"] is None else f"{last['loss']:.4f}"
    lines = [translated(f"step {state.step}{whole}  loss {loss}  lr {last['lr']:.2e}  {speed:,.0f} tokens/s")]
    if found := history.evaluations:
        best = min(found, key=lambda each: each[1])
        lines.append(translated(f"held-out loss {found[-1][1]:.4f}, best {best[1]:.4f} at step {best[0]}"))
    times = filled("elapsed {0}", clock(state.seconds))
    if state.state == "running" and state.steps:
        each = [line["seconds"] for line in history.steps[-LAST:]]
        times += filled(", left {0}", clock(sum(each) / len(each) * (state.steps - state.step)))
    return [f"  {escape(line)}" for line in [*lines, times]]


def _wait(given: str) -> None:
    """Wait before the next look at a run; a copy of one at a URL is renewed then."""
    time.sleep(REMOTE_TICK if is_url(given) else TICK)
    local(given, small=True)


def _lines(given: str, path: Path, state: RunState, history: History) -> RunState:
    """Follow a run as a log does: the lines that `luthier train` writes into one."""
    terminal, tokens, seconds, new = Terminal(10), 0, 0.0, list(history.lines)
    terminal.total, terminal.lasts = state.steps or state.step, state.state == "running"
    if state.state == "running":
        terminal.start = state.step
        new = [line for line in new if "loss" not in line]  # of what is past only the evaluations
    best = float("inf")
    while True:
        for line in new:
            if "loss" in line:
                tokens, seconds = tokens + line["tokens"], seconds + line["seconds"]
                terminal.step(line, tokens / max(seconds, 1e-9))
            elif (loss := line.get("validation_loss")) is not None:
                terminal.evaluated(line["step"], loss, loss < best)
                best = min(best, loss)
        if state.state != "running":
            return state
        _wait(given)
        seen = len(history.lines)
        state = state_of(path, history)
        new = history.lines[seen:]


def _end(state: RunState) -> None:
    """How the run ended, and what to type next."""
    run, resume = safe(state.run), shell_line("luthier", "train", Path(state.run) / "recipe.yaml")
    if state.state == "finished":
        console.say(f"  [green]{translated(state.state)}[/]: {_score(state)}")
        console.print(f"  report: [bold]{run}/report.html[/]")
    elif state.state == "stopped":
        console.print(f"  [yellow]stopped at step {state.step}; everything is saved. Resume it:[/]")
        console.print(f"  [bold]{escape(resume)}[/]", soft_wrap=True)
    elif state.state == "killed":
        console.print(f"  [red]killed at step {state.step}. Resume it from its last checkpoint:[/]")
        console.print(f"  [bold]{escape(resume)}[/]", soft_wrap=True)
    else:
        console.print(f"  [red]{run}: {safe(state.why)}[/]")
