"""Scores and their intervals, against scikit-learn and against arithmetic by hand."""

from __future__ import annotations

import math
import random

import pytest
from sklearn import metrics

from luthier.evaluation.base import EVALUATIONS
from luthier.evaluation.exact_match import plain
from luthier.evaluation.labels import accuracy, answer_start, macro_f1
from luthier.evaluation.perplexity import loss
from luthier.evaluation.score import differences, scores
from luthier.tasks.base import Row


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_accuracy_and_macro_f1_are_scikit_learns(classes: int) -> None:
    dice = random.Random(classes)
    true = [str(dice.randrange(classes)) for _ in range(200)]
    said = [label if dice.random() < 0.6 else str(dice.randrange(classes)) for label in true]
    records = [{"label": a, "chosen": b} for a, b in zip(true, said, strict=True)]
    assert accuracy(records) == pytest.approx(metrics.accuracy_score(true, said))
    assert macro_f1(records) == pytest.approx(metrics.f1_score(true, said, average="macro"))


def test_loss_is_weighted_by_targets() -> None:
    records = [{"loss_sum": 2.0, "targets": 1}, {"loss_sum": 6.0, "targets": 3}]
    assert loss(records) == 2.0
    assert EVALUATIONS.get("perplexity")().metrics()["perplexity"](records) == pytest.approx(math.exp(2))


def test_intervals_cover_as_often_as_they_say() -> None:
    labels = EVALUATIONS.get("labels")()
    dice, covered = random.Random(1), 0
    for _ in range(60):
        records = [{"label": "a", "chosen": "a" if dice.random() < 0.7 else "b"} for _ in range(80)]
        score = scores(records, [labels])["accuracy"]
        covered += score["low"] <= 0.7 <= score["high"]
    assert 51 <= covered <= 60, "95 % intervals should hold the truth in about 57 of 60 draws"


def test_a_paired_difference_is_narrower_than_its_parts() -> None:
    labels = EVALUATIONS.get("labels")()
    dice = random.Random(2)
    base = [{"label": "a", "chosen": "a" if dice.random() < 0.5 else "b"} for _ in range(100)]
    tuned = [dict(record) for record in base]
    for record in tuned[:10]:
        record["chosen"] = "a"
    result = differences(base, tuned, [labels])["accuracy"]
    whole = scores(base, [labels])["accuracy"]
    assert result["value"] > 0 and result["high"] - result["low"] < whole["high"] - whole["low"]
    assert differences(base, base, [labels])["accuracy"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_exact_match_forgives_case_and_the_final_stop() -> None:
    assert (
        plain(" Positive.\n") == plain("positive") and plain("我叫琴匠。") == "我叫琴匠" and plain("a b") != plain("ab")
    )


def test_the_prompt_ends_where_the_last_answer_starts() -> None:
    assert answer_start(Row([1, 2, 3, 4, 5, 6], [-100, 2, -100, -100, 5, 6], "")) == 4
