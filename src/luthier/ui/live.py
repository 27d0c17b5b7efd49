"""What a run writes, as the page reads it: curves that are reduced here, and lines as they come."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from luthier.core.strict_json import to_json
from luthier.reports.chart import reduced, series, smooth
from luthier.runs.state import History
from luthier.ui.index import RunIndex

SERIES = ("loss", "lr", "grad_norm", "tokens_per_second", "memory", "device_memory", "validation_loss")
"""Values of a line of metrics.jsonl that have a curve."""
POINTS = 2000
"""Most points of a curve: more than a screen has columns."""
EVERY = 0.5
"""Seconds between two looks at a run that is at work."""
PATIENCE = 15.0
"""Seconds without news after which a comment keeps the connection open."""
BATCH = 500
"""Most lines of one event."""

Run = Callable[..., Awaitable[Any]]
"""Calls a function in a thread."""


def with_speed(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl with its tokens per second."""
    seconds, tokens = line.get("seconds"), line.get("tokens")
    return {**line, "tokens_per_second": tokens / seconds} if seconds and tokens else dict(line)


def run_curves(history: History, points: int = POINTS) -> dict[str, Any]:
    """Every curve of a run with at most so many points, and the number of lines that they come from.

    A point is [step, value]; of each part of a curve the least and the greatest value stay.
    """
    lines = [with_speed(line) for line in history.lines]
    made = {name: series(lines, name) for name in SERIES}
    shown = {name: reduced(values, points) for name, values in made.items() if values}
    if "loss" in shown:
        shown["smooth"] = reduced(smooth(made["loss"]), points)
    return {"lines": len(lines), "curves": shown}


async def events(index: RunIndex, name: str, start: int, call: Run) -> AsyncIterator[bytes]:
    """Server-sent events of a run from line `start` on: `lines`, `state`, and `again` where the file is another one.

    The id of an event is the number of lines so far, so that a lost connection goes on where it was. Ends with the run.
    """
    sent, state, quiet = start, None, 0.0
    while True:
        history, now = await call(_look, index, name)
        lines: Sequence[Mapping[str, Any]] = history.lines
        if len(lines) < sent:
            sent = 0
            yield _event("again", {}, 0)
        while sent < len(lines):
            part = [with_speed(line) for line in lines[sent : sent + BATCH]]
            sent += len(part)
            quiet = 0.0
            yield _event("lines", part, sent)
        if now != state:
            state, quiet = now, 0.0
            yield _event("state", now, sent)
        if now["state"] != "running":
            return
        quiet += EVERY
        if quiet >= PATIENCE:
            quiet = 0.0
            yield b": still here\n\n"
        await asyncio.sleep(EVERY)


def _look(index: RunIndex, name: str) -> tuple[History, dict[str, Any]]:
    history = index.history(name)
    index.refresh()
    state = index.state(name).to_dict()
    return history, {key: state[key] for key in ("state", "step", "steps", "seconds", "why")}


def _event(kind: str, value: Any, number: int) -> bytes:
    return f"id: {number}\nevent: {kind}\ndata: {to_json(value, ensure_ascii=False)}\n\n".encode()
