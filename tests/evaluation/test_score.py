"""Scores and their intervals, against scikit-learn and against arithmetic by hand."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from luthier.builtin import PROBE
from luthier.core.errors import InputError
from luthier.evaluation.contrast import contrast
from luthier.evaluation.forgetting import forgetting
from luthier.evaluation.metrics.base import EVALUATIONS, SumMetric
from luthier.evaluation.metrics.exact_match import normalized_answer
from luthier.evaluation.metrics.labels import Labels
from luthier.evaluation.records.context import EvalContext, bleu_splitter, split_answer, words
from luthier.evaluation.records.settings import EvaluateConfig
from luthier.evaluation.scores import (
    check_settings,
    choose_primary,
    counted,
    differences,
    evaluations,
    lacking,
    primary_metric,
    resamples,
    scores,
)
from luthier.pipeline.measure import no_better_than_chance
from luthier.rendering.example import Example, Message
from luthier.rendering.row import Row
from luthier.reports import run_report
from luthier.tasks.base import TASKS

accuracy, macro_f1, mcc = (EVALUATIONS.get("labels").table[name].function for name in ("accuracy", "macro_f1", "mcc"))
pearson = EVALUATIONS.get("correlation").table["pearson"].function
spearman = EVALUATIONS.get("correlation").table["spearman"].function


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_accuracy_and_macro_f1_are_scikit_learns(classes: int) -> None:
    rng = random.Random(classes)
    true = [str(rng.randrange(classes)) for _ in range(200)]
    said = [label if rng.random() < 0.6 else str(rng.randrange(classes)) for label in true]
    records = [{"label": a, "chosen": b} for a, b in zip(true, said, strict=True)]
    assert accuracy(records) == pytest.approx(metrics.accuracy_score(true, said))
    assert macro_f1(records) == pytest.approx(metrics.f1_score(true, said, average="macro"))
    assert mcc(records) == pytest.approx(metrics.matthews_corrcoef(true, said))


def test_loss_is_weighted_by_targets() -> None:
    records = [{"loss_sum": 2.0, "targets": 1}, {"loss_sum": 6.0, "targets": 3}]
    assert EVALUATIONS.get("perplexity").table["loss"].function(records) == 2.0
    assert EVALUATIONS.get("perplexity").table["perplexity"].function(records) == pytest.approx(math.exp(2))


def test_intervals_cover_as_often_as_they_say() -> None:
    labels = EVALUATIONS.get("labels")()
    rng, covered = random.Random(1), 0
    for _ in range(60):
        records = [{"label": "a", "chosen": "a" if rng.random() < 0.7 else "b"} for _ in range(80)]
        score = scores(records, [labels])["accuracy"]
        covered += score["low"] <= 0.7 <= score["high"]
    assert 51 <= covered <= 60, "95 % intervals should hold the truth in about 57 of 60 draws"


def test_a_paired_difference_is_narrower_than_its_parts() -> None:
    labels = EVALUATIONS.get("labels")()
    rng = random.Random(2)
    base = [{"label": "a", "chosen": "a" if rng.random() < 0.5 else "b"} for _ in range(100)]
    tuned = [dict(record) for record in base]
    for record in tuned[:10]:
        record["chosen"] = "a"
    result = differences(base, tuned, [labels])["accuracy"]
    whole = scores(base, [labels])["accuracy"]
    assert result["value"] > 0 and result["high"] - result["low"] < whole["high"] - whole["low"]
    assert result["verdict"] == "better" and differences(tuned, base, [labels])["accuracy"]["verdict"] == "worse"
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0, "verdict": "within noise"}
    assert differences(base, base, [labels])["accuracy"] == nothing


def test_exact_match_forgives_case_and_the_final_stop() -> None:
    assert (
        normalized_answer(" Positive.\n") == normalized_answer("positive")
        and normalized_answer("我叫琴匠。") == "我叫琴匠"
        and normalized_answer("a b") != normalized_answer("ab")
    )


def test_the_prompt_ends_where_the_last_answer_starts() -> None:
    assert split_answer(Row([1, 2, 3, 4, 5, 6, 7], [-100, 2, -100, -100, 5, 6, -100], "")) == ([1, 2, 3, 4], [5, 6])


def test_who_always_says_the_same_has_no_correlation() -> None:
    records = [{"label": label, "chosen": "a"} for label in "aab"]
    assert mcc(records) == 0 and accuracy(records) == pytest.approx(2 / 3)
    constant = [{"number": float(i), "guess": 0.3, "squared": 1.0} for i in range(9)]
    assert pearson(constant) == 0 and spearman(constant) == 0


def test_correlations_are_scipys() -> None:
    rng = random.Random(3)
    truth = [rng.randrange(6) + 100.0 for _ in range(80)]  # far from zero, and with ties
    said = [number + rng.gauss(0, 2) for number in truth]
    records = [{"number": a, "guess": b, "squared": (a - b) ** 2} for a, b in zip(truth, said, strict=True)]
    assert pearson(records) == pytest.approx(stats.pearsonr(truth, said).statistic)
    assert spearman(records) == pytest.approx(stats.spearmanr(truth, said).statistic)
    error = EVALUATIONS.get("correlation").table["squared_error"].function(records)
    assert error == pytest.approx(metrics.mean_squared_error(truth, said))


def test_a_resample_of_sums_is_the_metric_of_the_drawn_records() -> None:
    rng = random.Random(4)
    records: list[dict[str, Any]] = [
        {
            "label": str(rng.randrange(3)),
            "chosen": str(rng.randrange(3)),
            "loss_sum": rng.random(),
            "targets": rng.randrange(1, 9),
            "number": rng.random(),
            "guess": rng.random(),
            "squared": rng.random(),
            "exact": rng.randrange(2),
        }
        for _ in range(40)
    ]
    counts = next(counted(len(records)))[:20]
    for name in ("labels", "perplexity", "correlation", "exact_match"):
        for metric, function in ((name, each.function) for name, each in EVALUATIONS.get(name).table.items()):
            if isinstance(function, SumMetric):
                fast = function.value(counts @ function.terms(records))
                for draw, value in zip(counts, fast, strict=True):
                    drawn = [record for record, times in zip(records, draw, strict=True) for _ in range(int(times))]
                    assert function(drawn) == pytest.approx(value), metric
    whole = np.concatenate(list(counted(30)))
    assert whole.shape == (1000, 30) and (whole.sum(1) == 30).all() and whole.std(0).min() > 0.8


def test_resamples_are_the_same_however_they_are_cut_and_draw_runs_as_well() -> None:
    one = np.concatenate([places for places, _ in resamples(7, 50)])
    rng = np.random.default_rng(0)
    assert (one == np.stack([rng.integers(0, 7, 7) for _ in range(50)])).all()
    rng = np.random.default_rng(5)
    for places, runs in resamples(7, 50, runs=3, seed=5):
        assert (places[0] == rng.integers(0, 7, 7)).all() and (runs[0] == rng.integers(0, 3, 3)).all()


ENGLISH = [("The cat sat on the mat.", "A cat sat on a mat!"), ("It isn't 3.5 km.", "it is 3,5 km"), ("", "nothing")]
CHINESE = [("我叫琴匠，很高兴认识你。", "我叫琴匠。"), ("今天天气很好", "今天的天气很好"), ("你好", "你好")]


def context_of(pairs: Sequence[tuple[str, Sequence[str]]]) -> EvalContext:
    """A context that has answered already: (said, references)."""
    answers: list[dict[str, Any]] = [
        {"said": said, "answer": answer[0], "references": list(answer)} for said, answer in pairs
    ]
    examples = [
        Example(messages=(Message("user", "?"), Message("assistant", answer[0], learn=True))) for _, answer in pairs
    ]
    nothing: Any = None
    return EvalContext(nothing, nothing, TASKS.parse("chat"), examples, [], [], 64, answers=answers)


def test_rouge_is_rouge_scores_for_english_and_not_zero_for_chinese() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    rouge = EVALUATIONS.get("rouge")()
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for (said, answer), record in zip(ENGLISH, rouge.measure(context_of([(a, [b]) for a, b in ENGLISH])), strict=True):
        for name, value in theirs.score(answer, said).items():
            assert record[name.replace("rouge", "rouge_").lower()] == pytest.approx(value.fmeasure)
    (same,) = rouge.measure(context_of([(CHINESE[0][0], [CHINESE[0][0]])]))
    assert (
        same["rouge_1"] == same["rouge_l"] == 1 and theirs.score(CHINESE[0][0], CHINESE[0][0])["rougeL"].fmeasure == 0
    )
    (best,) = rouge.measure(context_of([("a b c d", ["x y", "a b c d", "a x"])]))
    assert best["rouge_2"] == 1, "the best reference counts"


@pytest.mark.parametrize(
    ("pairs", "tokenize"), [(ENGLISH, "13a"), (CHINESE, "zh"), ([("これはペンです", "これはペンだ")] * 2, "char")]
)
def test_bleu_and_chrf_are_sacrebleus_over_the_whole_set(pairs: list[tuple[str, str]], tokenize: str) -> None:
    import sacrebleu

    bleu = EVALUATIONS.get("bleu")()
    records = bleu.measure(context_of([(said, [answer]) for said, answer in pairs]))
    said, references = [a for a, _ in pairs], [[b for _, b in pairs]]
    assert bleu_splitter(references[0]) == tokenize
    found = {name: metric.function for name, metric in bleu.table.items()}
    assert found["bleu"](records) == pytest.approx(sacrebleu.corpus_bleu(said, references, tokenize=tokenize).score)
    assert found["chrf"](records) == pytest.approx(sacrebleu.corpus_chrf(said, references).score)
    assert found["bleu"]([]) == 0


def test_words_of_scripts_without_spaces_are_characters() -> None:
    assert words("GPT-4很好, it's né!") == ["gpt", "4", "很", "好", "it", "s", "né"]


def test_several_references_count_as_sacrebleu_counts_them() -> None:
    import sacrebleu

    said = ["the cat sat on the mat today", "a dog ran"]
    streams = [["a cat sat on the mat", "the dog ran off"], ["the cat sat on a mat today", "one dog ran away"]]
    bleu = EVALUATIONS.get("bleu")()
    records = bleu.measure(context_of(list(zip(said, zip(*streams, strict=True), strict=True))))
    assert bleu.table["bleu"].function(records) == pytest.approx(sacrebleu.corpus_bleu(said, streams).score)
    assert bleu.table["chrf"].function(records) == pytest.approx(sacrebleu.corpus_chrf(said, streams).score)


def test_without_its_package_a_score_is_left_out_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of([("a b", ["one two three four five six seven"])] * 3)
    assert lacking(context) == [] and "rouge_l" in {m for e in evaluations(context) for m in e.table}
    monkeypatch.setattr("luthier.evaluation.metrics.base.find_spec", lambda name: None)
    left = [name for e in evaluations(context) for name in e.table]
    assert "rouge_l" not in left and "bleu" not in left and len(lacking(context)) == 2
    assert all("pip install 'rouge-score>=0.1.2'" in why for why in lacking(context))
    assert choose_primary(context, left) == "perplexity", "exact match of long answers ranks nothing"


def test_the_primary_metric_is_the_marked_score_else_the_first_in_order() -> None:
    def score(**more: Any) -> dict[str, Any]:
        return {"value": 1.0, **more}

    assert primary_metric({"loss": score(), "exact_match": score(), "rouge_l": score()}) == "rouge_l"
    assert primary_metric({"accuracy": score(), "pass_rate": score(), "judge": score()}) == "pass_rate"
    assert primary_metric({"accuracy": score(), "mcc": score(primary_metric=True)}) == "mcc"
    assert primary_metric({"accuracy": score(), "mcc": score(headline=True)}) == "mcc", "as older runs have it"
    assert primary_metric({"own": score()}) == "own" and primary_metric({}) == ""


def test_a_metric_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name, rank, scale, settings check and stand-in for one example are read from its own module."""
    (tmp_path / "brevity.py").write_text(
        "from luthier.core.errors import InputError\n"
        "from luthier.evaluation.metrics.base import Evaluation, Metric, mean_of\n"
        "class Brevity(Evaluation):\n"
        "    'Shorter is better.'\n"
        "    table = {'brevity': Metric(mean_of('length'), rank=-1, higher=False, scale='0 to 9')}\n"
        "    def applies(self, context): return True\n"
        "    def measure(self, context): return [{'length': len(e.answer)} for e in context.examples]\n"
        "    def check_settings(self, settings):\n"
        "        if settings.metric == 'brevity': raise InputError('never by brevity')\n"
    )
    import luthier.evaluation.metrics as package

    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    run_report.scale_of.cache_clear()
    assert primary_metric({"accuracy": {}, "brevity": {}}) == "brevity" and run_report.figure("brevity", 3) == "3.00"
    with pytest.raises(InputError, match="never by brevity"):
        check_settings(EvaluateConfig(metric="brevity"))
    found = scores([{"length": 3}, {"length": 5}], [EVALUATIONS.get("brevity")()])["brevity"]
    assert found["value"] == 4 and not found["higher_is_better"]
    run_report.scale_of.cache_clear()


def test_examples_are_ranked_by_what_the_run_is_ranked_by() -> None:
    def row(name: str, before: str, after: str, loss: float) -> dict[str, Any]:
        sides = {"base": (before, 1.0), "tuned": (after, loss)}
        return {"where": name, "text": name, "answer": "a"} | {
            side: {"label": "a", "chosen": chosen, "loss_sum": each, "targets": 1}
            for side, (chosen, each) in sides.items()
        }

    rows = [
        row("lost", "a", "b", 3.0),
        row("won", "b", "a", 0.1),
        row("won more", "b", "a", 0.01),
        row("same", "a", "a", 9.0),
    ]
    labels = [EVALUATIONS.get("labels")(), EVALUATIONS.get("perplexity")()]
    found = contrast(rows, "mcc", labels, 1)
    assert (found["by"], found["better"], found["worse"], found["same"]) == ("accuracy", 2, 1, 1)
    assert [r["text"] for r in found["gains"]] == ["won more"] and [r["text"] for r in found["regressions"]] == ["lost"]
    by_loss = contrast(rows, "perplexity", labels, 4)
    assert [r["text"] for r in by_loss["regressions"]] == ["same", "lost"], "a loss is better when it is lower"


def test_forgetting_is_bits_over_bytes_and_its_interval_is_paired() -> None:
    base = [{"category": "english" if i % 2 else "code", "bits": 80.0 + i, "bytes": 40} for i in range(40)]
    tuned = [{**record, "bits": record["bits"] + 8 + i % 3} for i, record in enumerate(base)]
    found = forgetting(base, tuned)
    assert found["all"]["base"] == pytest.approx(sum(r["bits"] for r in base) / 1600)
    assert found["all"]["difference"]["value"] == pytest.approx(sum(8 + i % 3 for i in range(40)) / 1600)
    assert found["all"]["difference"]["verdict"] == "worse" and found["code"]["texts"] == 20
    assert 0.19 < found["all"]["difference"]["low"] < found["all"]["difference"]["high"] < 0.26, "0.2 to 0.25 per text"
    assert forgetting(base, base)["english"]["difference"]["verdict"] == "within noise" and forgetting([], tuned) == {}


def test_the_probe_is_small_balanced_and_right() -> None:
    texts = [json.loads(line) for line in PROBE.read_text(encoding="utf-8").splitlines()]
    assert len({each["text"] for each in texts}) == 60 and PROBE.stat().st_size < 30_000
    assert set(Counter(each["category"] for each in texts).values()) == {10}
    sums = [
        found
        for each in texts
        if each["category"] == "arithmetic"
        for found in re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", each["text"])
    ]
    work = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    assert len(sums) == 40 and all(work[sign](int(a), int(b)) == int(c) for a, sign, b, c in sums)


def test_a_model_with_one_answer_for_all_is_said_to_be_no_better_than_chance() -> None:
    records: list[dict[str, Any]] = [{"label": "ab"[i % 2], "chosen": "a"} for i in range(40)]
    (said,) = no_better_than_chance(scores(records, [Labels()]), records)
    assert "'a' to 40 of 40" in said and "train.lr" in said
    right: list[dict[str, Any]] = [{"label": "ab"[i % 2], "chosen": "ab"[i % 2]} for i in range(40)]
    assert no_better_than_chance(scores(right, [Labels()]), right) == []
