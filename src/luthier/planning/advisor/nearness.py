"""How far a measurement is from the case at hand, and which measurements count, the nearest first."""

from collections import Counter
from collections.abc import Iterator, Sequence
from math import log10
from typing import Any

from luthier.planning.advisor.candidates import NAMES
from luthier.planning.advisor.evidence import Board, peft_board, peft_runs, repository
from luthier.planning.advisor.reasons import Question, number_of, reason

NEAREST = 3
"""Published measurements that count: those that are nearest. More, where these lack a method."""
NAMED = 2.0
"""A factor in size or rows from which on it is named."""

RELATED = {
    ("classify", "encoder"): ("classify",),
    ("classify", "decoder"): ("classify", "labels"),
    ("classify", "encoder-decoder"): ("classify",),
    ("labels", "decoder"): ("labels",),
    ("answers", "decoder"): ("answers", "labels"),
    ("text", "decoder"): ("answers", "labels"),
}
"""What is learned and by what family -> what the measurements that are evidence for it taught."""
WORDS = {
    "classify": "labels by a classification head",
    "labels": "labels in words",
    "answers": "free answers",
    "text": "plain text",
}


def relevant(question: Question) -> list[Board]:
    """Luthier's and PEFT's measurements that are evidence for this task, the nearest first.

    They are the NEAREST, and of those further away any that has a method which no nearer one has.
    """
    kinds = RELATED[question.facts.learns, question.family]
    boards = [board for board in (*repository().values(), peft_board()) if board.learns in kinds]
    found: list[Board] = []
    lacking = set(NAMES)
    for board in sorted(boards, key=lambda board: distance(question, board)):
        if len(found) < NEAREST or lacking & board.scores.keys():
            found.append(board)
            lacking -= board.scores.keys()
    return found


def distance(question: Question, board: Board) -> float:
    """Factors of ten between the sizes of the bases, the rows and the classes, and 1 for each other difference.

    Labels where answers are free, or the other way round, count 2.
    """
    return sum(weight for weight, _ in _parts(question, board))


def differences_of(question: Question, board: Board) -> list[str]:
    """In what a measurement differs from the case, in words."""
    return [text for _, text in _parts(question, board) if text]


def _parts(question: Question, board: Board) -> Iterator[tuple[float, str]]:
    """(what it adds to the distance, in words) of each difference; no words for one that is small."""
    facts = question.facts
    if board.parameters:
        weight, times, more = _factor(question.parameters / board.parameters)
        words = f"your base is {times} times larger" if more else f"your base is {times} times smaller"
        yield weight, words if times else ""
    if board.rows:
        weight, times, more = _factor(facts.rows / board.rows)
        words = f"you have {times} times as many rows" if more else f"you have {times} times fewer rows"
        yield weight, words if times else ""
    if facts.learns == "classify" and board.classes:
        number = len(facts.labels or ()) or 1
        words = f"{board.classes} classes, you have {number}"
        yield abs(log10(number / board.classes)), words if number != board.classes else ""
    if board.family != question.family:
        yield 1.0, f"its base is of type {board.family}, yours of type {question.family}"
    if board.learns != facts.learns:
        free = {"answers", "text"}
        yield (
            1.0 if (board.learns in free) == (facts.learns in free) else 2.0,
            f"{WORDS[board.learns]}, yours are {WORDS[facts.learns]}",
        )
    if others := _other_languages(question, board):
        yield 1.0, f"rows in {' and '.join(board.languages)}, yours have {', '.join(others)}"
    if board.single_runs:
        yield 1.0, "one run of each method"


def _factor(ratio: float) -> tuple[float, str, bool]:
    """(factors of ten, how many times, is it more?) of a ratio; no words for less than NAMED times."""
    factor = max(ratio, 1 / ratio)
    shown = f"{factor:,.0f}" if factor >= 10 else f"{factor:.1f}".removesuffix(".0")
    return log10(factor), shown if factor >= NAMED else "", ratio > 1


def _other_languages(question: Question, board: Board) -> list[str]:
    """Languages of a tenth of the rows or more that the measurement has none of."""
    languages = question.facts.languages
    looked = sum(languages.values())
    codes = [name for name in languages if len(name) == 2]  # not a script, where no language can be told
    often = [name for name in codes if languages[name] >= 0.1 * looked]
    return [name for name in often if board.languages and name not in board.languages]


def shown_evidence(question: Question) -> list[dict[str, Any]]:
    """The measurements that the ranking rests on, the nearest first: by whom, on what, how far from the case."""
    found = []
    for board in question.boards:
        text = f"{board.name}, {board.metric}, measured by {board.by}"
        told, far = list[str](), 0.0
        if board.tier == 0:
            told.append("your base, your data, this machine")
        elif board.tier == 1:
            told.append(f"{board.model} on this machine, another base or other data")
        else:
            told += differences_of(question, board)
            far = round(distance(question, board), 1)
            text += f" on {board.model}, {number_of(board.parameters or 0)} parameters, {board.rows or 0:,} rows"
            told.append(f"distance {far:.1f}")
        if board.source.kind == "peft":
            rates = Counter(run["lr"] for run in peft_runs()["runs"])
            (usual, number), every = rates.most_common(1)[0], rates.total()
            told.insert(-1, f"{number} of {every} runs at one learning rate, {usual:g}")
        fields = ("name", "metric", "by", "model", "parameters", "rows", "tier")
        entry = {name: getattr(board, name) for name in fields}
        entry |= {"methods": len(board.scores), "distance": far, "differences": told}
        found.append(entry | reason("; ".join([text, *told]), board.source))
    return found


def not_ranked(question: Question, names: Sequence[str]) -> str:
    """Methods other than `names` that are tied with the best of PEFT's comparison, where that counts; empty if none."""
    board = next((board for board in question.boards if board.source.kind == "peft"), None)
    if board is None or any(each.tier == 0 for each in question.boards):
        return ""
    tied = [name for name in board.scores if name not in names and board.ties(name)]
    best = sorted(tied, key=lambda name: -board.scores[name].value)
    return ", ".join(f"{name} {board.scores[name].value:.1f}" for name in best)
