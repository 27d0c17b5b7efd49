"""Why a method is ranked where it is: each consideration is a function that gives reasons, each with its source."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from luthier.core.units import duration, gigabytes
from luthier.planning import machine
from luthier.planning.advisor.candidates import Candidate
from luthier.planning.advisor.evidence import Board, Citation, measured, papers, tiers
from luthier.planning.advisor.question import ChooseOptions, DataFacts

Reason = dict[str, Any]
"""{text, weight, source, cited}: counts for a method (weight above zero), against it, or limits the advice (zero)."""


def reason(text: str, source: Citation, weight: float = 0.0) -> Reason:
    """A reason as it stands in the JSON output."""
    return {"text": text, "weight": weight, "source": source._asdict(), "cited": str(source)}


@dataclass(frozen=True, slots=True)
class Question:
    """All that a choice depends on."""

    facts: DataFacts
    options: ChooseOptions
    model: str
    """The base as the user named it."""
    family: str
    """encoder, decoder or encoder-decoder."""
    parameters: int
    """Parameters of the base."""
    base_bytes: int
    """Bytes of the base's weights as they are stored."""
    target: machine.TargetMachine
    boards: Sequence[Board] = ()
    """The user's own comparisons, then what this repository and PEFT measured for such a task, the nearest first."""

    @property
    def knows_speed(self) -> bool:
        """Whether seconds can be estimated. The speed of a GPU that is not here is unknown."""
        return self.options.memory is None or self.target.device == "cpu"

    def planned(self, text: str, weight: float = 0.0) -> Reason:
        """A reason from the plan of a run."""
        return reason(text, Citation("plan", f"luthier plan, config.json of {self.model}"), weight)


def number_of(number: float) -> str:
    """`22.7 million`."""
    return f"{number / 1e9:.1f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"


def bytes_text(number: float) -> str:
    """`0.06 MB`, `2.7 MB`, `35 MB`, `1.9 GB`."""
    return gigabytes(number) if number >= 1e7 else f"{number / 1e6:.2g} MB"


def work(flops: float) -> str:
    """`3.1 PFLOP`."""
    units = (1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP")
    size, unit = next((each for each in units if flops >= each[0]), (1e9, "GFLOP"))
    return f"{flops / size:.3g} {unit}"


def kept_bytes(question: Question, one: Candidate) -> int:
    """Bytes of all variants, with the base that adapters share."""
    return question.options.variants * one.file_bytes + (0 if one.whole else question.base_bytes)


def by_measurement(question: Question, one: Candidate) -> list[Reason]:
    """Scores beside other methods, on the boards that are closest to this task."""
    found = []
    tier, boards = tiers(question.boards, one.preset)
    quantized = "" if one.name == one.preset else f"; measured without {one.quantize}"
    for board in boards:
        own, best = board.scores[one.preset], board.best()
        points = board.higher_is_better
        if best == one.preset:
            standing, weight = "the best there", 2.0
        elif board.ties(one.preset):
            shown, weight = board.scores[best].shown(), 1.0
            near = f"within a point of the best, {best} with {shown}"
            near = near if points else f"within 2 % of the best, {best} with {shown}"
            standing = f"statistically tied with the best, {best} with {shown}" if board.overlaps(one.preset) else near
        else:
            weight = -board.gap(one.preset)
            behind = f"{-weight:.2f} nats behind the best, {best}"
            standing = f"{-weight:.1f} points behind the best, {best}" if points else behind
        parts = [f"{board.by}: {board.name}, {board.metric}: {own.shown()}{quantized}", standing]
        parts += [f"with {own.setting}"] if own.setting else []
        parts += ["on your base, your data and this machine" if tier == 0 else f"on {board.model}"] if tier < 2 else []
        if own.memory and own.seconds:
            parts.append(f"it needed {gigabytes(own.memory)} and {duration(own.seconds)}")
        found.append(reason("; ".join(parts), board.source, weight))
    return found


def by_papers(question: Question, one: Candidate) -> list[Reason]:
    """Results of the papers that are nearest to this task and base."""
    learns, rows, found = question.facts.learns, question.facts.rows, []

    def distance(board: Board) -> tuple[bool, float, float]:  # few rows are near few rows; then by size of the base
        apart = abs(log(rows / board.rows)) if board.rows else 1.0 + log(max(1.0, 3000 / rows))
        size = abs(log(question.parameters / board.parameters)) if board.parameters else 5.0
        return (board.learns != learns, apart, size)

    known = [board for board in papers() if one.preset in board.scores and board.family == question.family]
    near = [board for board in known if board.learns == learns or "classify" not in (board.learns, learns)]
    for board in sorted(near, key=distance)[:2]:
        own, *others = sorted(board.scores.items(), key=lambda each: (each[0] != one.preset, -each[1].value))
        rest = ", ".join(f"{name} {score.value:g}" for name, score in others)
        text = f"paper: {board.name}, {board.model}{_size(question, board)}: {one.preset} {own[1].value:g}; {rest}"
        found.append(reason(text, board.source, 0.5 if board.ties(one.preset) else -board.gap(one.preset)))
    return found


def _size(question: Question, board: Board) -> str:
    """How large a paper's base is beside the user's, where it is twice as large or half as large."""
    ratio = board.parameters / question.parameters if board.parameters else 1.0
    if 0.5 < ratio < 2:
        return ""
    return f" ({ratio:.3g} times your base)" if ratio > 1 else f" (1/{1 / ratio:.3g} of your base)"


def by_plan(question: Question, one: Candidate) -> list[Reason]:
    """Peak memory by its largest parts, and training time, or the operations where the machine's speed is not known."""
    plan = one.plan
    if plan is None:
        return [question.planned(f"memory cannot be estimated for this model ({one.why})")]
    parts = sorted(plan.parts.items(), key=lambda part: -part[1])
    largest = ", ".join(f"{name} {gigabytes(bytes_)}" for name, bytes_ in parts[:3] if bytes_)
    kept = "; with gradient checkpointing" if one.checkpointing else ""
    text = f"planned at most {gigabytes(plan.peak)} of {gigabytes(question.target.memory)}: {largest}{kept}"
    took = f"planned training time {duration(plan.seconds)} on one device"
    if not question.knows_speed:
        at_100 = f"{duration(plan.flops / 1e14)} for a card that does 100 TFLOP/s of them"
        took = f"{work(plan.flops)} of matrix products in all: {at_100}"
    return [question.planned(text, 1.0), question.planned(took, 0.5)]


def by_speed(question: Question, one: Candidate) -> list[Reason]:
    """The measured time of a step beside LoRA's."""
    speed = measured()["speed"]
    own, usual = speed["arms"].get(one.preset), speed["arms"]["lora"]
    if not own or own["layout"] != usual["layout"] or question.family != "decoder":
        return []
    ratio = own["seconds"] / usual["seconds"]  # 1 for LoRA itself
    took = f"({own['seconds']:.2f} s, {usual['seconds']:.2f} s)"
    text = f"a step takes {ratio:.2f} times as long as LoRA's on a CPU {took}"
    source = Citation("repository", speed["file"], speed["command"])
    return [reason(text, source, 1 - ratio)] if abs(ratio - 1) >= 0.05 else []


def by_variants(question: Question, one: Candidate) -> list[Reason]:
    """Bytes of all variants on the disk and in a server's memory."""
    number, base = question.options.variants, question.base_bytes
    if number == 1:
        return []
    if one.whole:
        text = f"{number} whole models of {bytes_text(one.file_bytes)} take {bytes_text(number * one.file_bytes)}"
        return [question.planned(text, -1.0)]
    text = (
        f"{number} adapters of {bytes_text(one.file_bytes)} and one base of {bytes_text(base)} take "
        f"{bytes_text(kept_bytes(question, one))}; {number} whole models would take {bytes_text(number * base)}"
    )
    return [question.planned(text, 1.0)]


def by_latency(question: Question, one: Candidate) -> list[Reason]:
    """The cost at inference."""
    if question.options.latency is None:
        return []
    source, number = Citation("method", f"luthier explain method {one.preset}"), question.options.variants
    if not one.method.mergeable:
        return [reason("does not merge: its layers work at every token; how long was not measured", source, -1.0)]
    text = "merges into the base, which then answers with the base's own layers"
    if one.quantize != "none":
        text += f"; merged, the {one.quantize} base is unpacked to {gigabytes(question.base_bytes)}"
    if number > 1:
        text += f"; {number} merged variants are {number} whole models again"
    return [reason(text, source, 1.0)]


def reasons(question: Question, one: Candidate) -> list[Reason]:
    """All that is known about a method here."""
    considerations = (by_measurement, by_papers, by_plan, by_speed, by_variants, by_latency)
    return [found for consider in considerations for found in consider(question, one)]


def limits(question: Question) -> list[Reason]:
    """What the advice does not know, for all methods together."""
    options, facts = question.options, question.facts
    found = [question.planned(facts.assumed)] if facts.assumed else []
    if facts.learns == "text" and all(board.tier > 0 for board in question.boards):
        text = "no measurement on plain text: answers are the nearest there is"
        found.append(reason(text, question.boards[-1].source))
    if options.devices > 1:
        text = (
            f"memory and time are those of one device: {options.devices} together take at best 1/{options.devices} of "
            f"that time (train.processes={options.devices}); luthier plan --devices plans them"
        )
        found.append(reason(text, Citation("method", "docs/scale.md", "How it is planned")))
    if not question.knows_speed:
        text = "the speed of that GPU is not known here, so no time is planned: run luthier plan on that machine"
        found.append(question.planned(text))
    if isinstance(options.latency, float) and options.memory is None and question.target.device == "cpu":
        least = question.base_bytes / machine.reading() * 1000
        verdict = "more than you allow: a smaller base is needed" if least > options.latency else "less than you allow"
        text = (
            f"reading the base's {gigabytes(question.base_bytes)} once takes this machine {least:.1f} ms, which is "
            f"the least that a token can take: {verdict}"
        )
        found.append(reason(text, Citation("plan", "measured just now", "reading memory")))
    elif isinstance(options.latency, float):
        text = "milliseconds per token were not measured: merged, a model is as fast as its base"
        found.append(question.planned(text))
    return found
