"""What was measured: `luthier compare` on this machine, this repository's own benchmarks, PEFT's comparison, papers.

A board is one measurement of several methods on the same base and rows. Scores of different boards are never compared:
what counts is how far a method is behind the best one of the same board.
"""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import sqrt
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, FiniteFloat, StrictBool, ValidationError, model_validator

from luthier.core.errors import InputError, did_you_mean
from luthier.core.files import read_object

TIE = 1.0
"""Points: methods that are no further apart tie."""
TIE_LOSS = 0.02
"""The same for a loss, as a share of the best one."""

ALL_LINEAR = 7
"""Linear layers of a block of Llama."""

Learns = Literal["classify", "labels", "answers", "text"]
"""A label by a classification head, a label in words, free answers, or plain text."""


class Citation(NamedTuple):
    """Where a figure stands, so that a person can look it up."""

    kind: Literal["compare", "repository", "peft", "paper", "plan", "method"]
    place: str
    """File, address, arXiv id, or command."""
    key: str = ""
    """The command that made it, or the table of a paper."""

    def __str__(self) -> str:
        if self.kind == "paper":
            return f"[arXiv {self.place}{', ' * bool(self.key)}{self.key}]"
        return f"[{'compare ' * (self.kind == 'compare')}{self.place}{': ' * bool(self.key)}{self.key}]"


def wilson(share: float, number: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share of `number` examples, at 95 %."""
    middle, square = share + z * z / (2 * number), 1 + z * z / number
    around = z * sqrt(share * (1 - share) / number + z * z / (4 * number**2))
    return (middle - around) / square, (middle + around) / square


class Score(BaseModel):
    """A measured value, in the unit in which it is shown (points, or nats for a loss)."""

    value: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    memory: int | None = None
    """Peak bytes of the run, where that was measured."""
    seconds: float | None = None
    seeds: int | None = None
    """Runs that the value is the mean of; None where that is not known."""
    of: int | None = None
    """Runs that there are to be, where some are missing."""
    setting: str = ""
    """What the method was run with, where that is not its default here."""

    def shown(self, *, brief: bool = False) -> str:
        """`84.4 (83.6 to 85.2)`, or `84.4 ± 0.8` with the longer side of the interval; `84.4 (1 of 3 seeds)`."""
        digits = 1 if self.value >= 10 or self.value <= 0 else 3
        value = f"{self.value:.{digits}f}"
        if self.low is not None and self.high is not None:
            around = max(self.value - self.low, self.high - self.value)
            sides = f"({self.low:.{digits}f} to {self.high:.{digits}f})"
            value += f" ± {around:.{digits}f}" if brief else f" {sides}"
        return value if self.of is None else f"{value} ({self.seeds} of {self.of} seeds)"


class Board(BaseModel):
    """Methods measured on the same base with the same rows; the keys are those of measured.json and papers.json."""

    tier: int
    """0 this base and data, 1 the same task here, 2 this repository or PEFT, 3 a paper. Lower counts first."""
    name: str
    metric: str
    model: str
    scores: dict[str, Score]
    source: Citation
    higher_is_better: bool = True
    learns: str = ""
    family: str = ""
    parameters: float | None = None
    rows: int | None = None
    classes: int | None = None
    languages: tuple[str, ...] = ()
    failed: dict[str, str] = {}
    """Methods that failed there -> the error."""

    @property
    def by(self) -> str:
        """Who measured it."""
        return {"compare": "your comparison", "repository": "Luthier", "peft": "PEFT"}.get(self.source.kind, "a paper")

    @property
    def single_runs(self) -> bool:
        """Whether most methods had one run, so that nothing is known of the spread over seeds."""
        return 2 * sum(score.seeds == 1 for score in self.scores.values()) > len(self.scores)

    def best(self) -> str:
        """The method with the best value."""
        pick = max if self.higher_is_better else min
        return pick(self.scores, key=lambda name: self.scores[name].value)

    def gap(self, name: str) -> float:
        """How far a method is behind the best one, in the unit of the board."""
        return abs(self.scores[self.best()].value - self.scores[name].value)

    def ties(self, name: str) -> bool:
        """Whether a method ties with the best: within a point (a loss: 2 %), or the intervals overlap."""
        near = TIE if self.higher_is_better else TIE_LOSS * abs(self.scores[self.best()].value)
        return self.gap(name) <= near or self.overlaps(name)

    def overlaps(self, name: str) -> bool:
        """Whether a method is statistically tied with the best: their intervals overlap.

        Intervals of two standard errors to either side that just touch are what Student's t test of two times three
        runs calls different at 5 %.
        """
        best, own = self.scores[self.best()], self.scores[name]
        if best.low is None or best.high is None or own.low is None or own.high is None:
            return False
        return own.high >= best.low and own.low <= best.high

    def share_lost(self, name: str) -> float:
        """0 for a tie, 1 for the worst one: the only figure that is added up over boards."""
        worst = max(self.gap(other) for other in self.scores)
        return 0.0 if self.ties(name) or not worst else self.gap(name) / worst


@lru_cache
def measured() -> dict[str, Any]:
    """The repository's own results, as benchmarks/methods/evidence.py put them together."""
    return dict(json.loads(Path(__file__).with_name("measured.json").read_text(encoding="utf-8")))


@lru_cache
def repository() -> dict[str, Board]:
    """The repository's own boards by name."""
    file, boards = measured()["file"], measured()["boards"]
    return {b["name"]: Board(**b, tier=2, source=Citation("repository", file, b["command"])) for b in boards}


@lru_cache
def papers() -> tuple[Board, ...]:
    """What papers report, with their tables; single values without intervals."""
    found = []
    for kept in json.loads(Path(__file__).with_name("papers.json").read_text(encoding="utf-8")):
        kept["scores"] = {name: {"value": value} for name, value in kept["scores"].items()}
        found.append(Board(**kept, tier=3, source=Citation("paper", kept["paper"], kept["place"])))
    return tuple(found)


@lru_cache
def peft_runs() -> dict[str, Any]:
    """PEFT's published comparison, as benchmarks/methods/peft_published.py read it."""
    return dict(json.loads(Path(__file__).with_name("peft_published.json").read_text(encoding="utf-8")))


@lru_cache
def peft_board() -> Board:
    """PEFT's published comparison: the best configuration of each method that Luthier has, and its interval.

    The interval is Wilson's at 95 % over the test questions alone, for each configuration was run once. LoRA's score
    stands for LoRA on a quantized base, which was not measured.
    """
    made = peft_runs()
    runs = sorted((run for run in made["runs"] if run["method"]), key=lambda run: float(run["accuracy"]))
    scores = {}
    for run in runs:  # the best configuration of a method is the last
        low, high = wilson(run["accuracy"], made["examples"])
        spread = {"value": 100 * run["accuracy"], "low": 100 * low, "high": 100 * high, "seeds": 1}
        costs = {"memory": run["memory_max"], "seconds": run["seconds"]}
        scores[run["method"]] = Score(**spread, **costs, setting=setting_of(run))
    for name in ("qlora", "lora_int8"):
        scores[name] = scores["lora"].model_copy(update={"setting": f"{scores['lora'].setting}, not quantized"})
    folder = f"{made['source']}/tree/{made['commit'][:10]}/{made['folder']}"
    return Board(
        tier=2,
        name=made["tested_on"],
        metric="accuracy",
        model=made["model"].rpartition("/")[2],
        scores=scores,
        source=Citation("peft", folder),
        learns="answers",
        family="decoder",
        parameters=next(run["parameters"] for run in runs if run["method"] == "full"),
        rows=made["rows"],
        languages=("en",),
    )


def setting_of(run: dict[str, Any]) -> str:
    """What a run of PEFT's comparison was made with: `rank 32, q_proj+v_proj, lr 0.0001`."""
    targets = run.get("targets", "").split(",")
    parts = [
        f"rank {run['rank']}" if "rank" in run else "",
        f"{run['virtual_tokens']} virtual tokens" if "virtual_tokens" in run else "",
        "all linear layers" if len(targets) == ALL_LINEAR else "+".join(targets),
        f"lr {run['lr']:g}",
    ]
    return ", ".join(part for part in parts if part)


class _Row(BaseModel):
    """A method in a compare.json: its own name, which may be a preset's, and what its runs have shown."""

    arm: str
    status: str
    score: Score | None = None
    memory: int | None = None
    seconds: float | None = None
    reason: str = ""

    @model_validator(mode="after")
    def _done_means_measured(self) -> "_Row":
        if self.status == "done" and self.score is None:
            raise ValueError(f"{self.arm} is done and has no score")
        return self


class _Comparison(BaseModel):
    """The part of compare.json that is evidence."""

    version: Literal[1]
    model: str
    data: str
    task: str
    metric: str
    higher_is_better: StrictBool
    rows: list[_Row]


def comparisons(files: Iterable[Path], *, model: str, data: str | None, task: str) -> list[Board]:
    """Boards of `luthier compare` that answer this question: same base and data, or at least the same task.

    InputError names what is wrong with a file.
    """
    boards = []
    fix = "--evidence takes the compare.json that luthier compare writes"
    for file in files:
        try:
            made = _Comparison.model_validate(dict(read_object(file)))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise InputError(f"--evidence: {file} is not a comparison: {place}: {first['msg']}", fix=fix) from None
        except InputError as error:
            others = [p.name for p in file.parent.iterdir()] if not file.exists() and file.parent.is_dir() else []
            raise InputError(f"--evidence: {error.message}{did_you_mean(file.name, others)}", fix=fix) from None
        if made.task != task:
            continue
        same = data is not None and _same(made.model, model) and _same(made.data, data)
        done = [(row, row.score) for row in made.rows if row.status == "done" and row.score is not None]
        percent = made.higher_is_better and all(abs(score.value) <= 1 for _, score in done)
        scores = {}
        for row, score in done:
            sides = score.model_dump(include={"value", "low", "high"}, exclude_none=True)
            scaled = {side: value * (100.0 if percent else 1.0) for side, value in sides.items()}
            scores[row.arm] = Score(**scaled, memory=row.memory, seconds=row.seconds)
        failed = {row.arm: row.reason for row in made.rows if row.status == "failed"}
        if scores or (failed and same):
            kept = made.model_dump(include={"model", "metric", "higher_is_better"})
            name, source = Path(made.data).name or made.data, Citation("compare", str(file))
            boards.append(Board(**kept, tier=0 if same else 1, name=name, scores=scores, source=source, failed=failed))
    return boards


def _same(one: str, other: str) -> bool:
    """The same name, or the same place on the disk."""
    first, second = Path(one).expanduser(), Path(other).expanduser()
    return one == other or (first.exists() and second.exists() and first.resolve() == second.resolve())


def tiers(boards: Sequence[Board], preset: str) -> tuple[int, list[Board]]:
    """(the first tier that measured a method, its boards there); 9 where none did."""
    own = [board for board in boards if preset in board.scores]
    first = min((board.tier for board in own), default=9)
    return first, [board for board in own if board.tier == first]
