"""The ranking: what can serve and fits, by what was measured, then by the costs that matter here.

1. What cannot serve is ruled out, each with its reason.
2. The rest stands by evidence: own comparisons before this repository's results. Methods that the boards do not tell
   apart stand equal (`Board.ties`).
3. Among equals costs decide, those first that the question names: bytes of all variants, merging, time where it is
   short; then a base that need not be quantized, an adapter before a whole model, time, memory, and as the last thing
   what has the least to set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import log
from typing import Any

from luthier.core.errors import InputError
from luthier.core.units import duration, gigabytes
from luthier.methods.base import METHODS, Method
from luthier.planning.advisor.candidates import ARMS, Candidate, Planner
from luthier.planning.advisor.evidence import Source, tiers
from luthier.planning.advisor.reasons import Question, Reason, RuledOut, kept_bytes, limits, reasons, size, work
from luthier.tasks.base import Task
from luthier.training.settings import TrainConfig

ENOUGH = 5
"""Methods that fit; more are planned only where evidence does not tell them apart from the first."""
ABOUT = 1.25
"""Costs within this factor count as equal: plans are no more exact."""


@dataclass(slots=True)
class Choice:
    """What was found."""

    question: Question
    ranked: list[Candidate] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)
    """Not planned: measured behind those that fit."""
    ruled_out: list[RuledOut] = field(default_factory=list)

    def ties(self) -> list[Candidate]:
        """Those of the ranked that evidence does not tell apart from the first one."""
        if not self.ranked:
            return []
        first = standing(self.question, self.ranked[0].arm)
        return [one for one in self.ranked if standing(self.question, one.arm) == first]


def standing(question: Question, arm: str) -> tuple[bool, int, int, float]:
    """(behind?, tier, on how many boards, by how much): lower is better, equal is not told apart."""
    tier, boards = tiers(question.boards, arm)
    behind = sum(not board.ties(arm) for board in boards)
    return (behind > 0 or not boards, tier, behind, round(sum(board.share_lost(arm) for board in boards), 2))


def pace(question: Question, one: Candidate) -> float:
    """Planned seconds, or where the machine's speed is not known, operations."""
    if one.plan is None:
        return float("inf")
    return one.plan.seconds if question.knows_speed else one.plan.flops


def by_costs(question: Question, equals: Sequence[Candidate]) -> list[Candidate]:
    """Methods that evidence does not tell apart, in the order of what they cost."""
    wish = question.wish
    least_bytes = min(kept_bytes(question, one) for one in equals)
    least_pace = min(pace(question, one) for one in equals)
    least_memory = min(one.fewest for one in equals)

    def costs(one: Candidate) -> tuple[float, ...]:
        return (
            above(kept_bytes(question, one), least_bytes, 2.0) if wish.variants > 1 else 0,
            0 if one.method.mergeable or wish.latency is None else 1,
            above(pace(question, one), least_pace) if wish.time else 0,
            0 if one.quantize == "none" else 1,
            1 if one.whole else 0,  # an adapter leaves the base as it is, and one more costs megabytes
            above(pace(question, one), least_pace),
            above(one.fewest, least_memory),
            ARMS.index(one.arm),
        )

    return sorted(equals, key=costs)


def above(size: float, least: float, factor: float = ABOUT) -> int:
    """0 within `factor` of the least, 1 within its square, and so on."""
    return int(log(max(size, least) / least) / log(factor)) if 0 < least <= size < float("inf") else 0


def choose(
    question: Question,
    train: TrainConfig,
    *,
    task: Task | None = None,
    seed: int = 0,
    own: Method | None = None,
    tell: Callable[[str], None] = lambda said: None,
) -> Choice:
    """Rank all methods for the question. `own` is a method with the recipe's settings, `tell` hears what is planned."""
    choice = Choice(question)
    planner = Planner(question.base, question.facts, train, task, seed, own)
    serving = [arm for arm in ARMS if _serves(choice, planner, arm)]
    first: tuple[bool, int, int, float] | None = None
    for arm in sorted(serving, key=lambda arm: (standing(question, arm), ARMS.index(arm))):
        if len(choice.ranked) >= ENOUGH and standing(question, arm) != first:
            choice.behind.append(arm)
            continue
        one = planner.candidate(arm)
        if (why := _unfit(question, one)) is not None:
            choice.ruled_out.append(RuledOut(arm, why))
            continue
        tell(arm)
        fits = _planned(choice, planner, one)
        short = fits is None and choice.ruled_out[-1].needs > 0  # of memory, which a packed base saves
        if short and (form := planner.packed(one)) is not None:
            fits = _planned(choice, planner, form)
        if fits is not None:
            choice.ranked.append(fits)
            first = first or standing(question, arm)
    ranked = sorted(choice.ranked, key=lambda one: standing(question, one.arm))
    groups = groupby(ranked, key=lambda one: standing(question, one.arm))
    choice.ranked = [one for _, equals in groups for one in by_costs(question, list(equals))]
    return choice


def _serves(choice: Choice, planner: Planner, arm: str) -> bool:
    """Can it, as far as that is known without its sizes? If not, the reason is kept."""
    question, why = choice.question, None
    failed = next((board for board in question.boards if board.tier == 0 and arm in board.failed), None)
    explained_by = Source("method", f"luthier explain method {arm}")
    if failed is not None:
        why = Reason(f"failed on this base and data: {failed.failed[arm]}", failed.source, -1.0)
    elif question.wish.latency == "merged" and not METHODS.get(arm).mergeable:
        why = Reason("does not merge into the base", Source("method", "luthier list methods"), -1.0)
    else:
        try:
            planner.check(arm)
        except InputError as error:
            why = Reason(error.message, explained_by, -1.0)
    if why is not None:
        choice.ruled_out.append(RuledOut(arm, why))
    return why is None


def _unfit(question: Question, one: Candidate) -> Reason | None:
    """Whole models for many variants: more than twice the base that adapters would share."""
    number = question.wish.variants
    if number == 1 or not one.whole or number * one.file_bytes <= 2 * question.base_bytes:
        return None
    text = (
        f"{number} variants are {number} whole models of {size(one.file_bytes)}, "
        f"{size(number * one.file_bytes)} together; adapters share one base of {size(question.base_bytes)}"
    )
    return Reason(text, question.planned_by(), -1.0)


def _planned(choice: Choice, planner: Planner, one: Candidate) -> Candidate | None:
    """Planned, or None with the reason kept: memory or time."""
    question, most = choice.question, choice.question.wish.time
    counted = f"{gigabytes(question.room)} of {gigabytes(question.memory)} may be counted on"
    planned, needs, text = one, one.fewest, ""
    if one.fewest > question.room:
        text = f"weights, gradients and optimizer alone take {gigabytes(one.fewest)}, and {counted}"
    else:
        planned = planner.planned(one)
        plan = planned.plan
        if plan is not None and not plan.fits:
            needs, text = plan.needed, f"takes {gigabytes(plan.needed)}, and {counted}"
        elif plan is not None and most and question.knows_speed and plan.seconds > most:
            needs, text = 0, f"takes {duration(plan.seconds)}, and {duration(most)} are allowed"
    if text:
        choice.ruled_out.append(RuledOut(one.name, Reason(text, question.planned_by(), -1.0), needs))
        return None
    return planned


def record(choice: Choice, *, data: str | None, task: str, next_commands: Sequence[str]) -> dict[str, Any]:
    """All of it as JSON."""
    question, facts, wish = choice.question, choice.question.facts, choice.question.wish
    ties = {one.name for one in choice.ties()}
    return {
        "version": 1,
        "question": {
            "model": question.model,
            "parameters": question.parameters,
            "family": question.family,
            "data": data,
            "task": task,
            "learns": facts.learns,
            "rows": facts.rows,
            "mean_length": round(facts.mean_length, 1),
            "longest": max(facts.lengths),
            "classes": len(facts.labels or ()) or None,
            "languages": facts.languages,
            "assumed": facts.assumed,
            "said": facts.said(),
            "device": question.device,
            "memory": question.memory,
            "free": question.free,
            "this_machine": question.here,
            "devices": wish.devices,
            "variants": wish.variants,
            "latency": wish.latency,
            "time": wish.time,
        },
        "ranked": [_ranked(question, one, place, one.name in ties) for place, one in enumerate(choice.ranked, 1)],
        "behind": [{"method": arm, "score": _score(question, arm)} for arm in choice.behind],
        "ruled_out": [{"method": out.arm, "needs": out.needs, **out.reason.record()} for out in choice.ruled_out],
        "limits": [*(_needed_rate(choice)), *(reason.record() for reason in limits(question))],
        "next": list(next_commands),
    }


def _needed_rate(choice: Choice) -> list[dict[str, Any]]:
    """Of a card that nobody has timed: how fast it has to be to end in time."""
    question, most = choice.question, choice.question.wish.time
    if question.knows_speed or not most or not choice.ranked or choice.ranked[0].plan is None:
        return []
    flops = choice.ranked[0].plan.flops
    name = choice.ranked[0].name
    text = f"to end in {duration(most)} one card has to do {work(flops / most)}/s of matrix products with {name}"
    return [Reason(text, question.planned_by()).record()]


def _score(question: Question, arm: str) -> dict[str, Any] | None:
    """What it reached on the nearest board."""
    _, boards = tiers(question.boards, arm)
    if not boards:
        return None
    board, own = boards[0], boards[0].scores[arm]
    return {
        "board": board.name,
        "metric": board.metric,
        "value": own.value,
        "low": own.low,
        "high": own.high,
        "shown": own.brief(),
        "cited": str(board.source),
        "tier": board.tier,
    }


def _ranked(question: Question, one: Candidate, place: int, tie: bool) -> dict[str, Any]:
    plan = one.plan
    return {
        "place": place,
        "method": one.name,
        "arm": one.arm,
        "settings": one.settings,
        "quantize": one.quantize,
        "ties_with_first": tie,
        "fits": plan.fits if plan is not None else None,
        "memory": plan.peak if plan is not None else None,
        "parts": plan.parts if plan is not None else None,
        "seconds": plan.seconds if plan is not None and question.knows_speed else None,
        "flops": plan.flops if plan is not None else None,
        "gradient_checkpointing": one.checkpointing,
        "file_bytes": one.file_bytes,
        "all_bytes": kept_bytes(question, one),
        "trained": one.trained,
        "share": one.trained / one.parameters,
        "merges": one.method.mergeable,
        "score": _score(question, one.arm),
        "reasons": [reason.record() for reason in reasons(question, one)] if place <= 3 else [],
    }
