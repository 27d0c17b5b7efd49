"""The embedded default: small, balanced, varied, honest."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from luthier.builtin import BASE, DATA, data_names
from luthier.models.load import load_model, load_tokenizer, locate
from tests.conftest import ROOT


def rows(name: str, part: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]


def squeeze(text: str) -> str:
    return "".join(text.casefold().split())


def grams(text: str) -> set[str]:
    plain = squeeze(text)
    return {plain[i : i + 4] for i in range(len(plain) - 3)}


@pytest.mark.slow
def test_the_base_is_small_and_loads_as_any_model() -> None:
    from luthier.models.settings import ModelConfig

    assert sum(path.stat().st_size for path in BASE.iterdir()) < 8_000_000
    config = ModelConfig()
    tokenizer = load_tokenizer(config, locate(config))
    model = load_model(config, locate(config), labels=None, tokenizer=tokenizer)
    assert model.config.model_type == "qwen2"
    assert tokenizer.chat_template and tokenizer.is_fast and tokenizer.eos_token
    text = "The kettle leaks. 水壶漏水，已经退货！ 😀"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text, "bytes below: any text comes back"
    from luthier.rendering.chat_template import Template
    from luthier.rendering.example import Message

    ends = Template(tokenizer).encode([Message("user", "hi"), Message("assistant", "yes", learn=True)])
    assert tokenizer.decode([ends.ids[-2]]) == "<|im_end|>" and ends.labels[-1] == -100


def test_the_model_card_names_sources_licences_and_limits() -> None:
    card = (BASE / "README.md").read_text()
    for word in (
        "Apache-2.0",
        "CDLA-Sharing",
        "tokens seen",
        "held-out loss",
        "Limits",
        "tools/base/build.py",
        "recipes/builtin-base.yaml",
    ):
        assert word in card, word


def test_reviews_are_enough_and_balanced() -> None:
    every = rows("reviews", "train") + rows("reviews", "heldout")
    assert len(every) >= 600 and len(rows("reviews", "heldout")) >= 100
    for part in ("train", "heldout"):
        count = Counter((row["language"], row["domain"], row["label"]) for row in rows("reviews", part))
        for language in ("en", "zh"):
            for domain in ("film", "product"):
                assert count[language, domain, "positive"] == count[language, domain, "negative"] > 0
    assert len(rows("assistant", "train")) + len(rows("assistant", "heldout")) >= 60
    assert data_names() == ["assistant", "banking", "reviews"]


@pytest.mark.parametrize("name", ["reviews", "assistant", "banking"])
def test_no_held_out_row_stands_in_training_or_nearly_so(name: str) -> None:
    def text(row: dict[str, Any]) -> str:
        return str(row["text"]) if "text" in row else str(row["messages"][0]["content"])

    train = [(grams(text(row)), text(row)) for row in rows(name, "train")]
    for row in rows(name, "heldout"):
        own = grams(text(row))
        near = max(train, key=lambda other: len(own & other[0]) / len(own | other[0]))
        assert len(own & near[0]) / len(own | near[0]) < 0.5, (text(row), near[1])


def test_the_texts_are_varied_and_not_one_template() -> None:
    every = [str(row["text"]) for row in rows("reviews", "train") + rows("reviews", "heldout")]
    openings = Counter(" ".join(text.split()[:3]).casefold() if " " in text else text[:4] for text in every)
    assert max(openings.values()) <= 8, openings.most_common(3)
    words = Counter(word for text in every for word in re.findall(r"[a-z']+", text.casefold()))
    assert len(words) > 3000
    assert len({squeeze(text) for text in every}) == len(every)


def test_labels_are_not_written_in_the_texts() -> None:
    for row in rows("reviews", "train") + rows("reviews", "heldout"):
        assert not re.search(r"\b(positive|negative)\b|正面|负面|好评|差评", str(row["text"])), row


def test_the_corpus_itself_stays_out_of_the_repository() -> None:
    assert "build/" in (ROOT / ".gitignore").read_text().splitlines()
