"""Curves and events of a run: reduced, complete, and continued where a connection was lost."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from luthier.runs.folder import RunFolder
from luthier.ui import live
from luthier.ui.index import RunIndex


async def called(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


def events_of(text: str) -> list[tuple[int, str, Any]]:
    made = []
    for block in text.strip().split("\n\n"):
        parts = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if parts:
            made.append((int(parts["id"]), parts["event"], json.loads(parts["data"])))
    return made


def test_events_begin_where_the_connection_was_lost(client: TestClient) -> None:
    client.get("/api/runs")
    whole = events_of(client.get("/api/run/events", params={"id": "first"}).text)
    assert whole[0][1] == "lines" and len(whole[0][2]) == 21 and whole[0][0] == 21
    assert whole[-1][1] == "state" and whole[-1][2]["state"] == "finished"
    assert whole[0][2][0]["tokens_per_second"] == 200
    rest = events_of(client.get("/api/run/events", params={"id": "first"}, headers={"last-event-id": "18"}).text)
    assert rest[0][2] == whole[0][2][18:]
    nothing = events_of(client.get("/api/run/events", params={"id": "first", "start": 21}).text)
    assert [kind for _, kind, _ in nothing] == ["state"]


def test_a_run_is_followed_until_it_ends(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "EVERY", 0.01)
    index, folder = RunIndex(root), RunFolder(root / "deep" / "second")
    index.refresh()

    async def follow() -> list[Any]:
        seen = []
        with folder.held():
            index.refresh()
            stream = live.events(index, "deep/second", 21, called)
            seen.append((await anext(stream)).decode())  # state: running
            with folder.metrics.open("a") as file:
                file.write('{"step": 21, "loss": 0.5, "tokens": 10, "seconds": 1}\n{"step": 22, "lo')
            seen.append((await anext(stream)).decode())
        async for part in stream:
            seen.append(part.decode())
        return [event for text in seen for event in events_of(text)]

    seen = asyncio.run(follow())
    assert [kind for _, kind, _ in seen] == ["state", "lines", "state", "state"]
    assert seen[1][2][0]["step"] == 21 and len(seen[1][2]) == 1  # half a line is left for later
    assert seen[-1][2]["state"] == "killed"


def test_a_file_that_was_replaced_is_sent_anew(root: Path) -> None:
    """A resumed run writes metrics.jsonl again, without the steps after its checkpoint."""
    index = RunIndex(root)
    index.refresh()

    async def all_of(start: int) -> list[Any]:
        return [
            event async for part in live.events(index, "first", start, called) for event in events_of(part.decode())
        ]

    assert len(asyncio.run(all_of(0))[0][2]) == 21
    path = root / "first" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)[:5]
    path.unlink()
    path.write_text("".join(lines))
    seen = asyncio.run(all_of(21))
    assert [kind for _, kind, _ in seen] == ["again", "lines", "state"] and len(seen[1][2]) == 5


def test_a_long_run_is_reduced_and_keeps_its_extremes(root: Path) -> None:
    path = root / "first" / "metrics.jsonl"
    with path.open("w") as file:
        for step in range(1, 30_001):
            loss = 9.5 if step == 17_003 else 1 + 1 / step
            file.write(f'{{"step": {step}, "loss": {loss}, "lr": 0.001}}\n')
    index = RunIndex(root)
    index.refresh()
    found = live.run_curves(index.history("first"), 1000)
    assert found["lines"] == 30_000
    loss = found["curves"]["loss"]
    assert len(loss) <= 1000 and [17_003, 9.5] in [list(point) for point in loss]
    assert loss[0][0] == 1 and max(step for step, _ in loss) > 29_900
    assert len(found["curves"]["smooth"]) <= 1000


def test_values_that_are_not_finite_break_nothing(client: TestClient, root: Path) -> None:
    with (root / "first" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "loss": null}\nnot json\n')
    client.get("/api/runs")
    assert client.get("/api/run/curves", params={"id": "first"}).json()["curves"]["loss"][-1][0] == 20
