"""The report of a run is one file, says what was gained, and no text of the data can become part of it."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from luthier.core.errors import Stopped
from luthier.core.events import Progress
from luthier.pipeline import interim
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.reports.run_report import (
    confusion,
    examples_of,
    figure,
    own_settings,
    shift,
    word_difference,
    worst,
)
from tests.conftest import write_jsonl

NASTY = "<script>alert('x')</script><img src=http://example.org/a.png>"


def test_hostile_texts_stay_texts_and_nothing_is_loaded(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"text": f"{NASTY} {i}", "label": "good" if i % 2 else "bad"} for i in range(30)]
    run = tmp_path / "run"
    train(
        RunConfig.load(
            None,
            [
                f"model={model_folder('llama')}",
                f"data={write_jsonl(tmp_path / 'a.jsonl', rows)}",
                "task=chat",
                "train.steps=2",
                f"run={run}",
            ],
        )
    )
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1 and NASTY not in page and "&lt;script&gt;" in page
    links: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: links.extend(v for k, v in attrs if k in ("src", "href"))  # type: ignore[method-assign]
    parser.feed(page)
    assert links and all(link.startswith("#") for link in links), "a page that loads something"
    assert "default-src 'none'" in page and page.count('<svg xmlns="http://www.w3.org/2000/svg" class="chart"') == 2
    for heading in ("Before and after", "Labels", "Held-out examples", "Forgetting", "Training", "Data", "Recipe"):
        assert re.search(f'<h2 id="[a-z]+">{heading}', page), heading
    assert all(f'id="{link[1:]}"' in page for link in links), "the list of contents leads somewhere"
    text = re.sub(r"<[^>]*>", "", page.split("</style>")[1])
    assert re.search(r"On \d+ held-out examples, accuracy (rose from|fell from|went from|stayed at)", text)
    assert str(tmp_path) not in page and "a.jsonl: line" in page
    result = json.loads((run / "result.json").read_text())
    assert (
        set(result["tuned"])
        == {"loss", "perplexity", "accuracy", "macro_f1", "mcc", "exact_match"}
        == set(result["difference"])
    )


def test_the_worst_examples_are_the_wrong_ones_then_the_dearest() -> None:
    def row(name: str, chosen: str, loss: float) -> dict[str, object]:
        return {"text": name, "tuned": {"label": "a", "chosen": chosen, "loss_sum": loss, "targets": 1}}

    rows = [row("right", "a", 0.1), row("dear", "a", 3.0), row("wrong", "b", 1.0)]
    assert [r["text"] for r in worst(rows)] == ["wrong", "dear", "right"]


def test_figures_for_people() -> None:
    assert figure("bleu", 34.2) == "34.20" and figure("mcc", -0.5, sign=True) == "-0.500"
    assert shift("accuracy", 1.0, 0.0) == "right → wrong" and shift("rouge_l", 0.1, 0.5) == "10.0 % → 50.0 %"
    assert figure("accuracy", 0.8512) == "85.1 %" and figure("accuracy", 0.031, sign=True) == "+3.1 points"
    assert figure("loss", 1.23456) == "1.235" and figure("perplexity", 12345.6) == "12,346"


def test_an_example_is_shown_once() -> None:
    def row(name: str, chosen: str, loss: float) -> dict[str, object]:
        side = {"label": "a", "chosen": chosen, "loss_sum": loss, "targets": 1}
        return {"where": name, "text": name, "answer": "a", "base": {**side, "chosen": "a"}, "tuned": side}

    predictions = [row("fine", "a", 0.1), row("wrong", "b", 3.0), row("dear", "a", 2.0)]
    contrast = {
        "by": "accuracy",
        "regressions": [{"where": "wrong", "text": "wrong", "base_score": 1.0, "tuned_score": 0.0}],
    }
    found = examples_of({"examples": contrast}, predictions)
    assert [(each["row"]["where"], each["kind"], each["change"]["en"]) for each in found] == [
        ("wrong", "worse", "right → wrong"),
        ("dear", "", ""),
        ("fine", "", ""),
    ]
    assert found[0]["sides"]["tuned"]["wrong"] and not found[0]["sides"]["base"]["wrong"]


def test_the_words_that_differ_are_marked() -> None:
    before, after = word_difference("The red cat <b>sat</b> down.", "The blue cat <b>sat</b> down.")
    assert before == "The <del>red</del> cat &lt;b&gt;sat&lt;/b&gt; down."
    assert after == "The <ins>blue</ins> cat &lt;b&gt;sat&lt;/b&gt; down."
    assert word_difference("推荐购买。", "不推荐购买。")[1] == "<ins>不</ins>推荐购买。"
    assert word_difference("nothing", "in common")[1] == "in common", "marks on everything say nothing"


def test_labels_that_were_taken_for_others_are_counted() -> None:
    def row(label: str, base: str, tuned: str) -> dict[str, object]:
        return {"base": {"label": label, "chosen": base}, "tuned": {"label": label, "chosen": tuned}}

    rows = [row("a", "a", "a"), row("a", "b", "a"), row("b", "a", "b"), row("b", "a", "c")]
    base, tuned = confusion(rows)
    assert base["labels"] == ["a", "b"] and base["rows"] == [[1, 1], [2, 0]]
    assert tuned["labels"] == ["a", "b", "c"] and tuned["rows"] == [[2, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert confusion([{"base": {}, "tuned": {"loss_sum": 1.0}}]) == []
    many = confusion([row(f"l{n:02}", "x", f"l{n:02}" if n else "l29") for n in range(30)])[1]
    assert len(many["labels"]) == 20 and {"l00", "l29"} <= set(many["labels"]) and many["left_out"] == 10


def test_the_recipe_is_shown_as_far_as_it_differs() -> None:
    changes = ["model=builtin", "data=builtin:reviews", "train.lr=0.002", "method.rank=2", "run=runs/x"]
    own = yaml.safe_load(own_settings(RunConfig.load(None, changes)))
    assert own["model"]["path"] == "builtin" and own["method"] == {"name": "lora", "rank": 2}
    assert own["train"] == {"lr": 0.002} and "run" not in own and "seed" not in own


def test_a_run_that_is_stopped_has_a_page(
    model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"text {i}", "label": "good" if i % 2 else "bad"} for i in range(30)]
    pages: list[str] = []

    class Stop(Progress):
        def step(self, record: dict[str, object], tokens_per_second: float) -> None:
            pages.append((run / "report.html").read_text() if (run / "report.html").exists() else "")
            if record["step"] == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    run, data = tmp_path / "run", write_jsonl(tmp_path / "a.jsonl", rows)
    settings = [f"model={model_folder('llama')}", f"data={data}", "task=classify", "train.steps=6", f"run={run}"]
    config = RunConfig.load(None, [*settings, "train.evaluate_every=1", "train.lr=1e-3"])
    monkeypatch.setattr(interim, "EVERY", 0.0)
    monkeypatch.setattr(interim, "TIMES", 0.0)
    with pytest.raises(Stopped):
        train(config, progress=Stop())
    assert pages[0] == "" and "1 of 6 steps" in pages[1] and "2 of 6 steps" in pages[2]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "The run is not finished: 4 of 6 steps were taken" in page and (run / "loss.png").is_file()
    monkeypatch.setattr(interim, "EVERY", 1000.0)
    train(config)
    assert "not finished" not in (run / "report.html").read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_does_not_stop_the_run(
    model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    class Listen(Progress):
        def warn(self, text: str) -> None:
            heard.append(text)

    def fail(self: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(interim, "EVERY", 0.0)
    monkeypatch.setattr(interim, "TIMES", 0.0)
    monkeypatch.setattr(interim.InterimPage, "write", fail)
    data = write_jsonl(tmp_path / "a.jsonl", [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(30)])
    settings = [f"model={model_folder('llama')}", f"data={data}", "task=classify", "train.steps=3"]
    train(RunConfig.load(None, [*settings, "train.evaluate_every=1", f"run={tmp_path / 'run'}"]), progress=Listen())
    assert len(told := [text for text in heard if "no room" in text]) == 1 and "is left out" in told[0]
    assert "Before and after" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
