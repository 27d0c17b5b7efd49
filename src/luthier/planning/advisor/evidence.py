"""What was measured: `luthier compare` on this machine, this repository's own benchmarks, papers.

A board is one measurement of several methods on the same base and rows. Scores of different boards are never compared:
what counts is how far a method is behind the best one of the same board.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from luthier.core.errors import InputError, did_you_mean
from luthier.methods.base import PRESETS, QUANTIZED

HERE = Path(__file__).resolve().parent
TIE = 1.0
"""Points: methods that are no further apart count as equal."""
TIE_LOSS = 0.02
"""The same for a loss, as a share of the best one."""
NAMES = {(PRESETS[name][0], quantize): name for name, (quantize, _) in QUANTIZED.items()}
"""Method and quantization -> the name under which benchmarks list it."""
FIX = "--evidence takes the compare.json that luthier compare writes"

Learns = Literal["classify", "labels", "answers", "text"]
"""A label by a classification head, a label in words, free answers, or plain text."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a figure stands, so that a person can look it up."""

    kind: Literal["compare", "repository", "paper", "plan", "method"]
    place: str
    """File, arXiv id, or command."""
    key: str = ""
    """The command that made it, or the table of a paper."""

    def __str__(self) -> str:
        if self.kind == "paper":
            return f"[arXiv {self.place}{f', {self.key}' if self.key else ''}]"
        if self.kind == "compare":
            return f"[compare {self.place}]"
        return f"[{self.place}{f': {self.key}' if self.key else ''}]"


@dataclass(frozen=True, slots=True)
class Score:
    """A measured value, in the unit in which it is shown (points, or nats for a loss)."""

    value: float
    low: float | None = None
    high: float | None = None
    adapter_bytes: int | None = None
    memory: int | None = None
    """Bytes that the run took at most, where that was measured."""
    seconds: float | None = None

    def shown(self) -> str:
        """`84.4 (83.6 to 85.2)`."""
        digits = 1 if self.value >= 10 or self.value <= 0 else 3
        if self.low is None or self.high is None:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"

    def brief(self) -> str:
        """`84.4 ± 0.8`: the longer side of the interval."""
        if self.low is None or self.high is None:
            return self.shown()
        digits = 1 if self.value >= 10 or self.value <= 0 else 3
        return f"{self.value:.{digits}f} ± {max(self.value - self.low, self.high - self.value):.{digits}f}"


@dataclass(frozen=True, slots=True)
class Board:
    """Methods measured on the same base with the same rows."""

    tier: int
    """0 this base and data, 1 the same task on this machine, 2 this repository, 3 a paper. Lower counts first."""
    name: str
    metric: str
    higher_is_better: bool
    learns: str
    family: str
    model: str
    parameters: float | None
    rows: int | None
    scores: dict[str, Score]
    source: Source
    failed: dict[str, str]
    """Methods that ran into an error there, and which."""
    classes: int | None = None
    languages: tuple[str, ...] = ()

    def best(self) -> str:
        """The method with the best value."""
        pick = max if self.higher_is_better else min
        return pick(self.scores, key=lambda arm: self.scores[arm].value)

    def gap(self, arm: str) -> float:
        """How far `arm` is behind the best one, in the unit of the board."""
        return abs(self.scores[self.best()].value - self.scores[arm].value)

    def ties(self, arm: str) -> bool:
        """Counts as equal to the best: within a point (a loss: 2 %), or the intervals overlap."""
        near = TIE if self.higher_is_better else TIE_LOSS * abs(self.scores[self.best()].value)
        return self.gap(arm) <= near or self.overlaps(arm)

    def overlaps(self, arm: str) -> bool:
        """Not told apart from the best by the intervals.

        Intervals of two standard errors to either side that just touch are what Student's t test of two times three
        runs calls different at 5 %.
        """
        best, own = self.scores[self.best()], self.scores[arm]
        if best.low is None or best.high is None or own.low is None or own.high is None:
            return False
        return own.high >= best.low and own.low <= best.high

    def share_lost(self, arm: str) -> float:
        """0 where it ties, 1 where it is as far behind as the worst one: the only figure put together over boards."""
        worst = max(self.gap(other) for other in self.scores)
        return 0.0 if self.ties(arm) or not worst else self.gap(arm) / worst


def arm_of(method: str, quantize: str) -> str:
    """The name of a method on a base in `quantize`, as benchmarks list it."""
    return NAMES.get((method, quantize), method)


@lru_cache
def measured() -> dict[str, Any]:
    """The repository's own results, as benchmarks/methods/evidence.py put them together."""
    return dict(json.loads((HERE / "measured.json").read_text(encoding="utf-8")))


def repository() -> list[Board]:
    """The repository's own boards."""
    kept = measured()
    return [
        Board(
            2,
            made["name"],
            made["metric"],
            made["higher_is_better"],
            made["learns"],
            made["family"],
            made["model"],
            made["parameters"],
            made["rows"],
            {arm: Score(s["value"], s["low"], s["high"], s["bytes"]) for arm, s in made["scores"].items()},
            Source("repository", kept["file"], made["command"]),
            {},
            made["classes"],
            tuple(made["languages"]),
        )
        for made in kept["boards"]
    ]


@lru_cache
def papers() -> tuple[Board, ...]:
    """What papers report, with their tables; single values without intervals."""
    return tuple(
        Board(
            3,
            made["name"],
            made["metric"],
            True,
            made["learns"],
            made["family"],
            made["model"],
            made["parameters"],
            made["rows"],
            {arm: Score(value) for arm, value in made["scores"].items()},
            Source("paper", made["paper"], made["place"]),
            {},
        )
        for made in json.loads((HERE / "papers.json").read_text(encoding="utf-8"))
    )


def comparisons(files: Iterable[Path], *, model: str, data: str | None, task: str) -> list[Board]:
    """Boards of `luthier compare`, those that answer this question: same base and data, or at least the same task."""
    boards = []
    for file in files:
        made = _read(file)
        same = data is not None and _same(made["model"], model) and _same(made["data"], data)
        if made["task"] != task:
            continue
        rows = [row for row in made["rows"] if row["status"] == "done" and row["score"]["value"] is not None]
        percent = made["higher_is_better"] and all(abs(row["score"]["value"]) <= 1 for row in rows)
        factor = 100.0 if percent else 1.0
        scores = {arm_of(row["method"], row["quantize"]): _score(row, factor) for row in rows}
        failed = {
            arm_of(row["method"], row["quantize"]): str(row.get("reason", ""))
            for row in made["rows"]
            if row["status"] == "failed"
        }
        if scores or (failed and same):
            boards.append(
                Board(
                    0 if same else 1,
                    Path(made["data"]).name or made["data"],
                    made["metric"],
                    made["higher_is_better"],
                    "",
                    "",
                    made["model"],
                    None,
                    None,
                    scores,
                    Source("compare", str(file)),
                    failed,
                )
            )
    return boards


def _score(row: dict[str, Any], factor: float) -> Score:
    kept: dict[str, Any] = row["score"]
    low, high = ((kept[side] * factor if kept.get(side) is not None else None) for side in ("low", "high"))
    bytes_ = row.get("adapter_bytes")
    return Score(kept["value"] * factor, low, high, bytes_, row.get("memory"), row.get("seconds"))


def _same(one: str, other: str) -> bool:
    """The same name, or the same place on the disk."""
    if one == other:
        return True
    first, second = Path(one).expanduser(), Path(other).expanduser()
    return first.exists() and second.exists() and first.resolve() == second.resolve()


def _read(file: Path) -> dict[str, Any]:
    """A compare.json; InputError that names what is not as it should be."""
    if not file.is_file():
        near = did_you_mean(file.name, [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else [])
        raise InputError(f"--evidence: {file} is no file{near}", fix=FIX)
    try:
        made = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"--evidence: {file} is no JSON: {error}", fix=FIX) from None
    wrong = _wrong(made)
    if wrong:
        raise InputError(f"--evidence: {file} is no comparison: {wrong}", fix=FIX)
    return dict(made)


FIELDS: dict[str, type] = {
    "model": str,
    "data": str,
    "task": str,
    "metric": str,
    "higher_is_better": bool,
    "rows": list,
}


def _wrong(made: Any) -> str:
    """What stands against reading it; empty where nothing does."""
    if not isinstance(made, dict):
        return "it holds no object"
    if made.get("version") != 1:
        return f"its version is {made.get('version')!r}, not 1"
    for key, kind in FIELDS.items():
        if not isinstance(made.get(key), kind):
            return f"{key!r} is missing or no {kind.__name__}"
    faults = (f"row {number} {fault}" for number, row in enumerate(made["rows"], 1) if (fault := _wrong_row(row)))
    return next(faults, "")


def _wrong_row(row: Any) -> str:
    if not isinstance(row, dict) or not {"method", "quantize", "status"} <= row.keys():
        return "lacks method, quantize or status"
    if row["status"] != "done":
        return ""
    score = row.get("score")
    if not isinstance(score, dict) or not _is_number(score.get("value")):
        return f"({row['method']}) is done and has no score.value"
    odd = any(score.get(side) is not None and not _is_number(score[side]) for side in ("low", "high"))
    return f"({row['method']}) has an interval that is no number" if odd else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # noqa: PLR0124 (NaN)


NEAREST = {
    ("classify", "encoder"): ("SST-2", "CoLA"),
    ("classify", "decoder"): ("reviews", "SST-2", "CoLA"),
    ("classify", "encoder-decoder"): ("SST-2", "CoLA"),
    ("labels", "decoder"): ("reviews",),
    ("answers", "decoder"): ("assistant", "reviews"),
    ("text", "decoder"): ("assistant", "reviews"),
}
"""What is learned and by what -> the repository's boards that say most about it, the nearest first."""


def relevant(learns: Learns, family: str) -> list[Board]:
    """The repository's boards that say something about this task, the nearest first."""
    found = {board.name: board for board in repository()}
    return [found[name] for name in NEAREST[learns, family]]


def nearest_papers(arm: str, learns: Learns, family: str, *, rows: int, parameters: float) -> list[Board]:
    """Papers that compare `arm` with others on such a task: few rows with few rows, then by size of the base."""
    from math import log

    def distance(board: Board) -> tuple[bool, float, float]:
        few = board.rows is not None
        apart = abs(log(rows / board.rows)) if few and board.rows else 1.0 + log(max(1.0, 3000 / rows))
        size = abs(log(parameters / board.parameters)) if board.parameters else 5.0
        return (board.learns != learns, apart, size)

    same = [
        board
        for board in papers()
        if arm in board.scores
        and board.family == family
        and (board.learns == learns or (board.learns != "classify" and learns != "classify"))
    ]
    return sorted(same, key=distance)


def tiers(boards: Sequence[Board], arm: str) -> tuple[int, list[Board]]:
    """(the first tier that measured `arm`, its boards there); 9 where none did."""
    own = [board for board in boards if arm in board.scores]
    first = min((board.tier for board in own), default=9)
    return first, [board for board in own if board.tier == first]
