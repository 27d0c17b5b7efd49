"""Why a method stands where it stands: each consideration is a function that gives reasons, each with its source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.units import duration, gigabytes
from luthier.planning.advisor.candidates import Base, Candidate
from luthier.planning.advisor.evidence import Board, Source, measured, nearest_papers, relevant, tiers
from luthier.planning.advisor.question import Facts, Wish

FAR = 10.0
"""A base this many times as large as the measured one: the order may be another."""
MANY_CLASSES = 10


@dataclass(frozen=True, slots=True)
class Reason:
    """Something that speaks for a method (weight above zero), against it, or what limits the advice (zero)."""

    text: str
    source: Source
    weight: float = 0.0

    def record(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        kept = {"kind": self.source.kind, "place": self.source.place, "key": self.source.key}
        return {"text": self.text, "weight": self.weight, "source": kept, "cited": str(self.source)}


@dataclass(frozen=True, slots=True)
class RuledOut:
    """A method that cannot serve here."""

    arm: str
    reason: Reason
    needs: int = 0
    """Bytes of memory, where that is what stands against it."""


@dataclass(frozen=True, slots=True)
class Question:
    """All that a choice depends on."""

    base: Base
    facts: Facts
    wish: Wish
    model: str
    """As the user named it."""
    family: str
    """encoder, decoder or encoder-decoder."""
    parameters: int
    """Of the base."""
    base_bytes: int
    """Of the base's weights as they are stored."""
    memory: int
    """Bytes that the device has."""
    free: int
    """Bytes of them that nobody uses."""
    device: str
    boards: Sequence[Board] = ()
    """Own comparisons and the repository's boards for such a task."""
    reads: float | None = None
    """Bytes a second that this machine reads from memory, where it was measured."""

    @property
    def room(self) -> int:
        """Bytes that may be counted on, as in planning."""
        return int(0.9 * self.free)

    @property
    def here(self) -> bool:
        """Is it this machine that is asked about?"""
        return self.base.other is None

    @property
    def knows_speed(self) -> bool:
        """Are seconds this kind of machine's? Of a GPU that is not here nothing is known."""
        return self.here or self.device == "cpu"

    def planned_by(self) -> Source:
        """Where planned figures come from."""
        return Source("plan", f"luthier plan, config.json of {self.model}")


def explained(one: Candidate) -> Source:
    """Where it stands what a method can do."""
    return Source("method", f"luthier explain method {one.arm}")


def count(number: float) -> str:
    """`22.7 million`."""
    return f"{number / 1e9:.1f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"


def size(number: float) -> str:
    """`0.06 MB`, `2.7 MB`, `35 MB`, `1.9 GB`."""
    return gigabytes(number) if number >= 1e7 else f"{number / 1e6:.2g} MB"


def kept_bytes(question: Question, one: Candidate) -> int:
    """Bytes of all variants, with the base that adapters share."""
    return question.wish.variants * one.file_bytes + (0 if one.whole else question.base_bytes)


def by_measurement(question: Question, one: Candidate) -> list[Reason]:
    """What it reached beside others, on the boards that say most about this task."""
    found = []
    tier, boards = tiers(question.boards, one.arm)
    packed = "" if one.name == one.arm else f" (measured without {one.quantize})"
    for board in boards:
        own, best = board.scores[one.arm], board.best()
        if best == one.arm:
            told, weight = "the best there", 2.0
        elif board.ties(one.arm):
            near = "within a point of" if board.higher_is_better else "within 2 % of"
            near = "not told apart from" if board.overlaps(one.arm) else near
            told, weight = f"{near} the best, {best} with {board.scores[best].shown()}", 1.0
        else:
            unit = "points" if board.higher_is_better else "nats"
            told = f"{board.gap(one.arm):.{1 if board.higher_is_better else 2}f} {unit} behind the best, {best}"
            weight = -board.gap(one.arm)
        where = f"a base of {count(board.parameters)}, {board.rows:,} rows" if board.parameters else board.model
        if tier == 0:
            where = "your base, your data, this machine"
        if own.memory and own.seconds:
            where += f"; took {gigabytes(own.memory)} and {duration(own.seconds)}"
        text = f"{board.name}, {board.metric}: {own.shown()}{packed}, {told} ({where})"
        found.append(Reason(text, board.source, weight))
    return found


def by_papers(question: Question, one: Candidate) -> list[Reason]:
    """What the paper nearest to this task and base says of it."""
    facts = question.facts
    near = nearest_papers(one.arm, facts.learns, question.family, rows=facts.rows, parameters=question.parameters)
    found = []
    for board in near[:2]:
        best = board.best()
        own = board.scores[one.arm]
        others = {arm: score for arm, score in board.scores.items() if arm != one.arm}
        rest = ", ".join(f"{arm} {score.value:g}" for arm, score in sorted(others.items(), key=lambda p: -p[1].value))
        text = f"{board.name}, {board.model}: {one.arm} {own.value:g}; {rest}"
        found.append(Reason(text, board.source, 0.5 if board.ties(one.arm) or best == one.arm else -board.gap(one.arm)))
    return found


def by_memory(question: Question, one: Candidate) -> list[Reason]:
    """What it takes, by its largest parts."""
    plan = one.plan
    if plan is None:
        return [Reason(f"memory cannot be estimated for this model ({one.why})", question.planned_by())]
    parts = sorted(plan.parts.items(), key=lambda part: -part[1])
    largest = ", ".join(f"{name} {gigabytes(size)}" for name, size in parts[:3] if size)
    kept = "; activations are made twice (gradient checkpointing)" if one.checkpointing else ""
    text = f"planned at most {gigabytes(plan.peak)} of {gigabytes(question.memory)}: {largest}{kept}"
    return [Reason(text, question.planned_by(), 1.0)]


def by_time(question: Question, one: Candidate) -> list[Reason]:
    """Planned hours on a machine whose speed is known, else the work; and what was measured of its pace."""
    found = []
    plan = one.plan
    if plan is not None and question.knows_speed:
        found.append(
            Reason(f"planned training time {duration(plan.seconds)} on one device", question.planned_by(), 0.5)
        )
    elif plan is not None:
        found.append(
            Reason(
                f"{work(plan.flops)} of matrix products in all: {duration(plan.flops / 1e14)} for a card that does 100 "
                "TFLOP/s of them",
                question.planned_by(),
                0.5,
            )
        )
    speed = measured()["speed"]
    own, usual = speed["arms"].get(one.arm), speed["arms"]["lora"]
    if own and one.arm != "lora" and own["layout"] == usual["layout"] and question.family == "decoder":
        ratio = own["seconds"] / usual["seconds"]
        if abs(ratio - 1) >= 0.05:
            took = f"({own['seconds']:.2f} s, {usual['seconds']:.2f} s)"
            text = f"a step takes {ratio:.2f} times as long as LoRA's on a CPU {took}"
            found.append(Reason(text, Source("repository", speed["file"], speed["command"]), 1 - ratio))
    return found


def work(flops: float) -> str:
    """`3.1 PFLOP`."""
    for size, unit in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP")):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops / 1e9:.3g} GFLOP"


def by_variants(question: Question, one: Candidate) -> list[Reason]:
    """What all variants take on the disk and in a server's memory."""
    number = question.wish.variants
    if number == 1:
        return []
    if one.whole:
        text = f"{number} whole models of {size(one.file_bytes)} take {size(number * one.file_bytes)}"
        return [Reason(text, question.planned_by(), -1.0)]
    text = (
        f"{number} adapters of {size(one.file_bytes)} and one base of {size(question.base_bytes)} take "
        f"{size(kept_bytes(question, one))}; {number} whole models would take "
        f"{size(number * question.base_bytes)}"
    )
    return [Reason(text, question.planned_by(), 1.0)]


def by_latency(question: Question, one: Candidate) -> list[Reason]:
    """Does it cost anything at inference?"""
    if question.wish.latency is None:
        return []
    if not one.method.mergeable:
        return [
            Reason("does not merge: its layers work at every token; how long was not measured", explained(one), -1.0)
        ]
    text = "merges into the base, which then answers with the base's own layers"
    if one.quantize != "none":
        text += f"; merged, the {one.quantize} base is unpacked to {gigabytes(question.base_bytes)}"
    if question.wish.variants > 1:
        text += f"; {question.wish.variants} merged variants are {question.wish.variants} whole models again"
    return [Reason(text, explained(one), 1.0)]


CONSIDERATIONS: tuple[Callable[[Question, Candidate], list[Reason]], ...] = (
    by_measurement,
    by_papers,
    by_memory,
    by_time,
    by_variants,
    by_latency,
)


def reasons(question: Question, one: Candidate) -> list[Reason]:
    """All that is known about `one` here."""
    return [reason for consider in CONSIDERATIONS for reason in consider(question, one)]


def limits(question: Question) -> list[Reason]:
    """What the advice does not know: said once, for all methods."""
    found = [*_limits_of_evidence(question), *_limits_of_machine(question)]
    facts = question.facts
    if facts.assumed:
        found.insert(0, Reason(facts.assumed, question.planned_by()))
    return found


def _limits_of_evidence(question: Question) -> list[Reason]:
    facts = question.facts
    if any(board.tier == 0 for board in question.boards):
        return []
    found = []
    for board in relevant(facts.learns, question.family):
        missing = _missing(question, board)
        if missing:
            text = f"{board.name} was measured with {'; '.join(missing)}: the order may be another there"
            found.append(Reason(text, board.source))
    if facts.learns == "text":
        board = relevant("text", question.family)[0]
        found.append(Reason("no measurement on plain text: dialogues are the nearest there is", board.source))
    return found


def _missing(question: Question, board: Board) -> list[str]:
    """What the board has otherwise than the question, by far."""
    facts, found = question.facts, []
    if board.parameters and question.parameters > FAR * board.parameters:
        found.append(f"a base of {count(board.parameters)}, yours has {count(question.parameters)}")
    if board.rows and not 1 / FAR <= facts.rows / board.rows <= FAR:
        found.append(f"{board.rows:,} rows, you have {facts.rows:,}")
    if facts.learns == "classify" and board.classes and len(facts.labels or ()) >= MANY_CLASSES:
        found.append(f"{board.classes} classes, you have {len(facts.labels or ())}")
    if facts.languages_are == "languages" and board.languages:
        looked = sum(facts.languages.values())
        often = [name for name, rows in facts.languages.items() if len(name) == 2 and rows >= 0.1 * looked]
        if others := [name for name in often if name not in board.languages]:
            found.append(f"rows in {' and '.join(board.languages)}, yours have {', '.join(others)}")
    return found


def _limits_of_machine(question: Question) -> list[Reason]:
    wish, found = question.wish, []
    if wish.devices > 1:
        found.append(
            Reason(
                f"this version trains in one process on one device: {wish.devices - 1} of {wish.devices} stay idle, "
                f"and memory and time are those of one; all together could at best take 1/{wish.devices} of that time",
                Source("method", "README.md", "What is not there yet"),
            )
        )
    if not question.knows_speed:
        found.append(
            Reason(
                "the speed of that GPU is not known here, so no time is planned: luthier plan on that machine says it",
                question.planned_by(),
            )
        )
    if isinstance(wish.latency, float) and question.reads:
        least = question.base_bytes / question.reads * 1000
        verdict = "more than you allow: a smaller base is needed" if least > wish.latency else "less than you allow"
        found.append(
            Reason(
                f"to read the base's {gigabytes(question.base_bytes)} once takes this machine {least:.1f} ms, which is "
                f"the least that a token can take: {verdict}",
                Source("plan", "measured just now", "reading memory"),
            )
        )
    elif isinstance(wish.latency, float):
        found.append(
            Reason(
                "milliseconds a token were not measured: merged, a model is as fast as its base", question.planned_by()
            )
        )
    return found
