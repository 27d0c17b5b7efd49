"""The ranking: methods that can serve and fit, by what was measured, then by the costs that matter here.

What cannot serve is excluded, with the reason. The rest is ordered by evidence: the user's own comparisons, then what
this repository and PEFT measured, the nearest to the case first (`standing`). Among methods that the boards cannot
separate (`Board.ties`) costs decide, first those that the question names (`by_costs`).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from math import log
from typing import Any

from luthier.core.errors import InputError
from luthier.core.shell import shell_line
from luthier.core.units import duration, gigabytes
from luthier.methods.base import METHODS
from luthier.planning.advisor.candidates import NAMES, Candidate, Planner
from luthier.planning.advisor.evidence import Citation, peft_board, tiers
from luthier.planning.advisor.nearness import not_ranked, shown_evidence
from luthier.planning.advisor.reasons import Question, Reason, bytes_text, kept_bytes, limits, reason, reasons, work

ENOUGH = 5
"""Methods that fit; more are planned only where they are tied with the first."""
ABOUT = 1.25
"""Costs within this factor count as equal: plans are no more exact."""
EXPLAINED = 3
"""Methods whose reasons are given."""
COMPARED = 4
"""Most methods that a comparison is suggested for."""


@dataclass(slots=True)
class Ranking:
    """The ranking of all methods for a question."""

    question: Question
    ranked: list[Candidate] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)
    """Ranked lower, not planned."""
    excluded: list[dict[str, Any]] = field(default_factory=list)
    """{method, needs, and why it cannot serve}: needs is the bytes of memory where that is why, else 0."""

    def exclude(self, name: str, why: Reason, needs: int = 0) -> None:
        """Leave out a method, with the reason."""
        self.excluded.append({"method": name, "needs": needs, **why})

    def ties(self) -> list[Candidate]:
        """The ranked methods that are tied with the first one."""
        places = [standing(self.question, one.preset) for one in self.ranked]
        return [one for one, place in zip(self.ranked, places, strict=True) if place == places[0]]


TIED, ABSENT, BEHIND = range(3)
"""Where a method stands on a board; not measured there, it comes after those that are tied with the best."""


def standing(question: Question, preset: str) -> tuple[int, tuple[int, ...], float]:
    """(behind on the nearest board that measured it?, the same board by board, by how much): lower is better.

    The nearest board decides, and the next one only among methods that it ties. The user's own comparisons with the
    same base and data, or of the same task, count as one board, and settle the matter for the methods that they have.
    """
    places, lost = list[int](), 0.0
    groups = [
        list(group) for _, group in groupby(question.boards, key=lambda each: (each.tier, each.tier == 2 and each.name))
    ]
    for group in groups:
        own = [board for board in group if preset in board.scores]
        tied = all(board.ties(preset) for board in own)
        places.append(ABSENT if not own else TIED if tied else BEHIND)
        lost += sum(board.share_lost(preset) for board in own)
        if own and group[0].tier < 2:
            break
    nearest = next((place for place in places if place != ABSENT), BEHIND)
    return nearest, (*places, *[TIED] * (len(groups) - len(places))), round(lost, 2)


def pace(question: Question, one: Candidate) -> float:
    """Planned seconds, or operations where the machine's speed is not known."""
    if one.plan is None:
        return float("inf")
    return one.plan.seconds if question.knows_speed else one.plan.flops


def by_costs(question: Question, tied: Sequence[Candidate]) -> list[Candidate]:
    """Tied methods in the order of their costs; of equal ones the first stays first: it has less to set."""
    options = question.options
    least_bytes = min(kept_bytes(question, one) for one in tied)
    least_pace = min(pace(question, one) for one in tied)
    least_memory = min(one.fewest for one in tied)

    def costs(one: Candidate) -> tuple[float, ...]:
        slower = above(pace(question, one), least_pace)
        return (
            above(kept_bytes(question, one), least_bytes, 2.0) if options.variants > 1 else 0,
            0 if one.method.mergeable or options.latency is None else 1,
            slower if options.time else 0,
            0 if one.quantize == "none" else 1,
            1 if one.whole else 0,  # an adapter leaves the base as it is, and one more costs megabytes
            slower,
            above(one.fewest, least_memory),
        )

    return sorted(tied, key=costs)


def above(size: float, least: float, factor: float = ABOUT) -> int:
    """0 within `factor` of the least, 1 within its square, and so on."""
    return int(log(max(size, least) / least) / log(factor)) if 0 < least <= size < float("inf") else 0


def rank_methods(question: Question, planner: Planner, report: Callable[[str], None] = lambda name: None) -> Ranking:
    """Rank all methods for the question; `report` is called with the name of each method that is planned."""
    choice = Ranking(question)
    serving = [name for name in NAMES if _serves(choice, planner, name)]
    for name in sorted(serving, key=partial(standing, question)):  # of equal ones, the first of NAMES first
        if len(choice.ranked) >= ENOUGH and standing(question, name) != standing(question, choice.ranked[0].preset):
            choice.behind.append(name)
            continue
        one = planner.candidate(name)
        number, whole = question.options.variants, one.file_bytes
        if number > 1 and one.whole and number * whole > 2 * question.base_bytes:
            text = (
                f"{number} variants are {number} whole models of {bytes_text(whole)}, {bytes_text(number * whole)} "
                f"together; adapters share one base of {bytes_text(question.base_bytes)}"
            )
            choice.exclude(name, question.planned(text, -1.0))
            continue
        report(name)
        fits = _planned(choice, planner, one)
        short = fits is None and choice.excluded[-1]["needs"] > 0  # of memory, which a quantized base saves
        if short and (quantized := planner.quantized(one)) is not None:
            fits = _planned(choice, planner, quantized)
        if fits is not None:
            choice.ranked.append(fits)
    groups = groupby(choice.ranked, key=lambda one: standing(question, one.preset))
    choice.ranked = [one for _, tied in groups for one in by_costs(question, list(tied))]
    return choice


def _serves(choice: Ranking, planner: Planner, name: str) -> bool:
    """Whether a method can serve, as far as is known without its sizes; if not, the reason is kept."""
    question = choice.question
    failed = next((board for board in question.boards if board.tier == 0 and name in board.failed), None)
    if failed is not None:
        text, source = f"failed on this base and data: {failed.failed[name]}", failed.source
    elif question.options.latency == "merged" and not METHODS.get(name).mergeable:
        text, source = "does not merge into the base", Citation("method", "luthier list methods")
    else:
        try:
            planner.check(name)
            return True
        except InputError as error:
            text, source = error.message, Citation("method", f"luthier explain method {name}")
    choice.exclude(name, reason(text, source, -1.0))
    return False


def _planned(choice: Ranking, planner: Planner, one: Candidate) -> Candidate | None:
    """The candidate with its plan; None where it takes too much memory or time, with the reason kept."""
    question, most = choice.question, choice.question.options.time
    usable = f"{gigabytes(question.target.room)} of {gigabytes(question.target.memory)} may be counted on"
    needs, text = one.fewest, ""
    if one.fewest > question.target.room:
        text = f"weights, gradients and optimizer alone take {gigabytes(one.fewest)}, and {usable}"
    else:
        one = planner.planned(one)
        plan = one.plan
        if plan is not None and not plan.fits:
            needs, text = plan.needed, f"takes {gigabytes(plan.needed)}, and {usable}"
        elif plan is not None and most and question.knows_speed and plan.seconds > most:
            needs, text = 0, f"takes {duration(plan.seconds)}, and {duration(most)} are allowed"
    if not text:
        return one
    choice.exclude(one.name, question.planned(text, -1.0), needs)
    return None


def next_commands(choice: Ranking, given: Sequence[str], quantize: str) -> list[str]:
    """The command that trains with the first method, and one that compares it with those it is tied with.

    `given` holds the recipe's arguments as typed, `quantize` is the recipe's own model.quantize.
    """
    if not choice.ranked:
        return []
    kept = [word for word in given if not word.startswith(("method", "model.quantize="))]
    first, tied = choice.ranked[0], choice.ties()
    settings = [word for word in first.settings if word.startswith("model.quantize=")]
    if first.quantize == "none" and quantize != "none":
        settings = ["model.quantize=none"]
    commands = [["luthier", "train", *kept, "--method", first.preset, *settings]]
    form = next((one.quantize for one in tied if one.name != one.preset), None)
    if form is not None:  # those that need a quantized base can only be compared on one
        tied = [one for one in tied if one.quantize == form]
        kept = [*kept, f"model.quantize={form}"]
    if len(tied) > 1:
        names = ",".join(one.preset for one in tied[:COMPARED])
        commands.append(["luthier", "compare", *kept, "--methods", names])
    return [shell_line(*words) for words in commands]


def record(choice: Ranking, data: str | None, task: str, given: Sequence[str], quantize: str) -> dict[str, Any]:
    """The choice as JSON; `given` and `quantize` as for `next_commands`."""
    question, facts, options = choice.question, choice.question.facts, choice.question.options
    ties, most, unknown = {one.name for one in choice.ties()}, options.time, limits(question)
    if names := not_ranked(question, NAMES):
        text = f"measured by PEFT alone, so not ranked, but tied with the best of {peft_board().name}: {names}"
        unknown.append(reason(text, peft_board().source))
    first = choice.ranked[0] if choice.ranked else None
    if most and not question.knows_speed and first is not None and first.plan is not None:
        rate = work(first.plan.flops / most)
        text = f"to end in {duration(most)} one card has to do {rate}/s of matrix products with {first.name}"
        unknown.insert(0, question.planned(text))
    ranked = []
    for place, one in enumerate(choice.ranked, 1):
        plan = one.plan
        row = {
            "place": place,
            "method": one.name,
            "arm": one.preset,
            **{name: getattr(one, name) for name in ("settings", "quantize", "file_bytes", "trained")},
            "ties_with_first": one.name in ties,
            "memory": plan and plan.peak,
            **{name: plan and getattr(plan, name) for name in ("fits", "parts", "flops")},
            "seconds": plan.seconds if plan is not None and question.knows_speed else None,
            "gradient_checkpointing": one.checkpointing,
            "all_bytes": kept_bytes(question, one),
            "share": one.trained / one.parameters,
            "merges": one.method.mergeable,
            "score": _score(question, one.preset),
            "reasons": reasons(question, one) if place <= EXPLAINED else [],
        }
        ranked.append(row)
    return {
        "version": 1,
        "question": {
            **{name: getattr(question, name) for name in ("model", "parameters", "family")},
            **asdict(question.target),
            "data": data,
            "task": task,
            **{name: getattr(facts, name) for name in ("learns", "rows", "languages", "assumed")},
            "mean_length": round(facts.mean_length, 1),
            "longest": max(facts.lengths),
            "classes": len(facts.labels or ()) or None,
            "said": facts.summary(),
            "this_machine": options.memory is None,
            **{name: getattr(options, name) for name in ("devices", "variants", "latency", "time")},
        },
        "ranked": ranked,
        "evidence": shown_evidence(question),
        "behind": [{"method": name, "score": _score(question, name)} for name in choice.behind],
        "ruled_out": choice.excluded,
        "limits": unknown,
        "next": next_commands(choice, given, quantize),
    }


def _score(question: Question, preset: str) -> dict[str, Any] | None:
    """The score on the nearest board."""
    _, boards = tiers(question.boards, preset)
    if not boards:
        return None
    board, own = boards[0], boards[0].scores[preset]
    return {
        "board": board.name,
        "metric": board.metric,
        **{name: getattr(own, name) for name in ("value", "low", "high")},
        "shown": own.shown(brief=True),
        "cited": str(board.source),
        "tier": board.tier,
        "by": board.by,
    }
