"""The report is one file, loads nothing, and no text of the data can become part of the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.reports import loss_curve
from luthier.reports.run_report import figure, shift, worst
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
    assert "<script" not in page and "&lt;script&gt;" in page
    links = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: links.extend(v for k, v in attrs if k in ("src", "href"))  # type: ignore[method-assign]
    parser.feed(page)
    assert links and all(link.startswith("data:") for link in links), "a page that loads something"
    assert "default-src 'none'" in page and "data:image/png;base64," in page
    for heading in (
        "Before and after",
        "What training changed",
        "Forgetting",
        "Loss",
        "Data",
        "Worst held-out examples",
        "Recipe",
    ):
        assert f"<h2>{heading}" in page
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
    assert figure("loss", 1.23456) == "1.235" and figure("perplexity", 12345.6) == "1.23e+04"


def test_the_curve_is_drawn_also_for_an_empty_or_one_step_run() -> None:
    for history in ([], [{"step": 1, "loss": 2.0}], [{"step": 1, "validation_loss": 2.0}]):
        assert loss_curve.draw(history, "t").startswith(b"\x89PNG")
    assert loss_curve.smooth([2.0] * 50) == [2.0] * 50
