"""A table of cases: what a person would choose, and the reasons and exclusions that must be named."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from luthier.planning.advisor import nearness, rank
from luthier.planning.advisor.candidates import NAMES
from luthier.planning.advisor.evidence import repository
from tests.conftest import write_jsonl
from tests.planning.advisor.conftest import Choose


@dataclass(frozen=True)
class Case:
    """A question, and what its answer must hold."""

    base: str
    options: dict[str, Any]
    first: str
    """The method that comes first."""
    out: dict[str, str] = field(default_factory=dict)
    """Methods that are excluded -> part of the reason."""
    reasons: tuple[str, ...] = ()
    """Parts of reasons of the first, each with its source."""
    limits: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    """Parts of the measurements that the ranking rests on, in their order."""
    behind: tuple[str, ...] = ()
    """Methods that are measured behind, so they stand below those that fit."""
    set: tuple[str, ...] = ()
    """Overrides."""
    names: tuple[str, ...] = NAMES
    """What is looked at: where nothing fits, all would be planned one after the other."""
    learns: str = ""
    """What the rows teach, where they are read."""


REPOSITORY = "[benchmarks/methods/results.jsonl: python -m benchmarks.methods."
CASES = {
    "500 examples, a 7B model, a 12 GB card": Case(
        "llama-7b",
        {"rows": 500, "memory": "12GB"},
        "qlora",
        out={
            "lora": "alone take 14.1 GB, and 10.8 GB of 12.0 GB",
            "full": "alone take 107.8 GB",
            "bitfit": "llama has no bias",
        },
        reasons=(
            "PEFT: GSM8K, accuracy: 49.4 (46.7 to 52.1); statistically tied with the best, hira",
            "lr 0.0001, not quantized; it needed 24.7 GB and 18 min [https://github.com/huggingface/peft/tree/",
            "qlora 53.1; lora 53 [arXiv 2305.14314]",
            "of 12.0 GB: ",
            "within 2 % of the best, scaled_parallel",
        ),
        limits=("500 rows of 512 tokens",),
        evidence=(
            "GSM8K, accuracy, measured by PEFT on Llama-3.2-3B, 3.2 billion parameters, 20,000 rows; your base is 2.1 "
            "times larger; you have 40 times fewer rows; one run of each method",
            "assistant, loss, measured by Luthier",
        ),
    ),
    "the same on an 80 GB card": Case(
        "llama-7b",
        {"rows": 500, "memory": "80GB"},
        "lora",
        names=("lora", "full", "qlora", "dora"),
        out={"full": "alone take 107.8 GB"},
        reasons=("LLaMA-7B: lora 76.3; dora 78.4 [arXiv 2402.09353",),
    ),
    "a card that is too small for everything": Case(
        "qwen2-0.5b",
        {"rows": 500, "memory": "400MB"},
        "",
        names=("full", "qlora", "prompt"),
        out={"full": "take 7.9 GB", "qlora": "and 360 MB of 400 MB", "prompt on nf4": "and 360 MB of 400 MB"},
    ),
    "an intent classifier with 150 classes on a CPU": Case(
        "bert-base",
        {},
        "lora",
        set=("data=intents.jsonl",),
        reasons=("SST-2, accuracy: 84.4 (83.6 to 85.1)", "planned training time"),
        evidence=("2 classes, you have 150; distance",),
        behind=("prompt", "prefix", "bitfit"),
    ),
    "500 rows for an encoder": Case(
        "bert-base",
        {"rows": 500},
        "lora",
        reasons=("trained on 500 rows, BERT-base: lora 65.86; unipelt 69.98, full 68.93", "[arXiv 2110.07577]"),
        behind=("unipelt", "freeze"),
    ),
    "40 customers with one base": Case(
        "qwen2-0.5b",
        {"rows": 5000, "variants": 40, "memory": "24GB"},
        "lora",
        out={"full": "40 variants are 40 whole models of 2.0 GB, 79.0 GB together"},
        reasons=("40 adapters of 35 MB and one base of 988 MB take 2.4 GB; 40 whole models would take 39.5 GB",),
    ),
    "2 million rows on eight cards": Case(
        "qwen2-0.5b",
        {"rows": 2_000_000, "devices": 8, "memory": "80GB", "time": "24h"},
        "lora",
        names=("lora", "full", "dora"),
        reasons=("4.93 EFLOP of matrix products in all: 13.7 h for a card that does 100 TFLOP/s",),
        limits=(
            "8 together take at best 1/8 of that time",
            "one card has to do 57.1 TFLOP/s",
            "the speed of that GPU is not known here",
        ),
    ),
    "as fast as the base": Case(
        "bert-base",
        {"rows": 5000, "latency": "merged"},
        "lora",
        out={"houlsby": "does not merge", "prefix": "does not merge", "unipelt": "does not merge"},
        reasons=("merges into the base, which then answers with the base's own layers",),
    ),
    "an hour on this processor for two million rows": Case(
        "minilm",
        {"rows": 2_000_000, "time": "1h"},
        "",
        names=("lora", "full"),
        out={"lora": "and 60 min are allowed", "full": "are allowed"},
    ),
    "an encoder-decoder": Case(
        "t5-small",
        {"rows": 3000},
        "lora",
        names=("lora", "full", "prefix", "prompt", "mam"),
        reasons=("memory cannot be estimated for this model",),
        out={"prefix": "encoder-decoder", "prompt": "encoder-decoder", "mam": "encoder-decoder"},
    ),
    "reviews judged in words": Case(
        "builtin",
        {},
        "lora",
        set=("data=builtin:reviews", "task=chat"),
        learns="labels",
        reasons=("reviews, accuracy: 66.3 (63.2 to 69.4)",),
        behind=("scaled_parallel", "pfeiffer", "mam"),
    ),
    "free answers": Case(
        "builtin",
        {},
        "lora",
        set=("data=builtin:assistant",),
        learns="answers",
        reasons=("assistant, loss: 5.442 (5.430 to 5.454)", "reviews, accuracy"),
        evidence=("assistant, loss", "reviews, accuracy", "GSM8K, accuracy"),
        behind=("unipelt", "prompt", "adalora"),
    ),
    "plain text": Case(
        "builtin",
        {"rows": 1000, "memory": "24GB"},
        "lora",
        names=("lora", "full", "adalora", "prompt"),
        set=("task=complete",),
        limits=("no measurement on plain text",),
    ),
    "reviews judged in words, and little time": Case(
        "builtin",
        {"time": "10min"},
        "freeze",
        set=("data=builtin:reviews", "task=chat"),
        reasons=("reviews, accuracy: 66.4 (65.2 to 67.5); statistically tied with the best",),
    ),
}


def holds(texts: list[str], part: str) -> bool:
    return any(part in text for text in texts)


@pytest.mark.parametrize("name", CASES)
def test_what_a_person_would_choose(name: str, choose: Choose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    monkeypatch.setattr(rank, "NAMES", case.names)
    # Whichever boards of SmolLM2 there are, and whatever they say, these cases are about the others.
    boards = {title: board for title, board in repository().items() if "SmolLM2" not in board.model}
    monkeypatch.setattr(nearness, "repository", lambda: boards)
    rows = [{"text": f"how do i {i % 150} my card, please {i}", "label": f"intent {i % 150}"} for i in range(600)]
    write_jsonl(tmp_path / "intents.jsonl", rows)
    found = choose(case.base, case.set, **case.options)
    assert case.learns in ("", found["question"]["learns"])
    names = [row["method"] for row in found["ranked"]]
    assert (names[0] if names else "") == case.first
    out = {row["method"]: row["text"] for row in found["ruled_out"]}
    for method, part in case.out.items():
        assert part in out[method], (method, out[method])
    if names:
        given = [f"{reason['text']} {reason['cited']}" for reason in found["ranked"][0]["reasons"]]
        assert holds(given, REPOSITORY)
        for part in case.reasons:
            assert holds(given, part), (part, given)
        assert found["next"][0].endswith(f"--method {case.first}")
        assert all(row["fits"] or case.base == "t5-small" for row in found["ranked"])
    limits = [reason["text"] for reason in found["limits"]]
    for part in case.limits:
        assert holds(limits, part), (part, limits)
    measured = [row["text"] for row in found["evidence"]]
    for part, text in zip(case.evidence, measured, strict=False):
        assert part in text, measured
    assert len(measured) >= len(case.evidence)
    below = [row["method"] for row in found["behind"]] + [
        r["method"] for r in found["ranked"] if not r["ties_with_first"]
    ]
    for method in case.behind:
        assert method in below, (method, below)
    assert not set(below) & {row["method"] for row in found["ranked"] if row["ties_with_first"]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["intents.jsonl"], "choose writes nothing"


def test_what_is_shown_of_the_data_is_what_is_in_it(choose: Choose, tmp_path: Path) -> None:
    rows = [{"text": f"how do i {i % 150} my card, please {i}", "label": f"intent {i % 150}"} for i in range(600)]
    asked = choose("bert-base", [f"data={write_jsonl(tmp_path / 'intents.jsonl', rows)}"])["question"]
    assert asked["classes"] == 150 and asked["learns"] == "classify" and asked["family"] == "encoder"
    assert asked["rows"] == 540 and asked["parameters"] == 109_597_590 and asked["assumed"] == ""
    assert asked["device"] == "cpu" and asked["this_machine"] and asked["longest"] < 40


def test_memory_only_ever_takes_methods_away(choose: Choose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "NAMES", ("lora", "full", "qlora"))
    free = choose("bert-base", rows=1000, memory="80GB")
    tight = choose("bert-base", rows=1000, memory="1.5GB")
    assert "full" in [row["method"] for row in free["ranked"]]
    assert "full" in [row["method"] for row in tight["ruled_out"]]
    assert all(row["memory"] <= 0.9 * 1.5e9 for row in tight["ranked"])
