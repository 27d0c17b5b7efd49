"""The demos: a run from the first word to the next commands, at 80 columns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from luthier.builtin import DEMOS
from luthier.models.pypi import PACKAGED
from luthier.recipe.config import RunConfig
from tests.conftest import luthier

SHORT = ("train.steps=2", "data.limit=32", "data.validation_limit=12", "evaluate.forgetting=false")


@pytest.mark.parametrize(
    ("words", "folder", "more"),
    [([], "demo", ["luthier demo smollm2"]), (["smollm2", "model=builtin"], "demo-smollm2", [])],
)
def test_a_demo_shows_scores_answers_and_what_comes_next(
    words: list[str], folder: str, more: list[str], tmp_path: Path
) -> None:
    done = luthier("demo", *words, *SHORT, cwd=tmp_path, env={"COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    out = done.stdout
    result = json.loads((tmp_path / "runs" / folder / "result.json").read_text())
    assert f"{100 * result['tuned']['accuracy']['value']:.1f} %" in out and "95 % CI" in out
    first = json.loads((tmp_path / "runs" / folder / "predictions.jsonl").read_text().splitlines()[0])
    words_shown = re.sub(r"\s+", " ", out)
    assert all(word in words_shown for word in first["text"].split()), "the first held-out message, not a chosen one"
    for command in ("chat", "export", "serve"):
        assert f"luthier {command} runs/{folder}" in out
    assert all(line in out for line in more)
    again = luthier("demo", *words, *SHORT, cwd=tmp_path, env={"COLUMNS": "80"})
    assert f"runs/{folder}-2" in again.stdout, "a finished demo is not written over"


def test_each_demo_names_a_base_that_comes_with_luthier() -> None:
    assert {RunConfig.load(recipe, []).model.path for recipe in DEMOS.values()} == {"builtin", *PACKAGED}
